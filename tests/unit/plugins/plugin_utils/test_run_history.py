# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The history of runs: hosts of one run are added up, and a line that was cut off costs no other."""

import pathlib
from typing import Any

from ansible_collections.vmimage.qcow.plugins.plugin_utils import run_history
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.tests.support.returned import converted


def add(directory: pathlib.Path, number: int, play: str, host: str, **done: Any) -> None:
    started = "2026-11-%02dT22:00:00Z" % number
    run = Run(play, "2026-11-%02dT23:%02d:00Z" % (number, len(host)), id="run%d" % number, started=started)
    run_history.add(str(directory), run_history.line_of(host, run, Results(done=done)))


def test_hosts_of_a_run_are_added_up(tmp_path: pathlib.Path) -> None:
    refused = converted("/b", changed=False, failed=True, action="refuse")
    deferred = converted("/c", changed=False, action="defer")
    done = converted("/a", before={"allocated_size": 4096})
    add(tmp_path, 1, "migrate", "one", images=[done, refused])
    add(tmp_path, 1, "migrate", "three", images=[done, done, deferred])
    add(tmp_path, 1, "migrate", "away", unreachable=True)
    add(tmp_path, 1, "scan", "one")
    add(tmp_path, 2, "rollback", "one", images=[dict(done, changed=True), dict(done, changed=False)])
    add(tmp_path, 3, "cleanup", "one", images=[{"changed": True, "failed": False, "returns": 512}])
    assert [(run["id"], run["play"]) for run in run_history.latest(str(tmp_path))] == [
        ("run3", "cleanup"),
        ("run2", "rollback"),
        ("run1", "migrate"),
        ("run1", "scan"),
    ]
    cleanup, rollback, migrate, _scan = run_history.latest(str(tmp_path))
    assert migrate == {
        "id": "run1",
        "play": "migrate",
        "started": "2026-11-01T22:00:00Z",
        "ended": "2026-11-01T23:05:00Z",
        "hosts": 3,
        "reached": 2,
        "migrated": 3,
        "failed": 1,
        "deferred": 1,
        "rolled_back": 0,
        "cleaned": 0,
        "bytes": 3 * 4096,
    }
    assert (rollback["rolled_back"], cleanup["cleaned"], cleanup["bytes"]) == (1, 1, 512)


def test_line_that_was_cut_off(tmp_path: pathlib.Path) -> None:
    add(tmp_path, 1, "migrate", "one")
    with open(tmp_path / run_history.NAME, "a", encoding="utf-8") as stream:
        stream.write('{"id": "run2", "pl')
    add(tmp_path, 3, "migrate", "one")
    assert [run["id"] for run in run_history.latest(str(tmp_path))] == ["run3", "run1"]


def test_the_last_twenty_are_told(tmp_path: pathlib.Path) -> None:
    for number in [*range(1, 31), 5]:  # one that has been going on for long
        add(tmp_path, number, "scan", "one")
    told = run_history.latest(str(tmp_path))
    assert [run["id"] for run in told] == ["run%d" % number for number in range(30, 10, -1)]


def test_no_history_yet(tmp_path: pathlib.Path) -> None:
    assert run_history.latest(str(tmp_path)) == []
