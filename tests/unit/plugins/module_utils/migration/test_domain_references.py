# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Domains follow a migration and its rollback, and a job moves all of them or none: real libvirtd, QEMU and guests."""

import os
import pathlib
import random
import stat
import subprocess
import time

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import (
    ImageChanged,
    ImageInUse,
    QcowError,
    ToolFailed,
    ToolMissing,
    UnsafeImage,
)
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt import xml_text
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt.survey import survey
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import domain_references
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_move import Job, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import Domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Record, Records, State, named
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

SECRET = "<graphics type='vnc' port='-1' passwd='s3cret'/>"


def image(directory: pathlib.Path) -> pathlib.Path:
    """A v1 image of 32 MiB with some data."""
    raw = directory / "plain"
    chance = random.Random(7)
    with open(raw, "wb") as file:
        file.truncate(32 << 20)
        for _index in range(10):
            file.seek(chance.randrange(0, 8 << 20) // 4096 * 4096)
            file.write(chance.randbytes(16384))
    subprocess.run([require_tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow", str(raw), str(directory / "a.qcow")], check=True)
    return directory / "a.qcow"


def convert(src: pathlib.Path) -> pathlib.Path:
    dest = src.with_name("a.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "qcow", "-O", "qcow2", str(src), str(dest)], check=True)
    return dest


def job(daemon: Libvirtd, src: pathlib.Path, **more: object) -> Job:
    return Job(
        os.fsencode(str(src)), os.fsencode(str(src.with_name("a.qcow2"))), "qcow2", os.fsencode(str(src.parent / "state")), daemon.uri
    )._replace(**more)


def begun(src: pathlib.Path, dest: pathlib.Path) -> Record:
    """A record as it is when the result has just been published."""
    record = Records(os.fsencode(str(src.parent / "state"))).begin(
        named(os.fsencode(str(src))), named(os.fsencode(str(dest))), format="qcow2"
    )
    record.note(State.PUBLISHED)
    return record


def test_a_keeper_points_there_and_back(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow"), disk(tmp_path / "plain", "raw", "vdb")], more=SECRET)
    before = guest.xml()
    keeper = Domains(daemon.uri)
    assert [(use["domain"], use["target"], use["state"]) for use in keeper.users(os.fsencode(str(src)))] == [("shop", "vda", "shut off")]
    assert keeper.against(os.fsencode(str(src))) == []
    record = begun(src, convert(src))
    keeper.repoint(record)
    after = guest.xml()
    assert after == before.replace("type='qcow'", "type='qcow2'").replace("a.qcow'", "a.qcow2'")
    (journal,) = (tmp_path / "state" / "records").iterdir()
    assert "s3cret" not in journal.read_text() and "a.qcow" in journal.read_text()
    keeper.repoint(record)  # as the next run does after a crash
    assert guest.xml() == after and len(record.facts["domains"]) == 1

    pool = daemon.pool("images", tmp_path)
    src.rename(tmp_path / "a.qcow.qcow1.orig")
    assert [result.refreshed for result in keeper.refresh_pools([os.fsencode(str(src))])] == [True]
    assert "a.qcow" not in pool.listVolumes() and "a.qcow2" in pool.listVolumes()

    daemon.connection.lookupByName("shop").setMaxMemory(262144)
    grown = guest.xml()
    assert keeper.obstacles(record) == []
    keeper.restore(record)
    assert guest.xml() == grown.replace("type='qcow2'", "type='qcow'").replace("a.qcow2'", "a.qcow'")
    keeper.restore(record)
    guest.domain.undefine()
    keeper.restore(record)  # nothing is there to be pointed back


def test_records_of_one_chain_are_undone_in_any_order(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    base = image(tmp_path)
    top = tmp_path / "top.qcow"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", "-b", str(base), "-F", "qcow", str(top)], check=True)
    below = "<backingStore type='file'><format type='qcow'/><source file='%s'/><backingStore/></backingStore><target" % base
    guest = Guest(daemon, "chained", [disk(top, "qcow").replace("<target", below)])
    before = guest.xml()
    for order in ([0, 1], [1, 0]):
        records = [begun(base, base.with_name("a.qcow2")), begun(top, top.with_name("top.qcow2"))]
        for record in records:
            Domains(daemon.uri).repoint(record)
        assert guest.xml() == before.replace("a.qcow'", "a.qcow2'").replace("top.qcow'", "top.qcow2'").replace(
            "type='qcow'", "type='qcow2'"
        )
        for number in order:
            Domains(daemon.uri).restore(records[number])
        assert guest.xml() == before


def test_a_keeper_stops_before_a_running_domain(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], cmdline="guest=idle")
    before = guest.xml()
    record = begun(src, convert(src))
    keeper = Domains(daemon.uri)
    guest.domain.create()
    with pytest.raises(ImageInUse, match="Domain shop is running"):
        keeper.repoint(record)
    assert guest.xml() == before
    assert keeper.obstacles(record) == ["domain shop is running: shut it down first"]


def test_hosts_without_libvirt_have_nothing_to_point(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = image(tmp_path)
    monkeypatch.setattr(domain_references, "ask", lambda uri: survey(uri, root=str(tmp_path)))  # whatever this machine has
    keeper = Domains("qemu+unix:///system?socket=%s/none" % tmp_path)
    keeper.repoint(begun(src, convert(src)))
    assert keeper.users(os.fsencode(str(src))) == [] and keeper.against(os.fsencode(str(src))) == []

    (tmp_path / "etc/libvirt/qemu").mkdir(parents=True)
    definition = "<domain><name>shop</name><uuid>u</uuid><devices>%s</devices></domain>" % disk(src, "qcow")
    (tmp_path / "etc/libvirt/qemu/shop.xml").write_text("<!-- WARNING: AUTO-GENERATED -->\n" + definition)
    keeper = Domains("qemu+unix:///system?socket=%s/none" % tmp_path)
    assert "Domain shop uses the image and could not be pointed" in keeper.against(os.fsencode(str(src)))[0]
    with pytest.raises(ToolMissing, match="domain shop uses the image"):
        keeper.repoint(begun(src, src.with_name("a.qcow2")))


def test_declared_raw_is_never_followed(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    convert(src)
    Guest(daemon, "trap", [disk(src, "raw")])
    assert "Domain trap declares" in Domains(daemon.uri).against(os.fsencode(str(src)))[0]
    with pytest.raises(UnsafeImage, match="declares .* as raw"):
        run(job(daemon, src), check_mode=True)


def test_a_job_changes_once(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], more=SECRET)
    before = guest.xml()
    with pytest.raises(QcowError, match="Convert the image first"):
        run(job(daemon, src), check_mode=False)
    dest = convert(src)
    daemon.pool("images", tmp_path)
    predicted = run(job(daemon, src), check_mode=True)
    assert predicted.changed and guest.xml() == before and not (tmp_path / "state").exists()
    done = run(job(daemon, src), check_mode=False)
    assert done.changed and done.diffs == predicted.diffs and "s3cret" not in str(done)
    assert done.pools == [{"name": "images", "path": str(tmp_path), "refreshed": True, "reason": None}]
    saved = pathlib.Path(done.domains[0]["saved"])
    assert saved.read_text() == before and stat.S_IMODE(saved.stat().st_mode) == 0o600
    again = run(job(daemon, src), check_mode=False)
    assert not again.changed and not again.diffs
    assert guest.boot()["vda"]
    assert dest.exists() and src.exists()


def test_a_result_that_is_wrong_or_stale_is_refused(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")])
    before = guest.xml()
    dest = convert(src)
    time.sleep(0.05)  # more than a tick of the clock that files are stamped by
    os.utime(str(src))
    with pytest.raises(ImageChanged, match="was written after"):
        run(job(daemon, src), check_mode=False)
    dest.write_bytes(src.read_bytes())
    with pytest.raises(UnsafeImage, match="qcow by its content, not qcow2"):
        run(job(daemon, src), check_mode=False)
    with pytest.raises(QcowError, match="There is no domain shoop"):
        run(job(daemon, src, domains=["shoop"]), check_mode=False)
    assert guest.xml() == before


def test_a_domain_is_shut_down_and_comes_back(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], cmdline="guest=idle")
    guest.domain.create()
    guest.wait("GUEST-UP")
    dest = src.with_name("a.qcow2")
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow", "-O", "qcow2", str(src), str(dest)], check=True)  # it writes nothing
    with pytest.raises(ImageInUse, match="Domain shop is running"):
        run(job(daemon, src), check_mode=False)
    done = run(job(daemon, src, running="shutdown", shutdown_timeout=60), check_mode=False)
    assert done.domains[0]["started"] and guest.domain.isActive() and "a.qcow2" in guest.domain.XMLDesc()


def test_a_domain_that_does_not_start_is_put_back_and_runs(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], cmdline="guest=idle")
    before = guest.xml()
    guest.domain.create()
    guest.wait("GUEST-UP")
    dest = src.with_name("a.qcow2")
    dest.write_bytes(b"QFI\xfb\x00\x00\x00\x03" + b"\xff" * 4096)  # a qcow2 by its magic and nothing else
    with pytest.raises(ToolFailed, match="Domain shop does not start") as caught:
        run(job(daemon, src, running="shutdown", shutdown_timeout=60), check_mode=False)
    assert str(caught.value).endswith("Every domain is as it was before.")
    assert guest.xml() == before and guest.domain.isActive() and "a.qcow'" in guest.domain.XMLDesc()


def test_a_running_domain_is_moved_live(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], cmdline="guest=write", more=SECRET)
    before = guest.xml()
    guest.domain.create()
    guest.wait("GUEST-WROTE", 10)
    assert run(job(daemon, src, running="live"), check_mode=True).domains[0]["method"] == "live"
    done = run(job(daemon, src, running="live"), check_mode=False)
    assert done.converted is not None and done.converted.verified
    assert guest.xml() == before.replace("type='qcow'", "type='qcow2'").replace("a.qcow'", "a.qcow2'")
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 10)
    live = guest.domain.XMLDesc()
    assert "a.qcow2'" in live and ".overlay" not in live and not list(tmp_path.glob(".vmimage*"))
    assert not run(job(daemon, src, running="live"), check_mode=False).changed
    dest = src.with_name("a.qcow2")
    assert dest.stat().st_blocks * 512 < 8 << 20


def test_a_live_move_that_fails_leaves_the_domain_where_it_was(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    src = image(tmp_path)
    guest = Guest(daemon, "shop", [disk(src, "qcow")], cmdline="guest=write")
    before = guest.xml()
    with open(src, "r+b") as file:  # an entry of the L1 table that points behind the end of the file, where the guest does not look
        file.seek(48 + 8 * 2)
        file.write((1 << 40).to_bytes(8, "big"))
    guest.domain.create()
    guest.wait("GUEST-WROTE", 5)
    with pytest.raises(QcowError, match="cannot be converted") as caught:
        run(job(daemon, src, running="live"), check_mode=False)
    assert str(caught.value).endswith("Every domain is as it was before.")
    assert guest.xml() == before
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 10)
    assert xml_text.canonical(guest.domain.XMLDesc()).count("a.qcow'") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.qcow", "plain", "state"]
