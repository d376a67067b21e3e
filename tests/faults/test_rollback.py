# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rollback: 20 mixed images there, back and there again; what refuses; what is kept."""

import os
import shutil
import subprocess
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.references import References
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import Scene, guest_bytes, sha256
from ansible_collections.vmimage.qcow.tests.support.moves import chain
from ansible_collections.vmimage.qcow.tests.support.require import require_tool


def migrate(scene: Scene, **options: Any) -> dict[str, Any]:
    state = os.fsencode(scene.state)
    request = Request(os.fsencode(scene.src), state_dir=state, **dict({"retire": True}, **options))
    result = batch.run([request], batch.Settings(state, reserve=0))[0]
    assert not result["failed"], result["msg"]
    return result


def roll_back(scene: Scene, *, discard: bool = False, check: bool = False) -> list[dict[str, Any]]:
    choice = Choice(os.fsencode(scene.state), paths=(os.fsencode(scene.images),), check_mode=check)
    return roll_back_all(choice, discard_changes=discard)


def facts(directory: str) -> dict[str, Any]:
    """Everything about the files of a tree that a rollback has to bring back. (ctime cannot be set by anybody.)"""
    found = {}
    for where, _directories, names in os.walk(directory):
        for name in names:
            path = os.path.join(where, name)
            status = os.lstat(path)
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            found[os.path.relpath(path, directory)] = (
                sha256(path),
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_size,
                status.st_blocks,
                status.st_mtime_ns,
                status.st_nlink,
                xattrs,
            )
    return found


def images_of_all_kinds(directory: str) -> list[str]:
    """20 images as a neglected host holds them: good and misleading names, plain and compressed, rights, attributes, directories."""
    made = []
    for number in range(20):
        name = ["disk%d.qcow", "disk%d.img", "disk%d", "disk%d.qcow2", "a name %d.QCOW", "ünïcode%d.qcow"][number % 6] % number
        place = os.path.join(directory, "dir%d" % (number % 3))
        os.makedirs(place, exist_ok=True)
        kind = Packed if number % 4 == 1 else Plain
        clusters = {index * (number + 1): kind((b"%06d" % (index + number) * 1000)[:4096]) for index in range(12)}
        path = os.path.join(place, name)
        build(ImageSpec(size=(1 << 20) + number * 512, clusters=clusters)).write(path, sparse=number % 2 == 0)
        os.chmod(path, [0o600, 0o640, 0o644][number % 3])
        if os.geteuid() == 0 and number % 5 == 0:
            os.chown(path, 12345, 54321)
        os.setxattr(path, "user.note", b"image %d" % number)
        if number % 3 == 0 and shutil.which("setfacl"):
            subprocess.run(["setfacl", "-m", "u:4711:r", path], check=True)
        os.utime(path, ns=(10**18 + number, 11 * 10**17 + number))
        made.append(path)
    return made


@pytest.mark.parametrize("how", [{}, {"keep_name": True}, {"format": "raw"}], ids=["other-name", "same-name", "raw"])
def test_drill(tmp_path: Any, tell: Callable[..., None], how: dict[str, Any]) -> None:
    images = str(tmp_path / "images")
    state = os.fsencode(str(tmp_path / "state"))
    paths = images_of_all_kinds(images)
    start = facts(images)
    disks = {path: guest_bytes(path) for path in paths}
    requests = [Request(os.fsencode(path), retire=True, state_dir=state, **how) for path in paths]
    choice = Choice(state, paths=(os.fsencode(images),))
    for turn in range(2):
        results = batch.run(requests, batch.Settings(state, workers=2, reserve=0))
        assert [result["msg"] for result in results if result["failed"] or not result["changed"]] == []
        for path, result in zip(paths, results):
            assert guest_bytes(result["dest"], "raw" if how.get("format") == "raw" else "") == disks[path]
        assert facts(images) != start
        if turn:
            break
        shown = roll_back_all(choice._replace(check_mode=True), discard_changes=False)
        assert sum(entry["changed"] for entry in shown) == 20
        back = roll_back_all(choice, discard_changes=False)
        assert [entry["msg"] for entry in back if entry["failed"]] == []
        assert sum(entry["changed"] for entry in back) == 20
        assert facts(images) == start
        assert not any(entry["changed"] for entry in roll_back_all(choice, discard_changes=False))
    tell("20 images migrated, rolled back to the same bytes and metadata, migrated again")


def disk(path: str, format_name: str, tmp_path: Any) -> str:
    """The digest of what a guest sees through a whole chain, as qemu-img reads it."""
    convert = [require_tool("qemu-img"), "convert", "-f", format_name, "-O", "raw", path, str(tmp_path / "disk")]
    subprocess.run(convert, check=True)
    return sha256(str(tmp_path / "disk"))


@pytest.mark.parametrize("how", [{}, {"keep_name": True}], ids=["other-name", "same-name"])
def test_drill_of_a_chain(tmp_path: Any, how: dict[str, Any]) -> None:
    """A base, a v1 overlay and a qcow2 overlay of it (its header is the same again, too), there, back, and there again."""
    images, choice = chain(tmp_path, Packed)
    state = choice.state_dir
    start = {name: fact for name, fact in facts(str(images)).items() if name != "foreign.img"}
    foreign = sha256(str(images / "foreign.img"))
    over, over_foreign = disk(str(images / "over.qcow"), "qcow", tmp_path), disk(str(images / "foreign.img"), "qcow2", tmp_path)
    requests = [Request(os.fsencode(str(images / name)), retire=True, state_dir=state, **how) for name in ("base.qcow", "over.qcow")]
    for turn in range(2):
        results = batch.run(requests, batch.Settings(state, reserve=0))
        assert [result["msg"] for result in results if result["failed"] or not result["changed"]] == []
        assert disk(results[1]["dest"], "qcow2", tmp_path) == over
        assert disk(str(images / "foreign.img"), "qcow2", tmp_path) == over_foreign
        if turn:
            break
        assert sum(entry["changed"] for entry in roll_back_all(choice._replace(check_mode=True), discard_changes=False)) == 2
        back = roll_back_all(choice, discard_changes=False)
        assert [entry["msg"] for entry in back if entry["failed"]] == []
        assert {name: fact for name, fact in facts(str(images)).items() if name != "foreign.img"} == start
        assert sha256(str(images / "foreign.img")) == foreign


def write_as_guest(path: str, format_name: str = "qcow2") -> None:
    require_tool("qemu-io")
    subprocess.run(["qemu-io", "-f", format_name, "-c", "write -P 7 0 4096", path], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("how", [{}, {"keep_name": True}, {"format": "raw"}], ids=["other-name", "same-name", "raw"])
def test_written_since(tmp_path: Any, how: dict[str, Any]) -> None:
    scene = Scene(str(tmp_path), **how)
    migrate(scene, **how)
    write_as_guest(scene.dest, how.get("format", "qcow2"))
    newer = sha256(scene.dest)
    before = facts(scene.images)
    answer = roll_back(scene)
    assert answer[0]["failed"] and answer[0]["reason"] == "changed" and "discard_changes" in answer[0]["msg"]
    assert facts(scene.images) == before
    assert roll_back(scene, discard=True, check=True)[0]["changed"]
    assert facts(scene.images) == before
    answer = roll_back(scene, discard=True)
    assert not answer[0]["failed"], answer
    kept = answer[0]["kept"]
    assert sha256(kept) == newer
    assert os.path.basename(kept).startswith(os.path.basename(scene.dest) + ".rolled-back.")
    assert scene.listing() == sorted([os.path.basename(scene.src), os.path.basename(kept)])
    with open(scene.src, "rb") as stream:
        assert stream.read() == scene.original
    os.unlink(kept)
    migrate(scene, **how)
    scene.assert_migrated()


def test_opened_but_not_written(tmp_path: Any) -> None:
    """A guest that has only read, or a new modification time without other bytes, is no change."""
    scene = Scene(str(tmp_path))
    migrate(scene)
    os.utime(scene.dest)
    assert not roll_back(scene)[0]["failed"]
    scene.assert_as_before()


def test_times_that_were_set_back(tmp_path: Any) -> None:
    """Same size, inode and modification time, but other bytes: the fingerprint tells."""
    scene = Scene(str(tmp_path))
    migrate(scene)
    status = os.stat(scene.dest)
    write_as_guest(scene.dest)
    os.utime(scene.dest, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(scene.dest).st_size == status.st_size
    assert roll_back(scene)[0]["reason"] == "changed"


def test_kept_original(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path), retire=False)
    migrate(scene, retire=False)
    assert roll_back(scene)[0]["changed"]
    scene.assert_as_before()


def test_adopted_result_stays(tmp_path: Any) -> None:
    """A result that was there before the record is not ours to delete."""
    scene = Scene(str(tmp_path))
    migrate(scene, retire=False)
    shutil.rmtree(scene.state)
    migrate(scene)
    assert Records(os.fsencode(scene.state)).unfinished() == []
    assert roll_back(scene)[0]["changed"]
    assert scene.listing() == ["disk.qcow", "disk.qcow2"]


def test_refusals(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    with open(scene.src, "w") as stream:
        stream.write("somebody's")
    assert roll_back(scene)[0]["reason"] == "exists"
    os.unlink(scene.src)
    os.rename(scene.retired, scene.retired + ".moved")
    assert roll_back(scene)[0]["reason"] == "missing"
    os.rename(scene.retired + ".moved", scene.retired)
    with open(scene.retired, "r+b") as stream:  # the first cluster's bytes
        stream.seek(scene.original.index(b"\1" * 4096))
        stream.write(b"changed")
    refused = roll_back(scene)[0]
    assert refused["reason"] == "changed" and "moved_files=accept" in refused["msg"]
    with open(scene.retired, "r+b") as stream:
        stream.write(scene.original)
    unknown = roll_back_all(Choice(os.fsencode(scene.state), records=("20000101T000000.000000Z-00000000",)), discard_changes=False)
    assert unknown[0]["failed"] and unknown[0]["reason"] == "missing"
    state = os.fsencode(scene.state)
    assert [entry["action"] for entry in clean_all(Choice(state), min_age=0)] == ["delete"]
    answer = roll_back(scene)
    assert answer[0]["reason"] == "cleaned" and "deleted by a cleanup" in answer[0]["msg"]
    assert scene.listing() == ["disk.qcow2"]


def test_facts_nobody_can_undo(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that says domains were re-pointed is not half undone by a host that cannot point them back."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration import session

    scene = Scene(str(tmp_path))
    migrate(scene)
    record = next(Records(os.fsencode(scene.state)).all())
    record.note("done", domains=[{"domain": "web01"}])
    with monkeypatch.context() as nobody:
        nobody.setattr(session, "References", lambda *_updaters: References())
        assert roll_back(scene)[0]["reason"] == "state"
    scene.assert_migrated()


def test_overlay_made_since(tmp_path: Any) -> None:
    """The guest got a snapshot after the migration: a rollback would take its base away."""
    scene = Scene(str(tmp_path))
    migrate(scene)
    overlay = os.path.join(scene.images, "snapshot.img")
    make = [require_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", os.path.basename(scene.dest), overlay]
    subprocess.run(make, check=True)
    before = facts(scene.images)
    for check in (True, False):
        for discard in (True, False):
            answer = roll_back(scene, check=check, discard=discard)
            assert answer[0]["failed"] and answer[0]["reason"] == "needed", answer
            assert overlay in answer[0]["msg"]
            assert facts(scene.images) == before
    os.unlink(overlay)
    assert roll_back(scene)[0]["changed"]
    scene.assert_as_before()


def base_and_overlay_migrated(tmp_path: Any) -> tuple[Any, bytes, dict[str, Any]]:
    """A chain of two after its migration: its directory, the state directory, and what the directory was like before."""
    images, state = tmp_path / "images", os.fsencode(str(tmp_path / "state"))
    images.mkdir()
    build(ImageSpec(size=1 << 20, clusters={1: Plain(b"base" * 1024)})).write(images / "base.qcow")
    build(ImageSpec(size=1 << 20, clusters={2: Plain(b"over" * 1024)}, backing=Backing(b"base.qcow"))).write(images / "over.qcow")
    start = facts(str(images))
    requests = [Request(os.fsencode(str(images / name)), retire=True, state_dir=state) for name in ("base.qcow", "over.qcow")]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(state, reserve=0)))
    return images, state, start


def test_base_of_a_kept_overlay_is_kept(tmp_path: Any) -> None:
    """What the guest wrote to an overlay is worth nothing without the base below it."""
    images, state, start = base_and_overlay_migrated(tmp_path)
    write_as_guest(str(images / "over.qcow2"))
    newer = disk(str(images / "over.qcow2"), "qcow2", tmp_path)
    choice = Choice(state, paths=(os.fsencode(str(images)),))
    shown = roll_back_all(choice._replace(check_mode=True), discard_changes=True)
    done = roll_back_all(choice, discard_changes=True)
    assert [entry["msg"] for entry in done if entry["failed"]] == []
    assert [entry["kept"] for entry in shown] == [entry["kept"] for entry in done]
    over, base = (entry["kept"] for entry in done)
    assert {name: fact for name, fact in facts(str(images)).items() if name in start} == start
    subprocess.run([require_tool("qemu-img"), "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, over], check=True)
    assert disk(over, "qcow2", tmp_path) == newer


def test_base_stays_where_its_overlay_could_not_be_rolled_back(tmp_path: Any) -> None:
    """The overlay still rests on the migrated base: without it the guest would not boot."""
    images, state, start = base_and_overlay_migrated(tmp_path)
    migrated = disk(str(images / "over.qcow2"), "qcow2", tmp_path)
    retired = next(record for record in Records(state).all() if record.path_of("src").endswith(b"over.qcow")).path_of("retired")
    choice = Choice(state, paths=(os.fsencode(str(images)),))
    subprocess.run([require_tool("chattr"), "+i", os.fsdecode(retired)], check=True)
    try:
        over, base = roll_back_all(choice, discard_changes=False)
    finally:
        subprocess.run(["chattr", "-i", os.fsdecode(retired)], check=True)
    assert over["failed"] and (base["failed"], base["reason"]) == (True, "needed"), (over, base)
    assert disk(str(images / "over.qcow2"), "qcow2", tmp_path) == migrated
    assert [entry["msg"] for entry in roll_back_all(choice, discard_changes=False) if entry["failed"]] == []
    assert facts(str(images)) == start
