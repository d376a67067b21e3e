# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who looks, and who stops: which runs a request concerns, what is seen from outside, and that nobody is disturbed."""

import json
import os
import pathlib
import threading
import time
from typing import Any, Callable, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import stop
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import Call, boot_id, boot_seconds, this_call
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.lock import Exclusive
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records, State, named
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.status import look, status_of
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.stop_run import stop_run
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require

DAY = 86400


@pytest.fixture(name="state")
def _state(tmp_path: pathlib.Path) -> bytes:
    return os.fsencode(tmp_path / "state")


def images(folder: pathlib.Path, count: int, state: bytes) -> list[Request]:
    paths = [folder / ("%d.qcow" % number) for number in range(count)]
    for number, path in enumerate(paths):
        build(ImageSpec(size=1 << 20, clusters={number: Plain(b"data")})).write(path)
    return [Request(os.fsencode(path), state_dir=state, retire=True) for path in paths]


def call(began: float, boot: str = "") -> Call:
    return Call("t", os.getpid(), 1, boot or boot_id(), began)


def test_a_run_that_began_before_is_concerned_and_a_later_one_is_not() -> None:
    now = boot_seconds()
    request = stop.StopRequest(stop.NOW, boot_id(), now, time.time() - DAY)  # the clock was set back
    assert request.covers(call(now - 1)) and not request.covers(call(now + 1))
    young, old = this_call(), this_call(run_age=3 * 3600.0)
    assert abs(young.began - now) < DAY and old.began == pytest.approx(young.began - 3 * 3600)


def test_after_a_restart_of_the_host_the_clock_decides() -> None:
    now, wall = boot_seconds(), time.time()

    def asked(ago: float) -> stop.StopRequest:
        return stop.StopRequest(stop.NOW, "another start of the host", 5.0, wall - ago)

    before = -DAY  # the run began a day before the host was started
    assert asked(now + DAY / 2).covers(call(before)) and not asked(now + 2 * DAY).covers(call(before))
    assert not asked(now + 60).covers(call(1.0)), "it began after the restart, the request was made before it"


def test_without_a_boot_id_the_clock_decides() -> None:
    made = stop.StopRequest(stop.NOW, "", boot_seconds() + 90 * DAY, time.time() - DAY)  # before a restart, after 90 days
    assert not made.covers(call(boot_seconds() - 1)._replace(boot=""))
    assert made.covers(call(boot_seconds() - 2 * DAY)._replace(boot=""))


def test_a_request_of_a_stranger_is_none(state: bytes) -> None:
    stop.write(state, stop.NOW)
    assert stop.read(state) is not None
    os.chmod(os.path.join(state, b"stop.json"), 0o666)
    assert stop.read(state) is None
    os.chmod(os.path.join(state, b"stop.json"), 0o600)
    os.chmod(state, 0o777)
    with pytest.raises(StateError, match="may have been put there by others"):
        stop.read(state)
    with pytest.raises(StateError, match="may have been put there by others"):
        stop.write(state, stop.NOW)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"when": "now"}', b'{"when": 1, "boot": 1, "at": "x", "time": 0}', b"\xff" * 9000]
)
def test_what_is_no_request_stops_nobody(state: bytes, text: bytes) -> None:
    stop.write(state, stop.NOW)
    pathlib.Path(os.fsdecode(state), "stop.json").write_bytes(text)
    assert stop.read(state) is None


def test_what_a_stopped_run_leaves(tmp_path: pathlib.Path, state: bytes) -> None:
    wanted = images(tmp_path, 2, state)
    stop.write(state, stop.AFTER_IMAGE)
    results = run(wanted, Settings(state))
    assert [(result["action"], result["reason"], result["changed"], result["failed"]) for result in results] == [
        ("defer", "stopped", False, False)
    ] * 2
    assert "run again to go on" in results[0]["msg"] and results[0]["dest"].endswith("0.qcow2")
    assert os.listdir(state) == [b"stop.json"] and not list(tmp_path.glob("*.qcow2"))
    assert all(result["action"] == "convert" for result in run(wanted, Settings(state, check_mode=True))), "a check is no run"


@pytest.mark.parametrize("undo", [lambda choice: roll_back_all(choice, discard_changes=False), lambda choice: clean_all(choice, min_age=0)])
def test_a_rollback_and_a_cleanup_heed_it_between_records(
    tmp_path: pathlib.Path, state: bytes, undo: Callable[[Choice], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(result["changed"] for result in run(images(tmp_path, 3, state), Settings(state)))
    choice, note = Choice(state, paths=(os.fsencode(tmp_path),)), stop.Stop.request
    asked: list[None] = []

    def later(self: stop.Stop) -> Optional[stop.StopRequest]:
        asked.append(None)
        if len(asked) == 2:  # for the second record
            stop.write(state, stop.AFTER_IMAGE)
        return note(self)

    monkeypatch.setattr(stop.Stop, "request", later)
    results = undo(choice)
    assert [result["changed"] for result in results] == [True, False, False]
    assert {(result["action"], result["reason"], result["failed"]) for result in results[1:]} == {("defer", "stopped", False)}
    assert (look(state).last or {})["left"] == 2 and (look(state).last or {})["stopped"]
    asked.clear()
    assert [result["action"] for result in undo(choice)] == ["defer"] * 3


def test_a_host_that_was_never_touched_stays_so(state: bytes) -> None:
    answer = status_of(state, "all")
    assert (answer["running"], answer["records"], answer["last_run"], answer["stopping"], answer["waiting"]) == (None, [], None, None, 0)
    would = stop_run(state, stop.NOW, wait=60, check_mode=True)
    assert (would.changed, would.ended) == (False, True) and not os.path.exists(state)
    asked = stop_run(state, stop.NOW, wait=60, check_mode=False)
    assert (asked.changed, asked.ended, asked.left) == (
        False,
        True,
        None,
    ) and "runs that were started before now begin nothing" in asked.msg
    assert os.stat(os.path.join(state, b"stop.json")).st_mode & 0o777 == 0o600 and os.stat(state).st_mode & 0o777 == 0o700


def test_what_an_interrupted_run_left_and_what_the_running_one_is_at(tmp_path: pathlib.Path, state: bytes) -> None:
    records = Records(state)
    old, new = (tmp_path / name for name in ("old.qcow", "new.qcow"))
    left = records.begin(named(os.fsencode(old)), named(os.fsencode(old) + b"2"))
    left.note(State.COPYING)
    assert status_of(state, "none")["summary"] == {"records": 1, "interrupted": 1, "in_progress": 0, "migrated": 0}
    time.sleep(1.1)  # records tell times to the second
    seen: list[dict[str, Any]] = []

    def found(_around: Any) -> list[Request]:
        return images(tmp_path, 1, state)

    from ansible_collections.vmimage.qcow.plugins.module_utils._migration import progress

    write = progress.Progress._write

    def looking(self: progress.Progress, suffix: bytes, facts: Optional[dict[str, Any]]) -> None:
        write(self, suffix, facts)
        if facts is not None and facts.get("stage") == "copy":
            records.begin(named(os.fsencode(new)), named(os.fsencode(new) + b"2"))
            seen.append(status_of(state, "unfinished"))

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(progress.Progress, "_write", looking)
        run(found, Settings(state))
    assert seen
    running = seen[0]["running"]
    assert (running["stage"], running["images"], running["done"], running["pid"]) == ("working", 1, 0, os.getpid())
    assert [(image["path"], image["stage"]) for image in running["current"]] == [(str(tmp_path / "0.qcow"), "copy")]
    assert {entry["src"]: entry["in_progress"] for entry in seen[0]["records"]} == {str(new): True, str(tmp_path / "0.qcow"): True}
    assert all(entry["unfinished"] is None for entry in seen[0]["records"])
    assert status_of(state, "none")["last_run"]["done"] == 1


def test_a_request_shows_as_long_as_the_run_is_at_work(state: bytes) -> None:
    with Session(state):
        assert status_of(state, "none")["stopping"] is None
        asked = stop_run(state, stop.AFTER_IMAGE, wait=0, check_mode=False)
        assert (asked.changed, asked.ended, asked.left) == (True, False, None) and "Look with vmimage.qcow.status" in asked.msg
        assert status_of(state, "none")["stopping"] == "after_image"
        assert not stop_run(state, stop.AFTER_IMAGE, wait=0, check_mode=False).changed
        assert stop_run(state, stop.NOW, wait=0, check_mode=True).changed, "after the image was asked for, not now"
        with pytest.raises(StateError) as caught:
            stop_run(state, stop.AFTER_IMAGE, wait=0.1, check_mode=False)
        assert caught.value.reason == "running"
    answer = status_of(state, "none")
    assert (answer["stopping"], answer["running"], answer["last_run"]["stopped"]) == (None, None, True)


def test_who_looks_keeps_nobody_from_running(state: bytes) -> None:
    with Exclusive(state):
        pass
    end = threading.Event()
    looked = [0]

    def watch() -> None:
        while not end.is_set():
            look(state)
            looked[0] += 1

    watchers = [threading.Thread(target=watch) for _number in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _attempt in range(300):
            with Exclusive(state, call=this_call()):
                pass
    finally:
        end.set()
        for watcher in watchers:
            watcher.join()
    assert looked[0] > 20


def test_the_name_in_the_lock_of_a_killed_run_is_nobodys(state: bytes) -> None:
    pid = os.fork()
    if pid == 0:
        Exclusive(state, call=this_call()).__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert json.loads(pathlib.Path(os.fsdecode(state), "lock").read_text())["pid"] == pid
    assert look(state).running is None and stop_run(state, stop.NOW, wait=0, check_mode=False).ended


def test_a_user_without_rights_is_told_so(tmp_path: pathlib.Path, state: bytes) -> None:
    require(os.geteuid() == 0, "needs root to become somebody else")
    run(images(tmp_path, 1, state), Settings(state))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing was refused"
        try:
            os.setegid(65534)
            os.seteuid(65534)
            status_of(state, "all")
        except Exception as error:
            text = str(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    told = os.read(reading, 4096).decode()
    os.close(reading)
    os.close(writing)
    assert "cannot be read" in told and "become" in told, told
