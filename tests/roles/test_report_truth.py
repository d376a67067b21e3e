# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A night with a fleet: whatever is run, killed, or run from elsewhere, the report says what :mod:`truth`, which shares no code with it, finds on the hosts."""

import glob
import json
import os
import pathlib
import shlex
import signal
import socket
import time
from typing import Any, Callable, Optional

import pytest

from ansible_collections.vmimage.qcow.tests.support import truth
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

PLAYS = ("scan", "migrate", "rollback", "cleanup", "status", "stop")
GONE = "gone"


def over(base: str) -> ImageSpec:
    return ImageSpec(size=MIB, clusters={3: Plain(base.encode() * 100)}, backing=Backing(base.encode()))


IMAGES: dict[str, dict[str, ImageSpec]] = {
    "plain": {name: disk(number, size=MIB, filled=20 + number) for number, name in enumerate(("one.qcow", "two.qcow", "deep/three.img"))},
    "chain": {"base.qcow": disk(11, size=MIB, filled=30), "middle.qcow": over("base.qcow"), "top.qcow": over("middle.qcow")},
    "kept": {"keep.qcow": disk(21, size=MIB, filled=40)},
    "named": {"lies.qcow2": disk(31, size=MIB, filled=50), "same.img": disk(32, size=MIB, filled=60)},
    "refused": {"orphan.qcow": over("not-there.qcow"), "fine.qcow": disk(41, size=MIB, filled=70)},
    "damaged": {"cut.qcow": disk(51, size=MIB, filled=80), "sound.qcow": disk(52, size=MIB, filled=90)},
    "slow": {"small.qcow": disk(61, size=MIB, filled=10)},
}
OPTIONS = {"kept": {"migrate_original": "keep"}, "named": {"migrate_keep_name": True}}
FAILED = {("refused", "orphan.qcow"), ("damaged", "cut.qcow")}
V1 = sum(len(images) for images in IMAGES.values())


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Fleet:
    """Hosts on this machine, each with a directory of images and a state of its own, and one that cannot be reached."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch = scratch
        self.unreachable = {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": closed_port(),
            "ansible_ssh_common_args": "-o BatchMode=yes -o ConnectTimeout=5",
        }
        self.hosts: dict[str, dict[str, Any]] = {GONE: dict(self.unreachable, **self._places(GONE))}
        for host, images in IMAGES.items():
            for name, spec in images.items():
                self.put(host, name, spec)
            self.hosts[host] = dict(self._places(host), **OPTIONS.get(host, {}))
        os.truncate(self.tree("damaged") / "cut.qcow", 4200)
        self.first = self.controller("first")

    def tree(self, host: str) -> pathlib.Path:
        return self.scratch / "trees" / host

    def state(self, host: str) -> pathlib.Path:
        return self.scratch / "states" / host

    def _places(self, host: str) -> dict[str, Any]:
        paths = {play + "_paths": str(self.tree(host)) for play in ("scan", "migrate")}
        return dict(paths, **{play + "_state_dir": str(self.state(host)) for play in PLAYS})

    def put(self, host: str, name: str, spec: ImageSpec) -> None:
        path = self.tree(host) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        build(spec).write(path)

    def controller(self, name: str, **instead: dict[str, Any]) -> Controller:
        """A controller with an inventory of these hosts and a directory of its own; ``instead``: other variables for some of them."""
        (self.scratch / name).mkdir(exist_ok=True)
        return Controller(
            self.scratch / name, hosts={**self.hosts, **{host: dict(self.hosts[host], **more) for host, more in instead.items()}}
        )

    def truth(self) -> truth.Hosts:
        return {host: truth.images(self.tree(host), self.state(host)) for host in IMAGES}

    def at_work(self) -> list[int]:
        """The processes that hold a file of a host open: the modules, and their workers."""
        found = []
        for path in glob.glob("/proc/[0-9]*"):
            try:
                held = [os.readlink(name) for name in glob.glob(path + "/fd/*")]
            except OSError:
                continue
            if any(name.startswith((str(self.scratch / "trees"), str(self.scratch / "states"))) for name in held):
                found.append(int(path[6:]))
        return [pid for pid in found if pid != os.getpid()]


def rows_of(reports: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = [json.loads(line) for line in (reports / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(row["host"], os.path.basename(row["path"])): row for row in rows}


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def descendants(pid: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            parents[int(path.split("/")[2])] = int(pathlib.Path(path).read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def kill(pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Night:
    """The steps of the test: what is run, and that the report then says what is true."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def run(
        self, step: str, play: str, *arguments: str, controller: Optional[Controller] = None, code: int = 4, **variables: Any
    ) -> Played:
        controller = controller or self.fleet.first
        played = controller.run(play, *arguments, **variables)
        assert played.returncode == code, "%s ended with %d\n%s" % (step, played.returncode, played.output)
        return played

    def agree(self, step: str, controller: Optional[Controller] = None, told: Optional[truth.Hosts] = None) -> None:
        reports = (controller or self.fleet.first).work / "qcow-reports"
        true = self.fleet.truth() if told is None else told
        found = truth.differences(true, reports, {GONE}) + truth.differences_of_page(
            true, (reports / "index.html").read_text("utf-8"), {GONE}
        )
        assert not found, "%s: the report says something else than is true\n%s" % (step, "\n".join(found))

    def states(self, controller: Optional[Controller] = None) -> dict[tuple[str, str], str]:
        rows = rows_of((controller or self.fleet.first).work / "qcow-reports")
        return {key: row["state"] for key, row in rows.items() if row["state"] != "other"}


@pytest.mark.timeout(1800)
def test_the_report_says_what_is_true_on_the_hosts(tmp_path: pathlib.Path) -> None:
    require_tool("ssh")
    fleet = Fleet(tmp_path)
    night = Night(fleet)

    night.run("scan", "scan")
    night.agree("scan")
    assert len(night.states()) == V1
    assert {key for key, state in night.states().items() if state == "failed"} == FAILED

    night.run("migrate", "migrate")
    night.agree("migrate")
    after = night.states()
    assert {key for key, state in after.items() if state != "migrated"} == FAILED

    night.run("migrate again", "migrate")
    night.agree("migrate again")
    assert night.states() == after

    # The command is taken from the report, as a person would.
    command = shlex.split(rows_of(fleet.first.work / "qcow-reports")["plain", "two.qcow"]["rollback"])
    assert command[0] == "ansible-playbook" and "vmimage.qcow.rollback" in command, command
    given = [word for number, word in enumerate(command[1:]) if "-i" not in (word, command[number]) and word != "vmimage.qcow.rollback"]
    night.run("roll back one", "rollback", *given, code=0)
    night.agree("roll back one")
    assert {key for key, state in night.states().items() if after[key] != state} == {("plain", "two.qcow")}

    fleet.put("slow", "large.qcow", disk(62, size=32 * MIB, filled=4000))
    fleet.put("slow", "next.qcow", disk(63, size=MIB, filled=20))
    night.run("scan again", "scan")
    night.agree("scan again")

    running = fleet.first.start("migrate", "--limit", "slow", migrate_bandwidth="500K")
    until(lambda: any(image.state == "running" for image in fleet.truth()["slow"].values()), "no migration began")
    kill(descendants(running.pid))
    running.communicate()
    night.run("status while a host goes on alone", "status", "--limit", "slow", code=0)
    assert fleet.at_work(), "the host has come to its end: it was not seen at work"
    night.agree("status while a host goes on alone")
    assert night.states()["slow", "large.qcow"] == "running"

    while fleet.at_work():
        kill(set(fleet.at_work()))
    night.run("status of a host that was killed", "status")
    night.agree("status of a host that was killed")
    assert night.states()["slow", "large.qcow"] == "interrupted"

    other = fleet.controller("other")
    night.run("status from another controller", "status", controller=other)
    night.agree("status from another controller", other, truth.known_by_records(fleet.truth()))
    night.run("scan from another controller", "scan", controller=other)
    night.agree("scan from another controller", other)

    night.run("migrate from another controller", "migrate", controller=other)
    night.agree("migrate from another controller", other)
    assert night.states(other)["slow", "large.qcow"] == "migrated"
    night.run("status, where another has migrated", "status")
    night.agree("status, where another has migrated")

    night.run("scan of one host", "scan", "--limit", "chain", code=0)
    cut_off = fleet.controller("first", kept=fleet.unreachable)
    night.run("one host was not asked, another is not reached any more", "scan", "--limit", "kept,refused", controller=cut_off)
    hosts = {host["host"]: host for host in json.loads((cut_off.work / "qcow-reports" / "report.json").read_text())["hosts"]}
    assert hosts["kept"]["state"] == "unreached" and hosts["kept"]["unreached_since"] > hosts["kept"]["known_at"], hosts["kept"]
    assert hosts["plain"]["unreached_since"] is None and hosts["plain"]["known_at"] < hosts["refused"]["known_at"], hosts

    night.run("cleanup", "cleanup", cleanup_min_age_days=0)
    night.agree("cleanup")
    assert not any(row["rollback"] for key, row in rows_of(fleet.first.work / "qcow-reports").items() if key[0] == "chain")
