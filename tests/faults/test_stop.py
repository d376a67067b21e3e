# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run is stopped in each of its stages, and who stops it is killed at each system call: the old state or the new one, and the next run goes on."""

import os
import shutil
import time
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Scene, Server, points

TICK = 0.02  # seconds; the kernel notes the start of a process to a hundredth


class Two(Scene):
    """A second image beside the first."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.second = os.path.join(self.images, "second.qcow")
        shutil.copyfile(self.src, self.second)

    @property
    def job(self) -> dict[str, Any]:
        return dict(super().job, images=[{"src": self.src}, {"src": self.second}])

    def assert_done(self) -> None:
        names = ["disk.qcow.qcow1.orig", "disk.qcow2", "second.qcow.qcow1.orig", "second.qcow2"]
        assert self.listing() == names and self.states().count("done") == 2
        self.assert_settled()
        self.assert_whole()


def again(server: Server, scene: Scene) -> list[dict[str, Any]]:
    time.sleep(TICK)
    job = scene.job
    return server.call(job.pop("job"), **job)["results"]


def stopped(server: Server, scene: Scene, at: int, when: str) -> dict[str, Any]:
    job = dict(scene.job, at=at, when=when)
    job.pop("job")
    answer = server.call("migrate_stopped", **job)
    assert "raised" not in answer, answer
    return answer


@pytest.mark.parametrize("when", ["after_image", "now"])
@pytest.mark.parametrize("left_over", [False, True])
def test_in_every_stage(server: Server, tmp_path: Any, tell: Callable[..., None], when: str, left_over: bool) -> None:
    """Where an interrupted run has left something, also while that is looked after."""

    scene = Two(str(tmp_path))
    job = scene.job
    lines = server.trace(os.path.join(str(tmp_path), "log"), CHANGING, job.pop("job"), **job)
    publishing = next(
        point for point in points(lines, CHANGING) if point.call.startswith(("rename", "link")) and '"disk.qcow2"' in point.text
    )

    def prepare() -> Two:
        scene = Two(str(tmp_path))
        job = scene.job
        assert not left_over or server.killed_at(publishing, job.pop("job"), **job)
        return scene

    told = stopped(server, prepare(), 0, when)["told"]
    assert told > 8
    counts = {"convert": 0, "defer": 0}
    for at in range(1, told + 1):
        scene = prepare()
        results = stopped(server, scene, at, when)["results"]
        assert not any(result["failed"] for result in results), (at, results)
        for result in results:
            assert result["action"] != "defer" or result["reason"] == "stopped", (at, result)
            counts[result["action"]] = counts.get(result["action"], 0) + 1
        scene.assert_whole()
        if not left_over:
            done = sum(result["changed"] for result in results)
            assert len(scene.listing()) == 2 + done and scene.states().count("done") == done, (at, scene.listing(), scene.states())
            assert set(scene.states()) <= {"done", "failed"}, (at, scene.states())
        assert not any(result["failed"] for result in again(server, scene)), at
        scene.assert_done()
    assert counts["convert"] and counts["defer"]
    tell("stopped (%s) at %d points of a run" % (when, told), stops=told)


@pytest.mark.parametrize("when", ["after_image", "now"])
def test_killed_while_it_asks(server: Server, tmp_path: Any, tell: Callable[..., None], when: str) -> None:
    scene = Two(str(tmp_path))
    found = points(server.trace(os.path.join(str(tmp_path), "log"), CHANGING, "ask_to_stop", state=scene.state, when=when), CHANGING)
    killed = 0
    for point in found:
        scene = Two(str(tmp_path))
        killed += server.killed_at(point, "ask_to_stop", state=scene.state, when=when)
        assert not any(result["failed"] for result in again(server, scene)), point
        scene.assert_done()
        server.call("ask_to_stop", state=scene.state, when=when)
        assert [name for name in os.listdir(scene.state) if name.startswith("stop")] == ["stop.json"], point
    assert killed >= len(found) * 0.9
    tell("killed at %d of %d points of a stop" % (killed, len(found)), kills=killed)


def test_a_chain_is_completed(server: Server, tmp_path: Any) -> None:
    names = ["over.qcow", "base.qcow", "disk.qcow"]
    specs = [ImageSpec(size=1 << 20, backing=Backing(b"base.qcow")), ImageSpec(size=1 << 20, clusters={1: Plain(b"base")})]

    def run(at: int) -> dict[str, Any]:
        scene = Scene(str(tmp_path))
        for name, spec in zip(names, specs):
            build(spec).write(os.path.join(scene.images, name))
        images = [{"src": os.path.join(scene.images, name)} for name in names]
        return server.call("migrate_stopped", state=scene.state, images=images, at=at, when="after_image", retire=True)

    seen = set()
    for at in range(1, run(0)["told"] + 1):
        results = run(at)["results"]
        assert not any(result["failed"] for result in results), results
        seen.add(tuple(result["action"] for result in results))
    assert seen == {("defer",) * 3, ("convert", "convert", "defer"), ("convert",) * 3}
