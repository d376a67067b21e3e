# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same files with other inode numbers: what gives them to a scene, and what is done with it then."""

import contextlib
import glob
import os
import re
import shutil
import subprocess
from typing import Any, Callable, Iterator

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Point, Scene, Server, points, sha256
from ansible_collections.vmimage.qcow.tests.support.filesystems import FatByFuse
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
    """``cp -a`` to another place, which gets the name of the old one: no file has the inode number of any before, also where it is done again."""
    before = inodes(directory)
    subprocess.run(["cp", "-a", directory, directory + ".copy"], check=True)
    # What is removed frees its numbers for the next copy.
    os.rename(directory, "%s.old-%d" % (directory, len(glob.glob(glob.escape(directory) + ".old-*"))))
    os.rename(directory + ".copy", directory)
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


def contents(scene: Scene) -> dict[str, str]:
    return {name: sha256(os.path.join(scene.images, name)) for name in scene.listing()}


def refused(act: Callable[..., dict[str, Any]], scene: Scene, how: str, says: str, reason: str = "moved") -> None:
    """Refused, by a check as by a run, without a change, and with a way out."""
    before, numbers = contents(scene), inodes(scene.images)
    for check in (True, False):
        answer = act(scene, how, check=check)
        assert answer["failed"] and answer["reason"] == reason and says in answer["msg"], answer
        assert (contents(scene), inodes(scene.images)) == (before, numbers)


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


def flip(path: str, at: int = -1) -> None:
    """Other bytes, as many; the time is as before."""
    status = os.stat(path)
    with open(path, "r+b") as stream:
        data = stream.read()
        stream.seek(data.index(b"\1" * 4096) if at < 0 else at)
        stream.write(b"changed")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def chain(tmp_path: Any, over: Callable[[bytes], Any] = Plain) -> tuple[Any, Choice]:
    """A base, a v1 overlay and a qcow2 overlay of it; ``over`` is how the overlay's cluster is stored."""
    images, state = tmp_path / "images", os.fsencode(str(tmp_path / "state"))
    images.mkdir()
    build(ImageSpec(size=1 << 20, clusters={1: Plain(b"base" * 1024)})).write(images / "base.qcow")
    build(ImageSpec(size=1 << 20, clusters={2: over(b"over" * 1024)}, backing=Backing(b"base.qcow"))).write(images / "over.qcow")
    make = [require_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow", "-b", "base.qcow", str(images / "foreign.img")]
    subprocess.run(make, check=True)
    return images, Choice(state, paths=(os.fsencode(str(images)),))
