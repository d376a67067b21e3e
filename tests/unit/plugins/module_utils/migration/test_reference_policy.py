# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that text files, or domains outside their disks, name: which lines stay right, and what is told of the others. Real QEMU, libvirt and guests."""

import os
import pathlib
import re
import subprocess
from typing import Any, Dict, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import IGNORE
from ansible_collections.vmimage.qcow.tests.support.domain_host import Host
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, guest_files


@pytest.fixture
def host(libvirtd: Libvirtd, tmp_path: pathlib.Path) -> Iterator[Host]:
    yield Host(libvirtd, tmp_path)
    libvirtd.clear()


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


@pytest.mark.parametrize(
    ("line", "how", "todo"),
    [
        ("cd DIR; cp one.qcow /backup/one.qcow", {}, "to name DIR/one.qcow2 as qcow2"),
        ("cp DIR/one.qcow DIR/old.qcow; cd DIR; rm one.qcow", {}, "to be: cp DIR/one.qcow2 DIR/old.qcow; cd DIR; rm one.qcow2"),
        ("hda=DIR/one.qcow password='a'", {}, "to name DIR/one.qcow2 as qcow2"),
        ("hda=DIR/one.qcow data: a", {}, "to be: hda=DIR/one.qcow2 data: a"),
        ("scsi0: local:images/one.qcow", {}, "to be: scsi0: local:images/one.qcow2"),
        ("scsi0: local:images/one.qcow", {"dest_dir": True}, "to name NEW/one.qcow2 as qcow2"),
        ("hda=DIR/one.qcow", {"dest_dir": True}, "to name NEW/one.qcow2 as qcow2"),
        ("scsi0: local:images/one.qcow", {"keep_name": True}, "Proxmox takes the format from the suffix"),
        ("disk: DIR/one.qcow\ntags: [qcow]\ntype: raw", {"keep_name": True}, "line 2: tags: [qcow] (to name DIR/one.qcow as qcow2)"),
        ("A=${A:-DIR/one.qcow}", {}, "to be: A=${A:-DIR/one.qcow2}"),
    ],
)
def test_what_to_write_is_told_where_it_is_certain(host: Host, line: str, how: Dict[str, Any], todo: str) -> None:
    one = host.image("one.qcow")
    etc, new = host.directory.parent / "etc", host.directory.parent / "new & old"
    for directory in (etc, new):
        directory.mkdir()
    how = {**how, "dest_dir": os.fsencode(new)} if "dest_dir" in how else how
    (etc / "guest.cfg").write_text(line.replace("DIR", str(host.directory)))
    (refused,) = host.run(one, reference_dirs=(os.fsencode(etc),), domains=IGNORE, check_mode=True, **how)
    assert refused["reason"] == "referenced" and todo.replace("DIR", str(host.directory)).replace("NEW", str(new)) in refused["msg"], (
        refused["msg"]
    )


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
    ended = run_script(script)
    assert re.findall("GUEST-SHA vda .*", ended.stdout) == seen, (told, ended)


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
        assert "write there" not in refused["msg"] and "the format wherever it is stated, by hand" in refused["msg"]
    host.daemon.clear()
    arguing(host, "-drive", "format=qcow,if=none,id=d,file=%s/link/one.qcow" % host.directory.parent)
    assert "It states the format qcow" in host.run(one, keep_name=True)[0]["msg"]
    host.daemon.clear()
    arguing(host, "-drive", "if=none,id=d,file=%s" % one, "-drive", "file.driver=nbd,file.host=h,if=none,format=raw")
    assert "Let the result keep the name" in host.run(one)[0]["msg"]
