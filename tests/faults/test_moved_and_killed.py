# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs that were killed, and whose files have other inode numbers when the next one comes: it comes to an end all the same."""

import os
import shutil
import subprocess
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, moved_files
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Scene, Server, points, sha256
from ansible_collections.vmimage.qcow.tests.support.moves import (
    HOW,
    MODES,
    at_steps,
    chain,
    clean,
    contents,
    copied,
    killed_and_moved,
    migrate,
    on_fuse,
    roll_back,
)


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


def asked(scene: Scene) -> tuple[str, dict[str, Any]]:
    """The job of a scene, and what it is given."""
    given = dict(scene.job)
    return str(given.pop("job")), given


@pytest.mark.parametrize("retire", [True, False])
def test_exfat_mounted_again_after_a_kill(tmp_path: Any, tell: Callable[..., None], retire: bool) -> None:
    with Server(isolated=False) as server:
        with on_fuse("exfat", tmp_path / "traced") as (scene, _again):
            scene.options["retire"] = retire
            name, job = asked(scene)
            found = at_steps(points(server.trace(str(tmp_path / "log"), CHANGING, name, **job), CHANGING))
        states, others = set(), 0
        for number, point in enumerate(found):
            with on_fuse("exfat", tmp_path / str(number)) as (scene, again):
                scene.options["retire"] = retire
                name, job = asked(scene)
                if not server.killed_at(point, name, **job):
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
