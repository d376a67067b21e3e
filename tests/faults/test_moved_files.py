# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same files with other inode numbers, or other times: after a copy to another disk, or another mount of a filesystem that has none of its own."""

import contextlib
import os
import re
import shutil
import subprocess
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, moved_files
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Point, Scene, Server, points, sha256
from ansible_collections.vmimage.qcow.tests.support.filesystems import FatByFuse, mounted
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MODES: dict[str, dict[str, Any]] = {"other-name": {}, "same-name": {"keep_name": True}, "raw-kept": {"format": "raw", "retire": False}}
HOW = ("auto", "compare", "accept")


def migrate(scene: Scene, how: str = "auto", *, check: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state, recovered = os.fsencode(scene.state), []  # type: bytes, list[dict[str, Any]]
    request = Request(os.fsencode(scene.src), state_dir=state, **scene.options)
    return batch.run([request], batch.Settings(state, reserve=0, check_mode=check, moved_files=how), recovered)[0], recovered


def choice_of(scene: Scene, how: str = "auto", *, check: bool = False) -> Choice:
    return Choice(os.fsencode(scene.state), paths=(os.fsencode(scene.images),), check_mode=check, moved_files=how)


def roll_back(scene: Scene, how: str = "auto", *, check: bool = False, discard: bool = False) -> dict[str, Any]:
    return roll_back_all(choice_of(scene, how, check=check), discard_changes=discard)[0]


def clean(scene: Scene, how: str = "auto", *, check: bool = False) -> dict[str, Any]:
    return clean_all(choice_of(scene, how, check=check), min_age=0)[0]


def inodes(directory: str) -> dict[str, int]:
    return {name: os.stat(os.path.join(directory, name)).st_ino for name in os.listdir(directory)}


def copied(directory: str) -> None:
    """``cp -a`` to another place, which gets the name of the old one: no file has the inode number of any before."""
    before = inodes(directory)
    subprocess.run(["cp", "-a", directory, directory + ".copy"], check=True)
    os.rename(directory, directory + ".old")
    os.rename(directory + ".copy", directory)
    shutil.rmtree(directory + ".old")
    assert not set(before.values()) & set(inodes(directory).values())


def renumbered(directory: str) -> None:
    """The same, but each file has the number of another one: what FAT does."""
    names: dict[int, list[str]] = {}
    for name, inode in sorted(inodes(directory).items()):
        names.setdefault(inode, []).append(os.path.join(directory, name))
    spare = os.path.join(directory, ".spare")
    with open(spare, "w"):
        names[os.stat(spare).st_ino] = []
    os.mkdir(directory + ".aside")
    for inode, paths in names.items():
        place = os.path.join(directory + ".aside", str(inode))
        os.rename(paths[0] if paths else spare, place)
        subprocess.run(["cp", "-a", place, place + ".content"], check=True)
        for path in paths[1:]:
            os.unlink(path)
    for inode, other in zip(names, [*names][1:] + [*names][:1]):
        place = os.path.join(directory + ".aside", str(other))
        if names[inode]:
            content = os.path.join(directory + ".aside", "%d.content" % inode)
            shutil.copyfile(content, place)
            shutil.copystat(content, place)
            os.rename(place, names[inode][0])
            for path in names[inode][1:]:
                os.link(names[inode][0], path)
    shutil.rmtree(directory + ".aside")


MOVES = {"copied": copied, "renumbered": renumbered}


@pytest.fixture(params=sorted(MOVES))
def move(request: pytest.FixtureRequest) -> Callable[[str], None]:
    return MOVES[request.param]


def contents(scene: Scene) -> dict[str, str]:
    return {name: sha256(os.path.join(scene.images, name)) for name in scene.listing()}


def refused(act: Callable[..., dict[str, Any]], scene: Scene, how: str, says: str, reason: str = "moved") -> None:
    """Refused, by a check as by a run, without a change, and with a way out."""
    before, numbers = contents(scene), inodes(scene.images)
    for check in (True, False):
        answer = act(scene, how, check=check)
        assert answer["failed"] and answer["reason"] == reason and says in answer["msg"], answer
        assert (contents(scene), inodes(scene.images)) == (before, numbers)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_rollback_after_a_move(tmp_path: Any, mode: str, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path), **MODES[mode])
    assert migrate(scene)[0]["changed"]
    move(scene.images)
    scene.assert_migrated()
    assert not migrate(scene, check=True)[0]["changed"]
    assert not migrate(scene)[0]["changed"]  # nor does it take anything for something else
    if not scene.options["retire"]:  # then it was settled just now
        move(scene.images)
    shown, done = roll_back(scene, check=True), roll_back(scene)
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert "the original is recognized by its content: its inode number is another" in done["reasons"]
    scene.assert_as_before()
    assert not roll_back(scene)["changed"]


def test_cleanup_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    move(scene.images)
    shown, done = clean(scene, check=True), clean(scene)
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert "the original is recognized by its content: its inode number is another" in done["reasons"]
    assert scene.listing() == [os.path.basename(scene.dest)]
    assert not clean(scene)["changed"]


def test_kept_original_is_retired_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    """Its result may be in use by then: only the original is what it was."""
    scene = Scene(str(tmp_path), retire=False)
    migrate(scene)
    subprocess.run([require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 0 4096", scene.dest], check=True)
    move(scene.images)
    scene.options["retire"] = True
    result = migrate(scene)[0]
    assert result["changed"] and result["action"] == "retire" and "the original is recognized" in " ".join(result["reasons"]), result
    assert scene.listing() == sorted(map(os.path.basename, (scene.dest, scene.retired)))
    move(scene.images)
    assert roll_back(scene)["changed"]
    assert scene.listing() == sorted(map(os.path.basename, (scene.dest, scene.src)))


def test_another_filesystem_in_the_old_place(tmp_path: Any) -> None:
    """A larger disk: copied to it, and mounted over the old directory."""
    for act, left in ((roll_back, ["disk.qcow"]), (clean, ["disk.qcow2"])):
        scene = Scene(str(tmp_path))
        migrate(scene)
        folder = tmp_path / act.__name__
        folder.mkdir()
        with mounted("ext4", str(folder)) as disk:
            subprocess.run(["cp", "-a", scene.images, disk], check=True)
            subprocess.run(["mount", "--bind", os.path.join(disk, "images"), scene.images], check=True)
            try:
                done = act(scene)
                assert done["changed"], done
                assert scene.listing() == left
                assert not act(scene)["changed"]
            finally:
                subprocess.run(["umount", scene.images], check=True)


def at_steps(found: list[Point]) -> list[Point]:
    """The calls that begin another state of the record or of the names."""
    return [point for point in found if re.match("rename|link|unlink", point.call) or (point.call == "write" and ".jsonl" in point.text)]


def killed_and_moved(
    server: Server, tmp_path: Any, prepare: Callable[[], tuple[Scene, dict[str, Any]]], moved: Callable[[str], None]
) -> Iterator[Scene]:
    """The scene after a kill at each step, moved."""
    _scene, job = prepare()
    for point in at_steps(points(server.trace(str(tmp_path / "log"), CHANGING, job.pop("job"), **job), CHANGING)):
        scene, job = prepare()
        if server.killed_at(point, job.pop("job"), **job):
            moved(scene.images)
            try:
                yield scene
            except AssertionError as error:
                raise AssertionError("after %s: %s\nstates %s, files %s" % (point, error, scene.states(), scene.listing())) from error


@pytest.mark.parametrize("mode", sorted(MODES))
def test_migration_killed_and_moved(
    server: Server, tmp_path: Any, tell: Callable[..., None], mode: str, move: Callable[[str], None]
) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), **MODES[mode])
        return scene, scene.job

    count, states = 0, set()
    for scene in killed_and_moved(server, tmp_path, prepare, move):
        count += 1
        states.update(scene.states())
        _result, shown = migrate(scene, check=True)
        result, recovered = migrate(scene)
        assert not result["failed"] and [entry["msg"] for entry in shown + recovered if entry["failed"]] == [], (result, recovered)
        assert [entry["record"] for entry in shown] == [entry["record"] for entry in recovered]
        scene.assert_migrated()
        assert not migrate(scene)[0]["changed"]
        scene.assert_migrated()
    tell("migration, %s, %s: killed and moved %d times, in the states %s" % (mode, move.__name__, count, ", ".join(sorted(states))))
    assert {"planned", "copying", "verified", "published", "repointed"} <= states


def test_retirement_killed_and_moved(server: Server, tmp_path: Any, move: Callable[[str], None]) -> None:
    """Of an original that was kept at first: the fingerprint is in its earlier record."""

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), retire=False)
        migrate(scene)
        scene.options["retire"] = True
        return scene, scene.job

    count = 0
    for scene in killed_and_moved(server, tmp_path, prepare, move):
        count += 1
        result, recovered = migrate(scene)
        assert not result["failed"] and not any(entry["failed"] for entry in recovered), (result, recovered)
        scene.assert_migrated()
        assert not migrate(scene)[0]["changed"]
    assert count > 3


@pytest.mark.parametrize("how", [{}, {"keep_name": True}], ids=["other-name", "same-name"])
def test_chain_killed_and_moved(
    server: Server, tmp_path: Any, tell: Callable[..., None], how: dict[str, Any], move: Callable[[str], None]
) -> None:
    def disks() -> list[str]:
        found = []
        for stem in ("base", "over", "foreign"):
            names = [name for name in (stem + ".qcow2", stem + ".qcow", stem + ".img") if os.path.exists(os.path.join(scene.images, name))]
            subprocess.run(["qemu-img", "convert", "-O", "raw", os.path.join(scene.images, names[0]), str(tmp_path / "disk")], check=True)
            found.append(sha256(str(tmp_path / "disk")))
        return found

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), **how)
        shutil.rmtree(scene.images)
        chain(tmp_path)
        images = [{"src": os.path.join(scene.images, name)} for name in ("base.qcow", "over.qcow")]
        return scene, dict(scene.options, job="migrate", state=scene.state, images=images)

    scene, job = prepare()
    seen = disks()
    requests = [Request(os.fsencode(image["src"]), retire=True, state_dir=os.fsencode(scene.state), **how) for image in job["images"]]
    count = 0
    for scene in killed_and_moved(server, tmp_path, prepare, move):
        count += 1
        for _run in range(2):  # a base that waits for its overlays is finished by the run after the one that finishes them
            results = batch.run(requests, batch.Settings(os.fsencode(scene.state), reserve=0))
            assert [result["msg"] for result in results if result["failed"]] == []
        assert disks() == seen
        assert len(scene.listing()) == 5 and set(scene.states()) <= {"done", "failed"}
        assert not any(result["changed"] for result in batch.run(requests, batch.Settings(os.fsencode(scene.state), reserve=0)))
    tell("a chain of three, %s: killed and moved %d times" % (move.__name__, count))
    assert count > 10


@pytest.mark.parametrize("original", [False, True])
def test_temporary_file_that_could_not_be_removed(server: Server, tmp_path: Any, move: Callable[[str], None], original: bool) -> None:
    """It is found by its name, which is the record's; one that may be the original is left."""

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), keep_name=True)
        return scene, scene.job

    count = 0
    for scene in killed_and_moved(server, tmp_path, prepare, lambda _directory: None):
        if scene.states() != ["copying"]:
            continue
        count += 1
        (record,) = Records(os.fsencode(scene.state)).all()
        record.note("failed", error="told to fail")
        temporary = os.path.join(scene.images, scene.listing()[0])
        if original:
            shutil.copyfile(scene.src, temporary)
            move(scene.images)
            result = migrate(scene)[0]
            assert result["failed"] and "it may be the original" in result["msg"], result
            assert sha256(temporary) == sha256(scene.src)
            os.unlink(temporary)
        else:
            move(scene.images)
        assert not migrate(scene)[0]["failed"]
        scene.assert_migrated()
    assert count


@pytest.mark.parametrize("mode", ["other-name", "same-name"])
def test_rollback_killed_and_moved(
    server: Server, tmp_path: Any, tell: Callable[..., None], mode: str, move: Callable[[str], None]
) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), **MODES[mode])
        migrate(scene)
        return scene, {"job": "roll_back", "state": scene.state, "paths": [scene.images]}

    count = 0
    for scene in killed_and_moved(server, tmp_path, prepare, move):
        count += 1
        assert not roll_back(scene)["failed"]
        scene.assert_as_before()
        scene.assert_settled()
        assert not roll_back(scene)["changed"]
    tell("rollback, %s, %s: killed and moved %d times" % (mode, move.__name__, count))
    assert count >= 4


def test_cleanup_killed_and_moved(server: Server, tmp_path: Any, move: Callable[[str], None]) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path))
        migrate(scene)
        return scene, {"job": "clean", "state": scene.state}

    count = 0
    for scene in killed_and_moved(server, tmp_path, prepare, move):
        count += 1
        assert not clean(scene)["failed"]
        assert scene.listing() == [os.path.basename(scene.dest)] and scene.states() == ["cleaned"]
    assert count >= 3


@contextlib.contextmanager
def on_fuse(kind: str, tmp_path: Any) -> Iterator[tuple[Scene, Callable[[str], bool]]]:
    """A scene on a FUSE filesystem, and what mounts it anew."""
    tmp_path.mkdir(exist_ok=True)
    with FatByFuse(kind, str(tmp_path)) as disk:
        scene = Scene(disk.point, state=str(tmp_path / "state"))

        def again(directory: str) -> bool:
            before = inodes(directory)
            disk.remount(*["images/" + name for name in sorted(before, key=lambda name: -before[name])])
            return inodes(directory) != before

        yield scene, again


def test_exfat_mounted_again(tmp_path: Any) -> None:
    for act, left in ((roll_back, ["disk.qcow"]), (clean, ["disk.qcow2"])):
        with on_fuse("exfat", tmp_path / act.__name__) as (scene, again):
            assert migrate(scene)[0]["changed"]
            assert again(scene.images)
            assert not migrate(scene)[0]["changed"]
            shown, done = act(scene, check=True), act(scene)
            assert done["changed"] and shown["reasons"] == done["reasons"] and "by its content" in done["msg"], (shown, done)
            assert scene.listing() == left
            again(scene.images)
            assert not act(scene)["changed"]


@pytest.mark.parametrize("retire", [True, False])
def test_exfat_mounted_again_after_a_kill(tmp_path: Any, tell: Callable[..., None], retire: bool) -> None:
    with Server(isolated=False) as server:
        with on_fuse("exfat", tmp_path / "traced") as (scene, _again):
            scene.options["retire"] = retire
            job = scene.job
            found = at_steps(points(server.trace(str(tmp_path / "log"), CHANGING, job.pop("job"), **job), CHANGING))
        states, others = set(), 0
        for number, point in enumerate(found):
            with on_fuse("exfat", tmp_path / str(number)) as (scene, again):
                scene.options["retire"] = retire
                job = scene.job
                if not server.killed_at(point, job.pop("job"), **job):
                    continue
                states.update(scene.states())
                others += again(scene.images)
                result, recovered = migrate(scene)
                assert not result["failed"] and not any(entry["failed"] for entry in recovered), (point, result, recovered)
                scene.assert_migrated()
                again(scene.images)
                assert not migrate(scene)[0]["changed"]
    tell("exFAT: killed and mounted again in the states %s; %d times with other inode numbers" % (", ".join(sorted(states)), others))
    assert others > 3
    assert {"planned", "copying", "verified", "published"} <= states


@pytest.mark.parametrize("act", [roll_back, clean])
def test_fat_in_the_old_place(tmp_path: Any, act: Callable[..., dict[str, Any]]) -> None:
    """Its times are even seconds: those are others, too, once it was mounted again."""
    scene = Scene(str(tmp_path))
    os.utime(scene.src, ns=(10**18 + 10**9 + 7, 10**18 + 10**9 + 7))
    migrate(scene)
    with FatByFuse("fat", str(tmp_path), point=str(tmp_path / "fat")) as disk:
        for name in scene.listing():
            shutil.copyfile(os.path.join(scene.images, name), os.path.join(disk.point, name))
            status = os.stat(os.path.join(scene.images, name))
            os.utime(os.path.join(disk.point, name), ns=(status.st_atime_ns, status.st_mtime_ns))
        subprocess.run(["mount", "--bind", disk.point, scene.images], check=True)
        try:
            done = act(scene)
            assert done["changed"] and "by its content" in done["msg"], done
            assert scene.listing() == ["disk.qcow" if act is roll_back else "disk.qcow2"]
        finally:
            subprocess.run(["umount", scene.images], check=True)
        disk.remount()
        assert os.listdir(disk.point) == ["disk.qcow" if act is roll_back else "disk.qcow2"]


def test_another_time_alone(tmp_path: Any) -> None:
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path))
        migrate(scene)
        os.utime(scene.retired)
        done = act(scene)
        assert done["changed"] and "the original is recognized by its content" in done["reasons"], done


def test_large_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, move: Callable[[str], None]) -> None:
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path))
        migrate(scene)
        move(scene.images)
        with monkeypatch.context() as small:
            small.setattr(moved_files, "CHEAP", 8192)
            refused(act, scene, "auto", "bytes have to be read. Nothing was changed. moved_files=compare does that; moved_files=accept")
            assert act(scene, "compare")["changed"]


def test_interrupted_and_large(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is stuck says how it goes on, and it does."""

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path))
        return scene, scene.job

    stuck = 0
    for number, scene in enumerate(killed_and_moved(server, tmp_path, prepare, copied)):
        with monkeypatch.context() as small:
            small.setattr(moved_files, "CHEAP", 8192)
            before = contents(scene)
            shown, (result, recovered) = migrate(scene, check=True), migrate(scene)
            if result["failed"]:
                stuck += 1
                assert result["reason"] == "unfinished" and "moved_files=compare" in result["msg"], result
                assert shown[0]["msg"] == result["msg"]
                assert contents(scene) == before
            result, recovered = migrate(scene, HOW[1 + number % 2])
            assert not result["failed"] and not any(entry["failed"] for entry in recovered), (result, recovered)
            scene.assert_migrated()
    assert stuck > 2


def test_unverified_record(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path), verify=False)
    migrate(scene)
    move(scene.images)
    for how in ("auto", "compare"):
        refused(roll_back, scene, how, "moved_files=accept")
    shown, done = roll_back(scene, "accept", check=True), roll_back(scene, "accept")
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert any("unread" in reason for reason in done["reasons"])
    scene.assert_as_before()


def test_encrypted_original(tmp_path: Any, move: Callable[[str], None]) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    how = {"passphrase_files": ((b"", os.fsencode(tmp_path / "secret")),), "force_passphrase": True}
    clusters = {index: Plain(os.urandom(4096)) for index in range(4)}
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path), spec=ImageSpec(size=1 << 20, clusters=clusters, password=b"secret"), **how)
        result = migrate(scene)[0]
        assert result["changed"], result
        move(scene.images)
        for option in ("auto", "compare"):
            refused(act, scene, option, "moved_files=accept")
        assert act(scene, "accept")["changed"]


def flip(path: str, at: int = -1) -> None:
    """Other bytes, as many; the time is as before."""
    status = os.stat(path)
    with open(path, "r+b") as stream:
        data = stream.read()
        stream.seek(data.index(b"\1" * 4096) if at < 0 else at)
        stream.write(b"changed")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("act", [roll_back, clean])
def test_changed_original(tmp_path: Any, move: Callable[[str], None], act: Callable[..., dict[str, Any]]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    flip(scene.retired)
    move(scene.images)
    for how in ("auto", "compare"):
        refused(act, scene, how, "moved_files=accept", "changed")
    assert act(scene, "accept")["changed"]


def test_result_written_since_and_moved(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    subprocess.run([require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 2m 64k", scene.dest], check=True)
    newer = sha256(scene.dest)
    copied(scene.images)
    for how in ("auto", "compare"):
        refused(clean, scene, how, "moved_files=accept", "changed")
        refused(roll_back, scene, how, "discard_changes", "changed")
    done = clean(scene, "accept")
    assert done["changed"], done
    assert scene.listing() == [os.path.basename(scene.dest)] and sha256(scene.dest) == newer


def test_accepted_result_has_to_be_sound_all_the_same(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    os.unlink(scene.dest)
    subprocess.run([require_tool("qemu-img"), "create", "-q", "-f", "qcow2", scene.dest, "4M"], check=True)
    refused(clean, scene, "accept", "nothing of what the original holds", "changed")


@pytest.mark.parametrize("how", ["auto", "compare"])
def test_wrong_file_of_the_same_size(server: Server, tmp_path: Any, how: str) -> None:
    """In the place of the original, of the result, or of an unfinished result: nothing happens to it."""

    def replace(path: str) -> None:
        subprocess.run(["cp", "-a", path, path + ".other"], check=True)
        flip(path + ".other", 3 << 10 if path.endswith(".tmp") else -1)
        os.rename(path + ".other", path)

    scene = Scene(str(tmp_path))
    migrate(scene)
    replace(scene.retired)
    for act in (roll_back, clean):
        refused(act, scene, how, "moved_files=accept", "changed")

    scene = Scene(str(tmp_path))
    migrate(scene)
    replace(scene.dest)
    refused(clean, scene, how, "moved_files=accept", "changed")
    refused(roll_back, scene, how, "the guest data differs", "changed")

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path))
        return scene, scene.job

    replaced = 0
    for scene in killed_and_moved(server, tmp_path, prepare, lambda _directory: None):
        if scene.states() == ["published"]:
            replaced += 1
            replace(scene.dest)
            before = contents(scene)
            result, _recovered = migrate(scene, how)
            assert result["failed"] and "moved_files=accept" in result["msg"], result
            assert contents(scene) == before
    assert replaced


def test_copy_that_names_a_backing_file(tmp_path: Any) -> None:
    """It shows the same by itself, and would show what it names."""
    scene = Scene(str(tmp_path))
    migrate(scene)
    with open(scene.retired, "rb") as stream:
        data = bytearray(stream.read())
    where = data.index(bytes(64), 48)  # of the header's own bytes none is used there
    data[8:20] = (where.bit_length() and where).to_bytes(8, "big") + len(b"/etc/shadow").to_bytes(4, "big")
    data[where : where + 11] = b"/etc/shadow"
    os.unlink(scene.retired)
    with open(scene.retired, "wb") as stream:
        stream.write(data)
    for act in (roll_back, clean):
        for how in HOW:
            refused(act, scene, how, "Compare", "changed")


def test_copy_that_belongs_to_somebody_else(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    copied(scene.images)
    os.chown(scene.retired, 4711, -1)
    for act in (roll_back, clean):
        for how in ("auto", "compare"):
            refused(act, scene, how, "user 4711 can write it, but could not")
    os.chown(scene.dest, 4711, -1)  # as the result, so the original
    assert roll_back(scene)["changed"]


def chain(tmp_path: Any) -> tuple[Any, Choice]:
    images, state = tmp_path / "images", os.fsencode(str(tmp_path / "state"))
    images.mkdir()
    build(ImageSpec(size=1 << 20, clusters={1: Plain(b"base" * 1024)})).write(images / "base.qcow")
    build(ImageSpec(size=1 << 20, clusters={2: Plain(b"over" * 1024)}, backing=Backing(b"base.qcow"))).write(images / "over.qcow")
    make = [require_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow", "-b", "base.qcow", str(images / "foreign.img")]
    subprocess.run(make, check=True)
    return images, Choice(state, paths=(os.fsencode(str(images)),))


@pytest.mark.parametrize("how", [{}, {"keep_name": True}], ids=["other-name", "same-name"])
def test_chain_after_a_move(tmp_path: Any, how: dict[str, Any], move: Callable[[str], None]) -> None:
    """What an overlay rests on is found under the name that it has now; a foreign overlay's header says what it said."""
    images, choice = chain(tmp_path)
    before = {path.name: sha256(str(path)) for path in images.iterdir()}
    requests = [
        Request(os.fsencode(str(images / name)), retire=True, state_dir=choice.state_dir, **how) for name in ("base.qcow", "over.qcow")
    ]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    move(str(images))
    assert not any(result["changed"] or result["failed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    shown = roll_back_all(choice._replace(check_mode=True), discard_changes=False)
    done = roll_back_all(choice, discard_changes=False)
    assert [entry["msg"] for entry in done if not entry["changed"]] == [] and [
        entry["msg"] for entry in shown if not entry["changed"]
    ] == []
    assert {path.name: sha256(str(path)) for path in images.iterdir()} == before


def test_chain_cleaned_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    images, choice = chain(tmp_path)
    requests = [Request(os.fsencode(str(images / name)), retire=True, state_dir=choice.state_dir) for name in ("base.qcow", "over.qcow")]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    move(str(images))
    assert [entry["msg"] for entry in clean_all(choice, min_age=0) if not entry["changed"]] == []
    assert sorted(path.name for path in images.iterdir()) == ["base.qcow2", "foreign.img", "over.qcow2"]


def test_settled_once(tmp_path: Any) -> None:
    """A run that only looks writes nothing down; one that acts does, and nothing is read again."""
    scene = Scene(str(tmp_path), retire=False)
    migrate(scene)
    copied(scene.images)
    (before,) = [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()]
    migrate(scene, check=True)
    assert [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()] == [before]
    assert any("recognized" in reason for reason in migrate(scene)[0]["reasons"])
    assert [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()] == [os.stat(scene.src).st_ino]
    assert not any("recognized" in reason for reason in migrate(scene)[0]["reasons"])
