# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Batches on a host whose domains use, and run from, the images: real libvirtd, QEMU and guests."""

import os
import pathlib
import subprocess
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ToolFailed
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt import api, control
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import execute as execution
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import record_batch, running_domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import IGNORE, Domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.info import Question, add_domains, add_references, look
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.tests.support.domain_host import Host, up
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk


@pytest.fixture
def host(libvirtd: Libvirtd, tmp_path: pathlib.Path) -> Iterator[Host]:
    yield Host(libvirtd, tmp_path)
    libvirtd.clear()


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
                execution.execute = lambda *_arguments: os._exit(7)  # type: ignore[assignment]
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
        execution.execute = lambda *_arguments: os._exit(7)  # type: ignore[assignment]
        try:
            host.run(image, running="shutdown")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert not guest.domain.isActive()
    host.run(image)
    assert guest.domain.isActive() and "it runs again" in host.recovered[-1]["msg"]


def test_each_image_is_told_with_its_users(host: Host) -> None:
    shop, trap, run, free = (host.image(name + ".qcow") for name in ("shop", "trap", "run", "free"))
    Guest(host.daemon, "shop", [disk(shop, "qcow")])
    Guest(host.daemon, "trap", [disk(trap, "raw", "vdc")])
    up(host, "run", disk(run, "qcow"))
    images, summary, _errors, _searched = look(Question((os.fsencode(host.directory),)), Records(os.fsencode(host.directory / "state")))
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


@pytest.mark.parametrize("running", ["shutdown", "live"])
def test_what_uses_the_image_elsewhere_follows_while_its_domain_runs(host: Host, running: str) -> None:
    """The image is planned twice: what the first plan has seen of clones and links, the second knows."""
    one, root = host.image("one.qcow"), host.directory.parent
    clone, link = root / "vms" / "clone.qcow2", root / "etc" / "disk"
    for path in (clone, link):
        path.parent.mkdir()
    link.symlink_to(one)
    if running == "shutdown":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(one), "-F", "qcow", str(clone)], check=True)
        Guest(host.daemon, "clone", [disk(clone, "qcow2")])
    guest = up(host, "shop", disk(one, "qcow"))
    (result,) = host.run(one, running=running, reference_dirs=(os.fsencode(link.parent),))
    assert not result["failed"], result["msg"]
    assert [entry["path"] for entry in result["links"]] == [str(link)] and link.exists()
    assert guest.domain.isActive()
    if running == "shutdown":
        assert result["repointed"] == [str(clone)]
        subprocess.run(["qemu-img", "info", "-U", "--backing-chain", str(clone)], check=True, stdout=subprocess.DEVNULL)
