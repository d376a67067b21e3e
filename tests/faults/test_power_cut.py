# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# pylint: disable=redundant-keyword-arg # the job is taken out of what is passed on

"""A real power cut: the process ends at a system call and the filesystem is shut down without a flush, unmounted and mounted again.

Everything that was not synced is gone then. The record, on the same filesystem, must tell the truth about what is left.
"""

import contextlib
import os
import subprocess
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Scene, Server, points
from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool

MODES = {"other-name": {}, "same-name": {"keep_name": True}}
MOMENTS = 15
"""Moments for each filesystem and way of naming; 60 together."""


class Disk:
    """A filesystem on a loop device that can lose its power."""

    def __init__(self, fstype: str, directory: str) -> None:
        require_root()
        for tool in ("xfs_io", "mkfs." + fstype):
            require_tool(tool)
        self._fstype = fstype
        self.point = os.path.join(directory, "mnt")
        self._file = os.path.join(directory, "disk")
        os.makedirs(self.point)
        with open(self._file, "wb") as stream:
            stream.truncate((320 if fstype == "xfs" else 64) << 20)
        subprocess.run(["mkfs." + fstype, "-q", self._file], check=True)
        self.mount()

    def mount(self) -> None:
        options = "loop,nouuid" if self._fstype == "xfs" else "loop"
        done = subprocess.run(["mount", "-o", options, self._file, self.point], check=False, stderr=subprocess.PIPE)
        require(done.returncode == 0, "cannot mount: %s" % done.stderr.decode(errors="replace"))

    def unmount(self) -> None:
        subprocess.run(["umount", self.point], check=True)

    def cut_power(self) -> None:
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", self.point], check=True, stdout=subprocess.DEVNULL)
        self.unmount()
        # What is on the disk now, on another disk: another mount namespace of this machine may keep the old one from going.
        survivor = self._file + "+"
        subprocess.run(["cp", "--sparse=always", self._file, survivor], check=True)
        os.unlink(self._file)
        self._file = survivor
        self.mount()


@contextlib.contextmanager
def disk(fstype: str, directory: str) -> Iterator[Disk]:
    made = Disk(fstype, directory)
    try:
        yield made
    finally:
        made.unmount()


def spread(found: list[Any], count: int) -> list[Any]:
    return [found[index * len(found) // count] for index in range(min(count, len(found)))]


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_migration(tmp_path: Any, tell: Callable[..., None], fstype: str, mode: str) -> None:
    seen: dict[str, int] = {}
    with disk(fstype, str(tmp_path)) as made, Server(isolated=False) as server:

        def scene_on_disk() -> Scene:
            scene = Scene(made.point, **MODES[mode])
            os.sync()  # the image has been there for years
            return scene

        scene = scene_on_disk()
        calls = [name for name in CHANGING if name != "openat"]  # not isolated: what is opened in /proc differs from run to run
        job = scene.job
        found = points(server.trace(os.path.join(str(tmp_path), "log"), calls, job.pop("job"), **job), calls)
        for point in spread(found, MOMENTS):
            scene = scene_on_disk()
            job = scene.job
            assert server.killed_at(point, job.pop("job"), **job)
            made.cut_power()
            try:
                scene.assert_whole()
                state = (scene.states() or ["nothing"])[-1]
                seen[state] = seen.get(state, 0) + 1
                if state in ("published", "repointed", "retired", "done"):
                    assert scene.seen_by_guest(scene.dest) == scene.guest, "the record says that the result is in place"
                if state in ("retired", "done"):
                    assert os.path.exists(scene.retired), "the record says that the original is retired"
                job = scene.job
                answer = server.call(job.pop("job"), **job)
                assert not any(result["failed"] for result in answer["results"]), answer
                scene.assert_migrated()
            except AssertionError as error:
                raise AssertionError("power cut at %s: %s\n%s %s" % (point, error, scene.states(), scene.listing())) from error
    tell("power cut on %s, %s: %d moments; the record said %s" % (fstype, mode, MOMENTS, seen), power_cuts=MOMENTS)


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_after_the_end(tmp_path: Any, fstype: str) -> None:
    """A power cut right after a run has said that it is done loses nothing; the same for a rollback and a cleanup."""
    with disk(fstype, str(tmp_path)) as made, Server(isolated=False) as server:
        scene = Scene(made.point)
        os.sync()
        job = scene.job
        name = job.pop("job")
        server.call(name, **job)
        made.cut_power()
        scene.assert_migrated()
        server.call("roll_back", state=scene.state, paths=[scene.images])
        made.cut_power()
        scene.assert_as_before()
        assert scene.states() == ["rolled-back"]
        server.call(name, **job)
        server.call("clean", state=scene.state)
        made.cut_power()
        assert scene.listing() == [os.path.basename(scene.dest)]
        assert scene.seen_by_guest(scene.dest) == scene.guest
        assert scene.states() == ["rolled-back", "cleaned"]
