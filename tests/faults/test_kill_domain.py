# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SIGKILL at the system calls of qcow_domain, every message to libvirt among them.

After each, what the next run does about it leaves all definitions as they were or all of them changed, every guest running that ran, no overlay, and an
empty journal; and the move can be made.
"""

import os
import pathlib
import re
import subprocess
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.faults import ALL_POINTS, Point, Server, points
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk

CALLS = "write writev sendmsg sendto fsync rename renameat2 unlink openat mkdir".split()


class Scene:
    """An image and, unless it is to be made live, its result; domains that use the image."""

    def __init__(self, scratch: pathlib.Path, daemon: Libvirtd, *names: str, running: str = "") -> None:
        self.daemon = daemon
        daemon.clear()
        for path in [*scratch.glob("images/*"), *scratch.glob("images/.*"), *scratch.glob("state/*/*"), *scratch.glob("state/lock")]:
            path.unlink()
        (scratch / "images").mkdir(exist_ok=True)
        self.journal = scratch / "state" / "domain-journal"
        self.images, self.state = scratch / "images", str(scratch / "state")
        self.src, self.dest = self.images / "disk.qcow", self.images / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", str(self.src), "64M"], check=True)
        subprocess.run(["qemu-io", "-f", "qcow", "-c", "write -q -P 7 1M 64k", str(self.src)], check=True, stdout=subprocess.DEVNULL)
        self.running = running
        self.guests = [
            Guest(daemon, name, [disk(self.src, "qcow")], cmdline="guest=write" if running == "live" else "guest=idle") for name in names
        ]
        if running:
            self.guests[0].domain.create()
            self.guests[0].wait("GUEST-WROTE" if running == "live" else "GUEST-UP")
        if running != "live":
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-U", "-f", "qcow", str(self.src), str(self.dest)], check=True)
        self.before = [guest.xml() for guest in self.guests]
        self.after = [text.replace("type='qcow'", "type='qcow2'").replace("disk.qcow'", "disk.qcow2'") for text in self.before]

    @property
    def job(self) -> dict[str, Any]:
        options = {"running": self.running, "shutdown_timeout": 120} if self.running else {}
        return dict(options, job="move", state=self.state, uri=self.daemon.uri, src=str(self.src), dest=str(self.dest))

    def definitions(self) -> list[str]:
        return [guest.xml() for guest in self.guests]

    def assert_settled(self) -> None:
        now = self.definitions()
        assert now in (self.before, self.after), "some definitions are changed, others are not: %s" % now
        assert not list(self.journal.iterdir()) if self.journal.exists() else True, "the journal is not empty"
        if self.running:
            assert self.guests[0].domain.isActive(), "the guest does not run any more"
            live = self.guests[0].domain.XMLDesc()
            assert ("disk.qcow2'" if now == self.after else "disk.qcow'") in live, live
        assert {path.name for path in self.images.iterdir()} <= {"disk.qcow", "disk.qcow2"}, list(self.images.iterdir())
        if self.running == "live" and now == self.before:
            assert not self.dest.exists(), "a result that is out of date"

    def assert_moved(self) -> None:
        assert self.definitions() == self.after
        self.assert_settled()


@pytest.fixture(name="daemon", scope="module")
def _daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    oracle.require_v1_driver()
    daemon = Libvirtd(tmp_path_factory.mktemp("libvirt"))
    yield daemon
    daemon.close()


@pytest.fixture(name="domain_server", scope="module")
def _server(daemon: Libvirtd) -> Iterator[Server]:
    with Server() as server:  # after the daemon: the binding is in sys.path only then
        yield server


def worth(found: list[Point], most: int) -> list[Point]:
    """The points at which something may be half done: from the journal's first entry on; evenly chosen where those are too many."""
    first = next(number for number, point in enumerate(found) if "domain-journal" in point.text)
    found = [point for point in found[first - 1 :] if not re.search(r"\.(py|pyc|so)\"", point.text)]
    if ALL_POINTS or len(found) <= most:
        return found
    return [found[index * len(found) // most] for index in range(most)]


@pytest.mark.parametrize(("running", "names", "most"), [("", ("one", "two"), 40), ("shutdown", ("one", "two"), 6), ("live", ("one",), 8)])
def test_kill(
    running: str,
    names: tuple[str, ...],
    most: int,
    daemon: Libvirtd,
    domain_server: Server,
    tmp_path: pathlib.Path,
    tell: Callable[..., None],
) -> None:
    scene = Scene(tmp_path, daemon, *names, running=running)
    job = scene.job
    lines = domain_server.trace(str(tmp_path / "log"), CALLS, job.pop("job"), **job)
    assert domain_server.last["changed"]
    scene.assert_moved()
    found = worth(points(lines, CALLS), most)
    killed = 0
    for point in found:
        scene = Scene(tmp_path, daemon, *names, running=running)
        job = scene.job
        killed += domain_server.killed_at(point, job.pop("job"), **job)
        try:
            recovered = domain_server.call("recover", state=scene.state, uri=daemon.uri)["recovered"]
            assert [entry["msg"] for entry in recovered if entry["failed"]] == []
            scene.assert_settled()
            job = scene.job
            domain_server.call(job.pop("job"), **job)
            scene.assert_moved()
            again = scene.job
            assert not domain_server.call(again.pop("job"), **again)["changed"]
        except AssertionError as error:
            raise AssertionError("after a kill at %s: %s" % (point, error)) from error
    tell("qcow_domain, %s: killed at %d of %d points" % (running or "shut off", killed, len(found)), kills=killed)
    assert killed >= len(found) * 0.8
    assert os.path.exists(scene.dest)
