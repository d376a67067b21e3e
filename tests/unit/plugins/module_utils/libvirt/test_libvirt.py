# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Against a real libvirtd, QEMU and guests that boot (software emulation): who uses an image, and moving what uses it."""

import hashlib
import os
import pathlib
import random
import subprocess
import sys
from typing import Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ImageInUse, QcowError, ToolFailed, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt import api, control, redefine
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt.redefine import Move
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt.survey import survey, survey_connection
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk

SIZE = 32 << 20
RICH = """<graphics type='vnc' port='-1' passwd='s3cret'/><memballoon model='none'/>"""


@pytest.fixture
def connection(daemon: Libvirtd) -> Iterator[api.Connection]:
    connection = api.connect(daemon.uri, readonly=False)
    yield connection
    api.close(connection)


def plain(path: pathlib.Path, seed: int = 1) -> pathlib.Path:
    """A raw disk with some data, and holes."""
    chance = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for _index in range(20):
            file.seek(chance.randrange(0, SIZE // 4) // 4096 * 4096)
            file.write(chance.randbytes(32768))
    return path


def convert(source: pathlib.Path, source_format: str, dest: pathlib.Path, dest_format: str) -> pathlib.Path:
    subprocess.run(["qemu-img", "convert", "-f", source_format, "-O", dest_format, str(source), str(dest)], check=True)
    return dest


def sha(path: pathlib.Path, image_format: str) -> str:
    raw = convert(path, image_format, path.with_name(path.name + ".tmp-raw"), "raw")
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.unlink()
    return digest


def name_of(path: pathlib.Path) -> bytes:
    return os.fsencode(str(path))


def test_every_user_of_an_image(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    os.link(str(image), str(tmp_path / "hard.img"))
    (tmp_path / "soft.img").symlink_to(image)
    daemon.pool("images", tmp_path)
    volume = "<disk type='volume'><driver name='qemu' type='qcow'/><source pool='images' volume='a.qcow'/><target dev='vda' bus='virtio'/></disk>"
    Guest(daemon, "by-file", [disk(image, "qcow")])
    Guest(daemon, "by-volume", [volume])
    Guest(daemon, "by-hard-link", [disk(tmp_path / "hard.img", "qcow")])
    Guest(daemon, "by-soft-link", [disk(tmp_path / "soft.img", "qcow", "vdb")])
    Guest(daemon, "declared-raw", [disk(image, "raw")])
    Guest(daemon, "other", [disk(tmp_path / "plain", "raw")])
    answer = survey(daemon.uri)
    assert (answer.source, answer.complete) == ("libvirt", True)
    uses = {use.domain: use for use in answer.users_of(name_of(image))}
    assert sorted(uses) == ["by-file", "by-hard-link", "by-soft-link", "by-volume", "declared-raw"]
    assert uses["by-volume"][2:] == ("disk", "vda", "qcow", "shut off", "definition", 0, name_of(image), "images", "a.qcow", None)
    assert uses["by-soft-link"].target == "vdb"
    assert uses["declared-raw"].declared_format == "raw"
    pool = api.pool_for(answer.pools, name_of(image))
    assert pool is not None and pool.name == "images"
    assert answer.users_of(name_of(tmp_path / "nobody")) == []


def test_snapshots_saved_states_and_arguments_are_obstacles(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "snapped", [disk(image, "qcow")])
    flags = daemon.library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    guest.domain.snapshotCreateXML("<domainsnapshot><name>monday</name></domainsnapshot>", flags)
    answer = survey_connection(connection)
    uses = answer.users_of(name_of(image))
    assert [use.where for use in uses] == ["snapshot:monday"]
    (text,) = redefine.obstacles(answer, uses)
    assert text.startswith("Snapshot monday of domain snapped remembers") and "virsh snapshot-delete snapped monday" in text
    daemon.clear()

    guest = Guest(daemon, "arguing", [disk(tmp_path / "plain", "raw")])
    namespace = "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    argument = "<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=%s,if=none'/></qemu:commandline></domain>" % image
    daemon.connection.defineXML(guest.xml().replace("<domain type='qemu'>", namespace).replace("</domain>", argument))
    answer = survey_connection(connection)
    (text,) = redefine.obstacles(answer, answer.users_of(name_of(image)))
    assert text.startswith("Domain arguing names %s outside its disks" % image)


def test_repoint_changes_the_disk_alone_and_comes_back(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    raw = plain(tmp_path / "plain")
    image = convert(raw, "raw", tmp_path / "a.qcow", "qcow")
    new = convert(image, "qcow", tmp_path / "a.qcow2", "qcow2")
    guest = Guest(daemon, "shop", [disk(image, "qcow"), disk(raw, "raw", "vdb")], more=RICH)
    before = guest.xml()
    seen = guest.boot()
    assert seen["vda"] == hashlib.sha256(raw.read_bytes()).hexdigest()

    moves = [Move(name_of(image), name_of(new), "qcow2")]
    (planned,) = redefine.plan(connection, survey_connection(connection), moves)
    assert planned.changed and guest.xml() == before  # a plan changes nothing
    assert redefine.apply(connection, planned)
    after = guest.xml()
    assert after == before.replace("type='qcow'", "type='qcow2'").replace("a.qcow'", "a.qcow2'")
    assert "s3cret" in after and "s3cret" not in str(planned.diff())
    assert planned.diff()["before"] == "domain shop, vda: %s (qcow)\n" % image
    assert planned.diff()["after"] == "domain shop, vda: %s (qcow2)\n" % new
    assert guest.boot() == seen

    (again,) = redefine.plan(connection, survey_connection(connection), moves)
    assert not again.changed and not redefine.apply(connection, again)

    assert redefine.restore(connection, before)
    assert guest.xml() == before
    assert not redefine.restore(connection, before)
    assert guest.boot() == seen
    guest.domain.undefine()
    assert redefine.restore(connection, before)  # also when somebody has undefined it
    assert guest.xml() == before


def test_a_volume_stays_a_volume_and_its_pool_looks_again(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    pool = daemon.pool("images", tmp_path)
    (tmp_path / "asleep").mkdir()
    daemon.pool("asleep", tmp_path / "asleep", active=False)
    volume = "<disk type='volume'><driver name='qemu' type='qcow'/><source pool='images' volume='a.qcow'/><target dev='vda' bus='virtio'/></disk>"
    guest = Guest(daemon, "shop", [volume])
    seen = guest.boot()
    new = convert(image, "qcow", tmp_path / "a.qcow2", "qcow2")
    image.unlink()
    assert "a.qcow2" not in pool.listVolumes()
    refreshed = api.refresh_pools(connection, [name_of(new), name_of(tmp_path / "asleep" / "x")])
    assert [(result.name, result.refreshed, result.reason) for result in refreshed] == [
        ("asleep", False, "inactive"),
        ("images", True, None),
    ]
    assert "a.qcow2" in pool.listVolumes() and "a.qcow" not in pool.listVolumes()
    (planned,) = redefine.plan(connection, survey_connection(connection), [Move(name_of(image), name_of(new), "qcow2")])
    assert redefine.apply(connection, planned)
    assert "<source pool='images' volume='a.qcow2'/>" in guest.xml() and "type='qcow2'" in guest.xml()
    assert guest.boot() == seen


def test_a_running_domain_is_not_moved_under_its_feet(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "busy", [disk(image, "qcow")], cmdline="guest=idle")
    before = guest.xml()
    assert control.start(connection, guest.domain.UUIDString())
    guest.wait("GUEST-UP")
    uses = survey_connection(connection).users_of(name_of(image))
    assert [(use.where, use.state) for use in uses] == [("definition", "running"), ("live", "running")]
    (planned,) = redefine.plan(connection, survey_connection(connection), [Move(name_of(image), name_of(tmp_path / "a.qcow2"), "qcow2")])
    with pytest.raises(ImageInUse, match="busy is running"):
        redefine.apply(connection, planned)
    assert guest.xml() == before
    assert control.shutdown(connection, guest.domain.UUIDString(), 60)
    assert guest.lines("GUEST-BUTTON") and not guest.domain.isActive()
    assert not control.shutdown(connection, guest.domain.UUIDString(), 60)


def test_a_deaf_guest_is_left_running(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "deaf", [disk(image, "qcow")], cmdline="guest=idle guest.deaf")
    control.start(connection, guest.domain.UUIDString())
    guest.wait("GUEST-UP")
    with pytest.raises(ImageInUse, match="did not shut down within 2 seconds") as caught:
        control.shutdown(connection, guest.domain.UUIDString(), 2)
    assert caught.value.reason == "shutdown-timeout" and guest.domain.isActive()


def test_a_failed_start_goes_back(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    bad = tmp_path / "a.qcow2"
    bad.write_bytes(b"no image at all" * 1000)
    guest = Guest(daemon, "unlucky", [disk(image, "qcow")])
    (planned,) = redefine.plan(connection, survey_connection(connection), [Move(name_of(image), name_of(bad), "qcow2")])
    redefine.apply(connection, planned)
    with pytest.raises(ToolFailed, match="Domain unlucky does not start"):
        control.start(connection, planned.uuid)
    redefine.restore(connection, planned.before)
    assert guest.xml() == planned.before
    assert control.start(connection, planned.uuid)
    guest.wait_off()


def test_what_libvirt_does_not_take_is_undone(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "shop", [disk(image, "qcow")])
    (planned,) = redefine.plan(connection, survey_connection(connection), [Move(name_of(image), name_of(tmp_path / "b"), "qcow2")])
    # libvirt drops elements that it does not know: a definition it does not keep as given.
    with pytest.raises(QcowError) as caught:
        redefine.apply(connection, planned._replace(after=planned.after.replace("<devices>", "<devices><unheard-of/>")))
    assert caught.value.reason == "verification-failed" and guest.xml() == planned.before
    guest.domain.setMaxMemory(262144)
    with pytest.raises(QcowError, match="changed by another program"):
        redefine.apply(connection, planned)


def test_transient_domains_have_nothing_to_change(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "passing", [disk(image, "qcow")], cmdline="guest=idle")
    text = guest.xml()
    guest.domain.undefine()
    daemon.connection.createXML(text)
    answer = survey_connection(connection)
    (text,) = redefine.obstacles(answer, answer.users_of(name_of(image)))
    assert text.startswith("Domain passing is transient")


def blocks(raw: pathlib.Path) -> int:
    """How many numbered blocks the guest has on its disk, without a gap."""
    count = 0
    with open(raw, "rb") as file:
        file.seek(16 << 20)
        while file.read(15) == b"BLOCK %08d\n" % (count + 1):
            count += 1
            file.seek(4081, os.SEEK_CUR)
    return count


def test_a_writing_guest_is_moved_live(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    raw = plain(tmp_path / "plain")
    image = convert(raw, "raw", tmp_path / "a.qcow", "qcow")
    new, overlay = tmp_path / "a.qcow2", tmp_path / ".overlay"
    guest = Guest(daemon, "writer", [disk(image, "qcow"), disk(raw, "raw", "vdb")], cmdline="guest=write", more=RICH)
    before, uuid = guest.xml(), guest.domain.UUIDString()
    control.start(connection, uuid)
    guest.wait("GUEST-WROTE", 20)
    moves = [Move(name_of(image), name_of(new), "qcow2")]
    (planned,) = redefine.plan(connection, survey_connection(connection), moves)
    control.capable(connection, uuid, ["vda"], "qcow2")
    with pytest.raises(UnsupportedImage, match="qcow2 only"):
        control.capable(connection, uuid, ["vda"], "raw")

    frozen = control.take_snapshot(connection, uuid, {"vda": name_of(overlay)})
    frozen_bytes = image.read_bytes()
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 20)
    assert image.read_bytes() == frozen_bytes
    convert(image, "qcow", new, "qcow2")
    seen = []
    control.pivot(connection, frozen, {"vda": name_of(new)}, bandwidth=64 << 20, progress=lambda done, end: seen.append((done, end)))
    now = api.definition(connection, guest.domain)
    redefine.agree(connection, planned, control.definition_after(frozen, now))
    assert guest.xml() == planned.after == before.replace("type='qcow'", "type='qcow2'").replace("a.qcow'", "a.qcow2'")
    assert not overlay.exists() and seen
    os.rename(str(image), str(image) + ".qcow1.orig")
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 20)
    guest.domain.destroy()

    wrote = [(int(words[1]), float(words[2])) for words in guest.lines("GUEST-WROTE")]
    assert [number for number, unused in wrote] == list(range(1, len(wrote) + 1))
    assert blocks(convert(new, "qcow2", tmp_path / "check", "raw")) in (
        len(wrote),
        len(wrote) + 1,
    )  # one may be on the disk and not yet told
    stop = max(later[1] - sooner[1] for sooner, later in zip(wrote, wrote[1:]))
    print("longest pause of the guest: %.2f s" % stop, file=sys.stderr)
    # A second or less where the machine has nothing else to do; in any case no lease (45 s) was waited for.
    assert stop < 15
    assert os.stat(str(new)).st_blocks * 512 < SIZE // 4
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(new)], check=True)
    guest.domain.create()  # it goes on from where it was
    resumed = guest.wait("GUEST-RESUMED", 2)[1]
    assert int(resumed[1]) in (len(wrote), len(wrote) + 1)


def test_a_live_move_can_be_called_off(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "writer", [disk(image, "qcow")], cmdline="guest=write")
    before, uuid = guest.xml(), guest.domain.UUIDString()
    control.start(connection, uuid)
    guest.wait("GUEST-WROTE", 5)
    frozen = control.take_snapshot(connection, uuid, {"vda": name_of(tmp_path / ".overlay")})
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 10)
    new = convert(image, "qcow", tmp_path / "a.qcow2", "qcow2")

    def interrupted(done: int, end: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control.pivot(connection, frozen, {"vda": name_of(new)}, progress=interrupted)
    assert not guest.domain.blockJobInfo("vda")
    control.commit_back(connection, frozen)
    assert not (tmp_path / ".overlay").exists()
    redefine.restore(connection, before, running=True)
    assert guest.xml() == before
    guest.wait("GUEST-WROTE", len(guest.lines("GUEST-WROTE")) + 10)
    guest.domain.destroy()
    assert blocks(convert(image, "qcow", tmp_path / "check", "raw")) in (
        len(guest.lines("GUEST-WROTE")),
        len(guest.lines("GUEST-WROTE")) + 1,
    )


def test_without_libvirt_the_files_speak(daemon: Libvirtd, connection: api.Connection, tmp_path: pathlib.Path) -> None:
    nothing = survey("qemu+unix:///system?socket=%s/none" % tmp_path, root=str(tmp_path))
    assert (nothing.source, nothing.complete, nothing.users_of(b"/vm/a")) == ("none", True, [])
    image = convert(plain(tmp_path / "plain"), "raw", tmp_path / "a.qcow", "qcow")
    guest = Guest(daemon, "shop", [disk(image, "qcow")])
    for name in ("etc/libvirt", "run/libvirt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/libvirt/qemu").symlink_to(daemon.scratch / "etc" / "qemu")
    (tmp_path / "run/libvirt/qemu").symlink_to(daemon.scratch / "run" / "qemu")
    answer = survey("qemu+unix:///system?socket=%s/none" % tmp_path, root=str(tmp_path))
    assert (answer.source, answer.complete) == ("files", False) and "does not answer" in str(answer.reason)
    assert [(use.domain, use.target, use.declared_format, use.uuid) for use in answer.users_of(name_of(image))] == [
        ("shop", "vda", "qcow", guest.domain.UUIDString())
    ]
