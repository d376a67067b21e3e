# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SIGKILL at every system call of a migration, a rollback and a cleanup.

After each: the original's bytes are there, what has a name shows the guest its disk, the next run converges, nothing is left over.
"""

import os
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.tests.support.faults import ASKING, CHANGING, DENSE, Point, Scene, Server, points

CALLS = CHANGING + ASKING
MODES = {
    "other-name": {},
    "same-name": {"keep_name": True},
    "raw-kept": {"format": "raw", "retire": False},
    "dense": {"spec": DENSE},
    "dense-raw": {"spec": DENSE, "format": "raw"},
}


def parts(found: list[Point], part: int, of: int) -> list[Point]:
    return found[part::of]


def at_each(server: Server, found: list[Point], prepare: Callable[[], tuple[Scene, dict[str, Any]]], after: Callable[[Scene], None]) -> int:
    """Kill one job at each point and see that all is well; returns how often it really was killed."""
    killed = 0
    for point in found:
        scene, job = prepare()
        name = job.pop("job")
        killed += server.killed_at(point, name, **job)
        try:
            scene.assert_whole()
            after(scene)
        except AssertionError as error:
            raise AssertionError("after a kill at %s: %s\nstates %s, files %s" % (point, error, scene.states(), scene.listing())) from error
    return killed


def migrate(server: Server, scene: Scene) -> list[dict[str, Any]]:
    job = scene.job
    answer = server.call(job.pop("job"), **job)
    assert "raised" not in answer, answer
    return answer["results"]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_migration(server: Server, tmp_path: Any, tell: Callable[..., None], mode: str, part: int) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), **MODES[mode])
        return scene, scene.job

    def converges(scene: Scene) -> None:
        assert [result["msg"] for result in migrate(server, scene) if result["failed"]] == []
        scene.assert_migrated()
        again = migrate(server, scene)
        assert [result["changed"] for result in again] == [False]
        scene.assert_migrated()

    scene, job = prepare()
    lines = server.trace(os.path.join(str(tmp_path), "log"), CALLS, job.pop("job"), **job)
    scene.assert_migrated()
    everything = points(lines, CALLS)
    if mode.startswith("dense"):  # the rest of the way is that of the other modes
        everything = [point for point in everything if point.helper or ".tmp" in point.text]
    found = parts(everything, part, 2)
    killed = at_each(server, found, prepare, converges)
    tell(
        "migration, %s: killed at %d of %d points, part %d of %d calls" % (mode, killed, len(found), part + 1, len(everything)),
        kills=killed,
    )
    assert killed >= len(found) * 0.9  # how many files are opened depends on what else the host has


@pytest.mark.parametrize("mode", ["other-name", "same-name"])
def test_rollback(server: Server, tmp_path: Any, tell: Callable[..., None], mode: str) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path), **MODES[mode])
        migrate(server, scene)
        scene.assert_migrated()
        return scene, {"job": "roll_back", "state": scene.state, "paths": [scene.images]}

    def converges(scene: Scene) -> None:
        answer = server.call("roll_back", state=scene.state, paths=[scene.images])
        assert [result["msg"] for result in answer["results"] if result["failed"]] == []
        scene.assert_as_before()
        scene.assert_settled()
        migrate(server, scene)
        scene.assert_migrated()

    scene, job = prepare()
    lines = server.trace(os.path.join(str(tmp_path), "log"), CALLS, job.pop("job"), **job)
    scene.assert_as_before()
    found = points(lines, CALLS)
    killed = at_each(server, found, prepare, converges)
    tell("rollback, %s: killed at %d of %d points" % (mode, killed, len(found)), kills=killed)
    assert killed >= len(found) * 0.9  # how many files are opened depends on what else the host has


def test_cleanup(server: Server, tmp_path: Any, tell: Callable[..., None]) -> None:
    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path))
        migrate(server, scene)
        return scene, {"job": "clean", "state": scene.state}

    def converges(scene: Scene) -> None:
        answer = server.call("clean", state=scene.state)
        assert [result["msg"] for result in answer["results"] if result["failed"]] == []
        assert scene.listing() == [os.path.basename(scene.dest)]
        assert scene.seen_by_guest(scene.dest) == scene.guest
        assert scene.states() == ["cleaned"]

    scene, job = prepare()
    lines = server.trace(os.path.join(str(tmp_path), "log"), CALLS, job.pop("job"), **job)
    found = points(lines, CALLS)
    killed = 0
    for point in found:
        scene, job = prepare()
        killed += server.killed_at(point, job.pop("job"), **job)
        assert scene.seen_by_guest(scene.dest) == scene.guest
        converges(scene)
    tell("cleanup: killed at %d of %d points" % (killed, len(found)), kills=killed)
    assert killed >= len(found) * 0.9  # how many files are opened depends on what else the host has
