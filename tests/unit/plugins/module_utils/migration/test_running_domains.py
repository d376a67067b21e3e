# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Batches on a host whose domains use, and run from, the images: real libvirtd, QEMU and guests."""

import os
import pathlib
import random
import re
import subprocess
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ToolFailed
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt import api, control
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, domain_policy, record_batch, running_domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import IGNORE, Domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.info import Question, add_domains, add_references, look
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk, guest_files


@pytest.fixture
def host(libvirtd: Libvirtd, tmp_path: pathlib.Path) -> Iterator["Host"]:
    yield Host(libvirtd, tmp_path)
    libvirtd.clear()


class Host:
    """A directory of images, and the libvirt that uses them."""

    def __init__(self, daemon: Libvirtd, directory: pathlib.Path) -> None:
        self.daemon = daemon
        self.directory = directory / "images"
        self.directory.mkdir()
        self.state = directory / "state"
        self.journal = self.state / "domain-journal"

    def image(self, name: str, *arguments: str) -> pathlib.Path:
        """A v1 image of 32 MiB with some data."""
        raw = self.directory.parent / "plain"
        chance = random.Random(name)
        with open(raw, "wb") as file:
            file.truncate(32 << 20)
            for _index in range(10):
                file.seek(chance.randrange(0, 8 << 20) // 4096 * 4096)
                file.write(chance.randbytes(16384))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow", *arguments, str(raw), str(self.directory / name)], check=True)
        return self.directory / name

    def run(self, *images: pathlib.Path, check_mode: bool = False, **how: Any) -> List[Dict[str, Any]]:
        """Migrate them as the role does."""
        request = {key: how.pop(key) for key in list(how) if key in Request._fields}
        policy = domain_policy.Policy(how.pop("running", "refuse"), 240)
        settings = batch.Settings(
            os.fsencode(self.state), reserve=0, check_mode=check_mode, libvirt_uri=self.daemon.uri, running=policy, **how
        )
        wanted = [Request(os.fsencode(image), retire=True, state_dir=settings.state_dir, **request) for image in images]
        self.recovered: List[Dict[str, Any]] = []
        return batch.run(wanted, settings, self.recovered)

    def starts(self, name: str) -> int:
        """The number libvirt gave it when it was started last; each start takes the next."""
        return int(self.daemon.connection.lookupByName(name).ID())

    def names(self) -> List[str]:
        """What lies in the directory."""
        return sorted(path.name for path in self.directory.iterdir())


def up(host: Host, name: str, *disks: str, cmdline: str = "guest=idle") -> Guest:
    """A guest that runs."""
    guest = Guest(host.daemon, name, list(disks), cmdline=cmdline)
    guest.domain.create()
    guest.wait("GUEST-WROTE" if "write" in cmdline else "GUEST-UP")
    return guest


def on_qcow2(xml: str) -> str:
    return xml.replace("type='qcow'", "type='qcow2'").replace(".qcow'", ".qcow2'")


def test_domains_follow_a_batch_and_its_rollback(host: Host) -> None:
    one, two = host.image("one.qcow"), host.image("two.qcow")
    guest = Guest(host.daemon, "shop", [disk(one, "qcow"), disk(two, "qcow", "vdb")])
    before = guest.xml()
    pool = host.daemon.pool("images", host.directory)
    planned = host.run(one, two, check_mode=True)
    assert [result["reasons"][-1] for result in planned] == ["domain shop (vda) follows", "domain shop (vdb) follows"]
    assert not any(result["failed"] for result in host.run(one, two, workers=2))
    assert guest.xml() == on_qcow2(before)
    assert "one.qcow2" in pool.listVolumes() and "one.qcow" not in pool.listVolumes()
    choice = record_batch.Choice(os.fsencode(host.state), paths=(os.fsencode(host.directory),), libvirt_uri=host.daemon.uri)
    assert [entry["reason"] for entry in record_batch.roll_back_all(choice._replace(domains="refuse"), discard_changes=False)] == [
        "state",
        "state",
    ]
    assert [entry["msg"] for entry in record_batch.roll_back_all(choice, discard_changes=False) if entry["failed"]] == []
    assert guest.xml() == before


def test_what_a_domain_forbids_is_refused_before_anything_is_written(host: Host) -> None:
    raw, snapped, running, free = (host.image(name + ".qcow") for name in ("raw", "snapped", "running", "free"))
    Guest(host.daemon, "trap", [disk(raw, "raw")])
    holder = Guest(host.daemon, "holder", [disk(snapped, "qcow")])
    holder.domain.snapshotCreateXML(
        "<domainsnapshot><name>old</name><disks><disk name='vda' snapshot='external'><source file='%s'/></disk></disks></domainsnapshot>"
        % (host.directory.parent / "over.qcow2"),
        host.daemon.library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    )
    up(host, "busy", disk(running, "qcow"))
    results = host.run(raw, snapped, running, free)
    assert [result["failed"] for result in results] == [True, True, True, False]
    assert "Domain trap declares" in results[0]["msg"] and "Snapshot old of domain holder" in results[1]["msg"]
    assert "Domain busy is running. Shut it down, or set running=shutdown" in results[2]["msg"]
    assert host.names() == ["free.qcow.qcow1.orig", "free.qcow2", "raw.qcow", "running.qcow", "snapped.qcow"]

    (refused,) = host.run(raw, domains="refuse")
    assert refused["failed"] and "used by domain trap" in refused["msg"]
    (allowed,) = host.run(raw, raw_allowed=True)
    assert not allowed["failed"] and "type='qcow2'" in host.daemon.connection.lookupByName("trap").XMLDesc()


def test_ignored_domains_are_not_asked_for(host: Host) -> None:
    image = host.image("one.qcow")
    guest = Guest(host.daemon, "shop", [disk(image, "qcow")])
    before = guest.xml()
    (result,) = host.run(image, domains=IGNORE)
    assert not result["failed"] and guest.xml() == before


def test_a_running_domain_is_shut_down_for_all_its_images_and_started_again(host: Host) -> None:
    one, two = host.image("one.qcow"), host.image("two.qcow", "-o", "encryption=off")
    guest = up(host, "shop", disk(one, "qcow"), disk(two, "qcow", "vdb"))
    before = guest.xml()
    planned = host.run(one, two, running="shutdown", check_mode=True)
    assert [result["reasons"][-1] for result in planned] == [
        "domain shop (vda) is shut down and started again",
        "domain shop (vdb) is shut down and started again",
    ]
    assert guest.domain.isActive()
    number = host.starts("shop")
    results = host.run(one, two, running="shutdown", workers=2)
    assert not any(result["failed"] for result in results), [result["msg"] for result in results]
    assert guest.domain.isActive() and host.starts("shop") == number + 1  # once for both
    assert guest.xml() == on_qcow2(before)
    assert host.names() == ["one.qcow.qcow1.orig", "one.qcow2", "two.qcow.qcow1.orig", "two.qcow2"]
    assert not list(host.journal.iterdir())
    assert not any(result["changed"] for result in host.run(one, two, running="shutdown"))


def test_a_failed_start_ends_in_the_old_state_running(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    image = host.image("one.qcow")
    guest = up(host, "shop", disk(image, "qcow"))
    before, content = guest.xml(), image.read_bytes()
    start, tried = control.start, []

    def refusing(connection: api.Connection, uuid: str, settle: float = 1.0) -> bool:
        """What makes a start fail on one host only cannot be made here: the first one fails."""
        tried.append(guest.xml())
        if len(tried) == 1:
            raise ToolFailed("Domain shop does not start: it is a test.")
        return start(connection, uuid, settle)

    monkeypatch.setattr(control, "start", refusing)
    (result,) = host.run(image, running="shutdown")
    assert result["failed"] and result["reason"] == "start-failed" and not result["changed"]
    assert result["msg"].endswith("The migration was rolled back. Every domain runs as before.")
    assert "one.qcow2" in tried[0] and guest.xml() == before and guest.domain.isActive()
    assert host.names() == ["one.qcow"] and image.read_bytes()[:48] == content[:48]
    assert not list(host.journal.iterdir())


def test_a_running_domain_moves_live_and_its_originals_are_retired(host: Host) -> None:
    one, two = host.image("one.qcow"), host.image("two.qcow")
    guest = up(host, "shop", disk(one, "qcow"), disk(two, "qcow", "vdb"), cmdline="guest=write")
    before, number = guest.xml(), host.starts("shop")
    assert host.run(one, running="live", check_mode=True)[0]["reasons"][-1] == "domain shop (vda) is moved live"
    (refused,) = host.run(one, running="live", format="raw")
    assert refused["failed"] and "to qcow2 only" in refused["msg"]
    (refused,) = host.run(one, running="live", keep_name=True)
    assert refused["failed"] and "running=shutdown" in refused["msg"]
    results = host.run(one, two, running="live", bandwidth=200 << 20)
    assert not any(result["failed"] for result in results), [result["msg"] for result in results]
    assert host.starts("shop") == number and guest.xml() == on_qcow2(before)
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 5)
    assert host.names() == ["one.qcow.qcow1.orig", "one.qcow2", "two.qcow.qcow1.orig", "two.qcow2"]
    assert not list(host.journal.iterdir())
    assert not host.run(one, running="live")[0]["changed"]


def test_a_switch_that_fails_takes_the_result_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    image = host.image("one.qcow")
    guest = up(host, "shop", disk(image, "qcow"), cmdline="guest=write")
    before = guest.xml()

    def failing(*_arguments: Any, **_more: Any) -> None:
        raise ToolFailed("The block job failed: it is a test.")

    monkeypatch.setattr(control, "pivot", failing)
    (result,) = host.run(image, running="live")
    assert result["failed"] and "it is a test" in result["msg"]
    assert guest.xml() == before and host.names() == ["one.qcow"]
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 5)
    monkeypatch.undo()
    assert host.run(image, running="live")[0]["changed"]


@pytest.mark.parametrize("place", ["convert", "switch", "agree"])
def test_a_run_that_dies_leaves_no_domain_behind(host: Host, place: str) -> None:
    image = host.image("one.qcow")
    guest = up(host, "shop", disk(image, "qcow"), cmdline="guest=write")
    before = guest.xml()
    pid = os.fork()
    if pid == 0:
        try:
            if place == "convert":
                batch.execute = lambda *_arguments: os._exit(7)  # type: ignore[assignment]
            elif place == "switch":
                control.pivot = lambda *_arguments, **_more: os._exit(7)  # type: ignore[assignment]
            else:
                running_domains.redefine.agree = lambda *_arguments: os._exit(7)  # type: ignore[assignment]
            host.run(image, running="live")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert len(list(host.journal.iterdir())) == 1
    told = host.run(image, check_mode=True, running="live")
    assert "will be put back" in host.recovered[0]["msg"] and told
    results = host.run(image, running="live")
    assert not any(result["failed"] for result in results), [results, host.recovered]
    assert not any(entry["failed"] for entry in host.recovered)
    assert "overlay" in host.recovered[0]["msg"]
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 5)
    assert guest.xml() == on_qcow2(before) and "one.qcow2'" in guest.domain.XMLDesc()
    assert host.names() == ["one.qcow.qcow1.orig", "one.qcow2"] and not list(host.journal.iterdir())


def test_a_domain_that_was_shut_down_by_a_run_that_died_is_started(host: Host) -> None:
    image = host.image("one.qcow")
    guest = up(host, "shop", disk(image, "qcow"))
    pid = os.fork()
    if pid == 0:
        batch.execute = lambda *_arguments: os._exit(7)  # type: ignore[assignment]
        try:
            host.run(image, running="shutdown")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert not guest.domain.isActive()
    host.run(image)
    assert guest.domain.isActive() and "it runs again" in host.recovered[-1]["msg"]


def test_images_that_text_files_name_keep_their_names(host: Host) -> None:
    one, two = host.image("one.qcow"), host.image("two.qcow")
    etc = host.directory.parent / "etc"
    etc.mkdir()
    (etc / "guest.cfg").write_text("memory = 512\nhda = %s\n" % one)
    more = {"reference_dirs": (os.fsencode(etc),), "domains": IGNORE}
    refused, done = host.run(one, two, **more)
    assert refused["reason"] == "referenced" and "keep_name=true" in refused["msg"]
    assert "%s line 2: hda = %s (to be: hda = %s2)" % (etc / "guest.cfg", one, one) in refused["msg"]
    assert not done["failed"] and host.names() == ["one.qcow", "two.qcow.qcow1.orig", "two.qcow2"]
    (told,) = host.run(one, references="report", check_mode=True, **more)
    assert not told["failed"] and told["reasons"][-1].startswith("still named in %s line 2: hda" % (etc / "guest.cfg"))
    (kept,) = host.run(one, keep_name=True, **more)
    assert not kept["failed"] and "one.qcow" in host.names() and "one.qcow.qcow1.orig" in host.names()


@pytest.mark.parametrize(
    ("line", "qcow2", "raw"),
    [
        ("tap:qcow:IMAGE,xvda", "tap:qcow2:IMAGE2,xvda", "tap:aio:RAW,xvda"),
        ("tap2:tapdisk:qcow:IMAGE,xvda", "tap2:tapdisk:qcow2:IMAGE2,xvda", "tap2:tapdisk:aio:RAW,xvda"),
        ("'format=qcow, vdev=xvda, target=IMAGE'", "'format=qcow2, vdev=xvda, target=IMAGE2'", "'format=raw, vdev=xvda, target=RAW'"),
        ("<disk type='qcow' file='IMAGE'/>", "<disk type='qcow2' file='IMAGE2'/>", "<disk type='raw' file='RAW'/>"),
        ("ide0: local:images/one.qcow,format=qcow", "ide0: local:images/one.qcow2,format=qcow2", "ide0: local:images/one.raw,format=raw"),
        ("qemu -f qcow 'DIR'/one.qcow", "qemu -f qcow2 'DIR'/one.qcow2", "qemu -f raw 'DIR'/one.raw"),
        ("<HardDisk location='IMAGE' format='QCOW'/>", "set original=keep", "set original=keep"),
    ],
)
def test_a_line_that_states_the_format_is_told_as_it_has_to_be(host: Host, line: str, qcow2: str, raw: str) -> None:
    one = host.image("one.qcow")
    etc = host.directory.parent / "etc"
    etc.mkdir()

    def placed(text: str) -> str:
        return text.replace("IMAGE", str(one)).replace("RAW", str(one.with_suffix(".raw"))).replace("DIR", str(host.directory))

    (etc / "guest.cfg").write_text("memory = 512\n" + placed(line))
    more = {"reference_dirs": (os.fsencode(etc),), "domains": IGNORE, "check_mode": True}
    for how, expected in (({}, qcow2), ({"format": "raw"}, raw)):
        (refused,) = host.run(one, **how, **more)
        assert refused["reason"] == "referenced" and placed(expected) in refused["msg"], refused["msg"]
        assert "Set keep_name=true" not in refused["msg"] and "references=report" in refused["msg"]
        # The name would stay true, the format would not.
        (kept,) = host.run(one, keep_name=True, **how, **more)
        expected = placed(expected).replace("one.qcow2", "one.qcow").replace("one.raw", "one.qcow")
        assert kept["reason"] == "referenced" and expected in kept["msg"], kept["msg"]
        (told,) = host.run(one, keep_name=True, references="report", **how, **more)
        assert not told["failed"] and expected in told["reasons"][-1]


def test_what_could_not_be_searched_is_a_warning_and_passwords_are_not_told(host: Host) -> None:
    one, two = host.image("one.qcow"), host.image("two.qcow")
    etc = host.directory.parent / "etc"
    etc.mkdir()
    (etc / "large").write_text("#" * (2 << 20))
    (etc / "guest.cfg").write_text("qemu -vnc :1,password=s3cret -hda %s" % two)
    results = host.run(one, two, reference_dirs=(os.fsencode(etc),), domains=IGNORE, check_mode=True)
    assert results[0]["warnings"] == ["These could not be searched for names of images: %s (larger than 1048576 bytes)." % (etc / "large")]
    assert results[1]["warnings"] == [] and results[1]["reason"] == "referenced"
    assert "s3cret" not in str(results) and "password=********" in results[1]["msg"]


def run_script(script: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"keep_name": True}, {"format": "raw"}], ids=["other-name", "same-name", "raw"])
def test_a_guest_of_a_script_boots_from_the_line_that_was_told(host: Host, how: Dict[str, Any]) -> None:
    one = host.image("one.qcow")
    script = host.directory.parent / "etc" / "guest.sh"
    script.parent.mkdir()
    files = guest_files()
    line = "DISK={0}\nqemu-system-x86_64 -accel tcg -M pc -m 128 -nographic -nodefaults -serial stdio -no-reboot -kernel {kernel} \\\n  {1} \\\n  {2}\n"
    drive = "-drive file=$DISK,format=qcow,if=virtio"
    script.write_text(line.format(one, drive, "-initrd %s -append 'console=ttyS0 quiet panic=1 guest=sha'" % files["initrd"], **files))
    seen = re.findall("GUEST-SHA vda .*", run_script(script).stdout)
    assert len(seen) == 1
    more = {"reference_dirs": (os.fsencode(script.parent),), "domains": IGNORE}
    (refused,) = host.run(one, **how, **more)
    assert refused["reason"] == "referenced" and host.names() == ["one.qcow"], refused["msg"]
    (done,) = host.run(one, references="report", **how, **more)
    assert not done["failed"]
    failing = run_script(script)
    assert failing.returncode != 0 and "GUEST-SHA" not in failing.stdout

    # What the message says, applied word by word.
    lines = script.read_text().split("\n")
    told = re.findall(r"guest\.sh line (\d+): (.*?) \(to be: (.*?)\)(?=;|\.| )", refused["msg"] + " ")
    assert told
    for number, old, new in told:
        assert old in lines[int(number) - 1]
        lines[int(number) - 1] = lines[int(number) - 1].replace(old, new)
    script.write_text("\n".join(lines))
    assert re.findall("GUEST-SHA vda .*", run_script(script).stdout) == seen


NAMESPACE = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def arguing(host: Host, *arguments: str, cmdline: str = "guest=sha") -> Guest:
    """A guest whose disk is in arguments of QEMU's."""
    guest = Guest(host.daemon, "arguing", [], cmdline=cmdline)
    device = ("-device", "virtio-blk-pci,drive=d,addr=0x10")
    more = "".join("<qemu:arg value='%s'/>" % argument for argument in arguments + device)
    xml = guest.xml().replace("<domain type='qemu'", "<domain type='qemu' %s" % NAMESPACE)
    guest.domain = host.daemon.connection.defineXML(xml.replace("</domain>", "<qemu:commandline>%s</qemu:commandline></domain>" % more))
    return guest


@pytest.mark.slow
def test_a_domain_that_names_the_image_in_arguments_of_qemu(host: Host) -> None:
    one = host.image("one.qcow")
    guest = arguing(host, "-drive", "file=%s,format=qcow,if=none,id=d" % one)
    seen = guest.boot()
    for how in ({}, {"keep_name": True}):
        (refused,) = host.run(one, **how)
        assert refused["reason"] == "domain" and "file=%s,format=qcow,if=none,id=d" % one in refused["msg"]
        assert "keep_name=true" not in refused["msg"] and "domains=ignore" in refused["msg"]
    told = re.search(r"write there: (\S+) \(virsh edit arguing\)", host.run(one)[0]["msg"])
    assert told and told.group(1) == "file=%s2,format=qcow2,if=none,id=d" % one
    (done,) = host.run(one, domains=IGNORE)
    assert not done["failed"]
    guest.domain = host.daemon.connection.defineXML(guest.xml().replace("file=%s,format=qcow,if=none,id=d" % one, told.group(1)))
    assert guest.boot() == seen


@pytest.mark.slow
def test_arguments_without_a_format_are_true_of_a_result_under_the_same_name(host: Host) -> None:
    one = host.image("one.qcow")
    guest = arguing(host, "-drive", "file=%s,if=none,id=d" % one, cmdline="guest=idle")
    (refused,) = host.run(one)
    assert refused["reason"] == "domain" and "Let the result keep the name (keep_name=true)" in refused["msg"]
    guest.domain.create()
    guest.wait("GUEST-UP")
    (busy,) = host.run(one, keep_name=True)
    assert busy["reason"] == "in-use"
    before = guest.xml()
    (done,) = host.run(one, keep_name=True, running="shutdown")
    assert not done["failed"], done["msg"]
    guest.wait("GUEST-UP", 2)
    assert guest.xml() == before


def test_formats_in_other_arguments_and_links_count(host: Host) -> None:
    one = host.image("one.qcow")
    (host.directory.parent / "link").symlink_to(host.directory)
    arguing(
        host,
        "-blockdev",
        "driver=file,node-name=f,filename=%s/link/one.qcow" % host.directory.parent,
        "-blockdev",
        "driver=qcow,file=f,node-name=d",
    )
    for how in ({}, {"keep_name": True}):
        (refused,) = host.run(one, **how)
        assert refused["reason"] == "domain" and "It states the format qcow" in refused["msg"], refused["msg"]
    host.daemon.clear()
    arguing(host, "-drive", "format=qcow,if=none,id=d,file=%s/link/one.qcow" % host.directory.parent)
    assert "It states the format qcow" in host.run(one, keep_name=True)[0]["msg"]


def test_each_image_is_told_with_its_users(host: Host) -> None:
    shop, trap, run, free = (host.image(name + ".qcow") for name in ("shop", "trap", "run", "free"))
    Guest(host.daemon, "shop", [disk(shop, "qcow")])
    Guest(host.daemon, "trap", [disk(trap, "raw", "vdc")])
    up(host, "run", disk(run, "qcow"))
    images, summary, _errors = look(Question((os.fsencode(host.directory),)), Records(os.fsencode(host.directory / "state")))
    assert add_domains(images, summary, Domains(host.daemon.uri)) == []
    found = {os.path.basename(image["path"]): image for image in images}
    (user,) = found["shop.qcow"]["users"]
    assert (user["domain"], user["device"], user["target"], user["state"], user["snapshots"]) == ("shop", "disk", "vda", "shut off", [])
    assert {name: (image["domains"] or {}).get("action") for name, image in found.items()} == {
        "shop.qcow": "follow",
        "trap.qcow": "refuse",
        "run.qcow": "running",
        "free.qcow": None,
    }
    assert {use["where"] for use in found["run.qcow"]["users"]} == {"definition", "live"}
    assert (summary["used_by_domains"], summary["kept_back_by_domains"]) == (3, 1)
    etc = host.directory.parent / "rc.local"
    etc.write_text("\nqemu -f qcow -hda %s" % free)
    assert add_references(images, summary, (os.fsencode(etc),)) == []
    expected = {"file": str(etc), "file_base64": None, "line": 2, "text": "qemu -f qcow -hda %s" % free, "format": "qcow"}
    assert found["free.qcow"]["references"] == [expected] and summary["referenced"] == 1
    etc.write_text("#" * (2 << 20))
    assert "rc.local (larger than" in add_references(images, summary, (os.fsencode(etc),))[0]
