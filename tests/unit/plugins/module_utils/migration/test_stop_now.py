# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stopped at each state that a record reaches, before anything is planned, while leftovers are finished: the results say what has become of each image."""

import contextlib
import os
import pathlib
import threading
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import commit, leftovers, stop
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import execute as execution
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.lock import Exclusive
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Record, Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.stop_run import stop_run
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build

BASE = ImageSpec(size=1 << 20, clusters={1: Plain(b"base")})
CHAIN = {"over.qcow": ImageSpec(size=1 << 20, backing=Backing(b"base.qcow")), "base.qcow": BASE}


def run_stopped(wanted: list[Request], state: bytes, at: int, patch: pytest.MonkeyPatch, when: str = "now") -> list[dict[str, Any]]:
    """It is stopped when the ``at``-th state is noted in a record."""
    note, noted = Record.note, [0]

    def noting(self: Record, what: str, **facts: Any) -> None:
        note(self, what, **facts)
        noted[0] += 1
        if noted[0] == at:
            stop_run(state, when, wait=0, check_mode=False)

    with patch.context() as patched:
        patched.setattr(Record, "note", noting)
        return run(wanted, Settings(state))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("specs", [CHAIN, {"base.qcow": BASE}], ids=["chain", "single"])
def test_at_each_state(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, specs: dict[str, ImageSpec], in_place: bool) -> None:
    noted = 5 * len(specs)  # copying, verified, published, repointed, (retired,) done
    for at in range(1, noted + 1):
        scene = tmp_path / str(at)
        scene.mkdir()
        for name, spec in specs.items():
            build(spec).write(scene / name)
        state = os.fsencode(tmp_path / ("state%d" % at))
        paths = [os.fsencode(scene / name) for name in specs]
        wanted = [Request(path, state_dir=state, retire=True, dest=path if in_place else None) for path in paths]
        results = run_stopped(wanted, state, at, monkeypatch)
        assert not any(result["failed"] for result in results), (at, results)
        last = {record.path_of("src"): record for record in Records(state).all()}
        for path, result in zip(paths, results):
            record = last.get(path)
            if record is None or record.state == "failed":
                assert (result["action"], result["reason"], result["changed"]) == ("defer", "stopped", False), (at, result)
            elif record.state == "done":
                assert result["action"] in ("noop", "convert") and result["changed"], (at, result)
            else:
                assert in_place and record.state == "published", (at, record.state)
                assert result["changed"] and "the next run finishes it" in result["msg"] and result["record"] == record.id, (at, result)
        if not in_place:
            assert len({result["changed"] for result in results}) == 1, (at, results)
            assert len(os.listdir(scene)) == len(specs) * (2 if results[0]["changed"] else 1), at
        if os.path.exists(os.path.join(state, b"stop.json")):
            os.unlink(os.path.join(state, b"stop.json"))  # the next run is in the same process
        assert not any(result["failed"] for result in run(wanted, Settings(state))), at
        assert len(os.listdir(scene)) == 2 * len(specs), at


def three(folder: pathlib.Path, state: bytes) -> list[Request]:
    for number in range(3):
        build(BASE).write(folder / ("%d.qcow" % number))
    return [Request(os.fsencode(folder / ("%d.qcow" % number)), state_dir=state, retire=True) for number in range(3)]


@pytest.mark.parametrize("fail_on_in_use", [True, False])
def test_before_anything_is_planned_each_image_has_a_result(tmp_path: pathlib.Path, fail_on_in_use: bool) -> None:
    state = os.fsencode(tmp_path / "state")
    wanted = three(tmp_path, state)
    stop.write(state, stop.AFTER_IMAGE)
    results = run(wanted, Settings(state, fail_on_in_use=fail_on_in_use))
    assert [result["reason"] for result in results] == ["stopped"] * 3


def test_while_leftovers_are_finished_the_others_are_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = os.fsencode(tmp_path / "state")
    wanted = three(tmp_path, state)
    with monkeypatch.context() as patched:  # three runs that died before they gave the result its name
        patched.setattr(leftovers, "look_after", lambda session: [])
        for request in wanted:
            pid = os.fork()
            if pid == 0:
                patched.setattr(commit, "_publish", lambda *dummy: os._exit(9))
                try:
                    run([request], Settings(state))
                finally:
                    os._exit(1)
            assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 9
    assert [record.state for record in Records(state).all()] == ["verified"] * 3
    results = run_stopped(wanted, state, 1, monkeypatch, when="after_image")
    assert [record.state for record in Records(state).all()] == ["done", "verified", "verified"]
    assert [(result["action"], result["changed"]) for result in results] == [("noop", False), ("defer", False), ("defer", False)]
    assert all("the next run finishes it" in result["msg"] for result in results[1:])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_that_cannot_be_read_begins_nothing_and_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    state = os.fsencode(tmp_path / "state")
    wanted = three(tmp_path, state)
    real = execution.execute

    def execute(*arguments: Any) -> Any:
        outcome = real(*arguments)
        with contextlib.suppress(FileExistsError):  # of two workers, one is the first to end
            os.symlink("/nonexistent", os.path.join(state, b"stop.json"))
        return outcome

    monkeypatch.setattr(execution, "execute", execute)
    results = run(wanted, Settings(state, workers=workers))
    assert results[0]["changed"] and not results[0]["failed"]
    assert (results[2]["failed"], results[2]["changed"]) == (True, False) and "cannot be read" in results[2]["msg"]


def test_what_failed_or_was_deferred_is_left(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = os.fsencode(tmp_path / "state")
    wanted = three(tmp_path, state)
    nobody = stop_run(state, "after_image", wait=0, check_mode=False).msg
    assert "none has ever used the state_dir %s" % os.fsdecode(state) in nobody, nobody
    os.unlink(os.path.join(state, b"stop.json"))

    def execute(plan: Any, *dummy: Any) -> Any:
        stop.write(state, stop.AFTER_IMAGE)
        raise QcowError("the disk is broken", plan.request.src, reason="io")

    monkeypatch.setattr(execution, "execute", execute)
    results = run(wanted, Settings(state, max_bytes=1))
    assert [result["action"] for result in results] == ["convert", "defer", "defer"]
    told = stop_run(state, "after_image", wait=0, check_mode=False)
    assert told.left == 2 and "2 images are left; 1 failed. Run again to continue." in told.msg, told.msg
    assert "the last one was stopped and ended at 20" in told.msg


def test_a_rollback_that_was_stopped_while_it_waited_does_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the request meanwhile: it has no lock."""
    state = os.fsencode(tmp_path / "state")
    assert all(result["changed"] for result in run(three(tmp_path, state), Settings(state)))
    with Exclusive(state):
        stopping = threading.Timer(0.5, lambda: stop.write(state, stop.AFTER_IMAGE))
        stopping.start()
        monkeypatch.setattr(stop.Stop, "request", lambda self: None)
        results = roll_back_all(Choice(state, paths=(os.fsencode(tmp_path),), wait=60), discard_changes=False)
        stopping.join()
    assert [(result["action"], result["reason"]) for result in results] == [("defer", "stopped")] * 3
    assert os.listdir(os.path.join(state, b"progress")) == []
