# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run is looked at and stopped from another terminal: what is done stays, what is left is untouched, and the next run completes it."""

import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import Call
from ansible_collections.vmimage.qcow.tests.roles.test_return import documented, wrong
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.faults import sha256
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played

IMAGES = ("a.qcow", "b.qcow", "c.qcow")
SLOW = "300K"  # half a minute for an image: whoever looks at it, or stops it, comes in time


class Fleet:
    """Hosts of this machine with three images each, and two terminals."""

    def __init__(self, scratch: pathlib.Path, count: int, fast: tuple[str, ...]) -> None:
        self.trees = {"kvm%d" % number: scratch / ("kvm%d" % number) for number in range(1, count + 1)}
        self.states = {host: scratch / ("state-" + host) for host in self.trees}
        hosts: dict[str, dict[str, Any]] = {}
        for number, (host, tree) in enumerate(self.trees.items()):
            tree.mkdir()
            for place, name in enumerate(IMAGES):
                build(disk(number * 10 + place, size=8 * MIB, filled=1024)).write(str(tree / name))
            hosts[host] = {"migrate_paths": str(tree), "migrate_bandwidth": "" if host in fast else SLOW}
            hosts[host].update({play + "_state_dir": str(self.states[host]) for play in ("migrate", "status", "stop")})
        self.before = {path: sha256(str(path)) for tree in self.trees.values() for path in tree.iterdir()}
        self._scratch = scratch
        self._started: list[subprocess.Popen[str]] = []
        self.one, self.other = self.terminal("one", hosts), self.terminal("other", hosts)

    def terminal(self, name: str, hosts: dict[str, dict[str, Any]]) -> Controller:
        (self._scratch / name).mkdir()
        return Controller(self._scratch / name, hosts=hosts)

    def start(self, controller: Controller, *arguments: str, **variables: Any) -> "subprocess.Popen[str]":
        self._started.append(controller.start("migrate", *arguments, **variables))
        return self._started[-1]

    def close(self) -> None:
        """A test that has failed leaves nothing behind: neither controllers nor what they have started on hosts."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        for host in self.trees:
            for facts in self.progress(host):
                if "since" in facts and Call(*[facts[name] for name in Call._fields]).alive:
                    os.kill(facts["pid"], signal.SIGTERM)

    def progress(self, host: str) -> list[dict[str, Any]]:
        found = []
        for path in self.states[host].glob("progress/*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue  # replaced meanwhile
        return found

    def until(self, seen: Callable[[], Any], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < end, "nothing of that kind has happened"
            time.sleep(0.05)

    def until_copying(self, host: str = "kvm1") -> None:
        self.until(lambda: any(facts.get("stage") == "copy" for facts in self.progress(host)))

    def migrated(self, host: str) -> list[str]:
        return sorted(path.name for path in self.trees[host].glob("*.qcow2"))

    def assert_old_or_new(self) -> None:
        for path, digest in self.before.items():
            retired = path.with_name(path.name + ".qcow1.orig")
            assert sha256(str(path if path.exists() else retired)) == digest
        names = {path.name for tree in self.trees.values() for path in tree.iterdir()}
        assert not [name for name in names if name.startswith(".")]

    def assert_untouched(self, host: str) -> None:
        assert sorted(path.name for path in self.trees[host].iterdir()) == list(IMAGES)

    def complete(self) -> None:
        """A run that is started now does not heed the request, and has nothing left over."""
        played = self.one.run("migrate", migrate_bandwidth="")
        assert played.returncode == 0 and all(len(self.migrated(host)) == len(IMAGES) for host in self.trees), played.output
        self.assert_old_or_new()
        assert not [entry for host in self.trees for entry in os.listdir(self.states[host] / "progress")]


@pytest.fixture(name="build_fleet")
def _build_fleet(tmp_path: pathlib.Path) -> Iterator[Callable[..., Fleet]]:
    built: list[Fleet] = []

    def make(count: int = 1, fast: tuple[str, ...] = ()) -> Fleet:
        built.append(Fleet(tmp_path, count, fast))
        return built[-1]

    yield make
    for fleet in built:
        fleet.close()


def images_of(played: Played, host: str) -> list[tuple[str, str | None, bool]]:
    (done,) = played.results("qcow_convert", host)
    return [(image["action"], image["reason"], image["failed"]) for image in done["images"]]


def said(played: Played, host: str, module: str = "qcow_report") -> str:
    return "; ".join(played.results(module, host)[0]["lines"])


DEFERRED = ("defer", "stopped", False)


def test_hosts_whose_turn_comes_later_begin_nothing(build_fleet: Callable[..., Fleet]) -> None:
    fleet = build_fleet(6, fast=("kvm1",))
    process = fleet.start(fleet.one, "--forks", "1")
    fleet.until_copying("kvm2")
    seen = fleet.other.run("status")
    assert seen.returncode == 0, seen.output
    assert said(seen, "kvm1") == "no run; 3 migrated" and said(seen, "kvm6") == "no run", seen.output
    assert "0 of 3 images done" in said(seen, "kvm2") or "1 of 3 images done" in said(seen, "kvm2"), seen.output
    assert "%s/" % fleet.trees["kvm2"] in said(seen, "kvm2"), seen.output
    assert wrong(seen.results("qcow_status", "kvm2")[0], documented()["qcow_status"], {"failed_when_result"}) == []
    assert not fleet.states["kvm6"].exists(), "nothing is created by who looks"

    stopped = fleet.other.run("stop")
    assert stopped.returncode == 0, stopped.output
    assert stopped.results("qcow_stop", "kvm2")[0]["changed"] and stopped.changed == 1, stopped.output
    left = len(IMAGES) - len(fleet.migrated("kvm2"))
    assert 0 < left < len(IMAGES)
    assert "The run has ended; %d image%s left. Run again to continue." % (left, "s are" if left > 1 else " is") in said(stopped, "kvm2")
    assert "runs that were started before now begin nothing" in said(stopped, "kvm5"), stopped.output

    played = fleet.one.ended(process)
    assert played.returncode == 0, played.output
    assert images_of(played, "kvm2") == [("convert", None, False)] * (len(IMAGES) - left) + [DEFERRED] * left
    for host in ("kvm3", "kvm4", "kvm5", "kvm6"):
        assert images_of(played, host) == [DEFERRED] * len(IMAGES), played.output
        fleet.assert_untouched(host)
        assert os.listdir(fleet.states[host]) == ["stop.json"], "not even the lock was taken"
    fleet.assert_old_or_new()
    assert "no run; %d migrated; the last run was stopped with" % (len(IMAGES) - left) in said(fleet.other.run("status"), "kvm2")
    fleet.complete()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_in_progress_is_undone(build_fleet: Callable[..., Fleet], workers: int) -> None:
    fleet = build_fleet()
    process = fleet.start(fleet.one, migrate_workers=workers)
    fleet.until_copying()
    stopped = fleet.other.run("stop", stop_when="now")
    assert stopped.returncode == 0 and "3 images are left" in said(stopped, "kvm1"), stopped.output
    played = fleet.one.ended(process)
    assert (played.returncode, images_of(played, "kvm1")) == (0, [DEFERRED] * len(IMAGES)), played.output
    fleet.assert_untouched("kvm1")
    fleet.assert_old_or_new()
    fleet.complete()


def test_the_controller_ends_and_the_host_goes_on_until_it_is_stopped(build_fleet: Callable[..., Fleet]) -> None:
    """Ctrl-C: the terminal sends SIGINT to ansible-playbook and to the workers that it has forked."""
    fleet = build_fleet()
    process = fleet.start(fleet.one)
    fleet.until_copying()
    os.killpg(process.pid, signal.SIGINT)
    played = fleet.one.ended(process)
    assert played.returncode not in (0, 2), played.output
    first = said(fleet.other.run("status"), "kvm1")
    assert "of 3 images done" in first and "/kvm1/" in first, first
    fleet.until(lambda: fleet.migrated("kvm1"))  # it goes on
    would = fleet.other.run("stop", "--check")
    assert would.returncode == 0 and would.changed == 2 and "would end" in said(would, "kvm1"), would.output
    asked = fleet.other.run("stop", stop_wait=0)
    assert (asked.returncode, asked.changed) == (0, 1), asked.output
    assert "Look with vmimage.qcow.status." in asked.results("qcow_stop")[0]["msg"], asked.output
    again = fleet.other.run("stop")
    assert (again.returncode, again.changed) == (0, 0), again.output
    done = fleet.migrated("kvm1")
    assert 0 < len(done) < len(IMAGES) and "left. Run again to continue." in said(again, "kvm1"), again.output
    fleet.assert_old_or_new()
    fleet.complete()


def test_without_a_job_on_the_host_the_image_in_progress_is_undone(build_fleet: Callable[..., Fleet]) -> None:
    """With ``progress_interval=0`` the module belongs to the connection; a local one ends with ansible-playbook."""
    fleet = build_fleet()
    process = fleet.start(fleet.one, migrate_progress_interval=0)
    fleet.until_copying()
    process.send_signal(signal.SIGINT)
    fleet.one.ended(process)
    fleet.until(lambda: not fleet.progress("kvm1"))
    fleet.assert_untouched("kvm1")
    assert said(fleet.other.run("status"), "kvm1") == "no run"
    fleet.complete()


def test_a_run_that_waits_for_another_one_ends_too(build_fleet: Callable[..., Fleet]) -> None:
    fleet = build_fleet()
    first = fleet.start(fleet.one)
    fleet.until_copying()
    second = fleet.start(fleet.other, migrate_lock_timeout="1h")
    fleet.until(lambda: any(facts.get("stage") == "waiting" for facts in fleet.progress("kvm1")))
    third = fleet.terminal("third", {"kvm1": {"stop_state_dir": str(fleet.states["kvm1"])}})
    stopped = third.run("stop")
    assert stopped.returncode == 0 and stopped.results("qcow_stop")[0]["waiting"] == 1, stopped.output
    waited, worked = fleet.other.ended(second), fleet.one.ended(first)
    assert (waited.returncode, images_of(waited, "kvm1")) == (0, [DEFERRED] * len(IMAGES)), waited.output
    assert worked.returncode == 0 and DEFERRED in images_of(worked, "kvm1"), worked.output
    fleet.complete()


def test_a_run_that_does_not_end_in_time_is_a_problem(build_fleet: Callable[..., Fleet]) -> None:
    fleet = build_fleet()
    process = fleet.start(fleet.one)
    fleet.until_copying()
    stopped = fleet.other.run("stop", stop_wait="1s")
    assert stopped.returncode == 2 and "has not ended within 1 s; it is at" in stopped.text, stopped.output
    assert "vmimage.qcow.status" in stopped.text
    assert fleet.one.ended(process).returncode == 0
    fleet.complete()


def test_a_host_that_cannot_be_reached(build_fleet: Callable[..., Fleet]) -> None:
    fleet = build_fleet()
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    here = {play + "_state_dir": str(fleet.states["kvm1"]) for play in ("status", "stop")}
    third = fleet.terminal("third", {"gone": nowhere, "kvm1": here})
    for play in ("status", "stop"):
        played = third.run(play)
        assert played.returncode == 4 and "no run" in said(played, "kvm1").lower(), played.output
        assert said(played, "gone") == "NOT REACHED", played.output
