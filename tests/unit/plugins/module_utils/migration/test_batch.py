# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Limits of a run, plans that are held to, and the status files, without Ansible."""

import json
import os
import pathlib
import time

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ImageInUse, NoSpace
from ansible_collections.vmimage.qcow.plugins.module_utils._host import free_space
from ansible_collections.vmimage.qcow.plugins.module_utils._host.files import identity
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import execute as execution
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import started
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.execute import Migration
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import summary
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.progress import Progress
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records, State, named
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.window import Estimates
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, build
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk


def images(folder, number, *, filled=64):
    paths = []
    folder.mkdir(exist_ok=True)
    for index in range(number):
        paths.append(os.fsencode(folder / f"{index}.qcow"))
        build(disk(index, size=MIB, filled=filled)).write(os.fsdecode(paths[-1]))
    return paths


def settings(folder, **more):
    return Settings(os.fsencode(folder / "state"), **more)


def requests(folder, paths, **more):
    return [Request(path, state_dir=os.fsencode(folder / "state"), retire=True, **more) for path in paths]


def test_a_run_ends_before_it_copies_too_much_and_the_next_goes_on(tmp_path):
    paths = images(tmp_path, 4)
    limit = 2 * 64 * 4096
    actions = [result["action"] for result in run(requests(tmp_path, paths), settings(tmp_path, max_bytes=limit))]
    assert actions == ["convert", "convert", "defer", "defer"]
    results = run(requests(tmp_path, paths), settings(tmp_path, max_bytes=limit))
    assert [result["action"] for result in results] == ["noop", "noop", "convert", "convert"]
    assert not any(result["failed"] for result in results)


def test_an_image_larger_than_the_limit_is_migrated_first(tmp_path):
    paths = images(tmp_path, 2)
    results = run(requests(tmp_path, paths), settings(tmp_path, max_bytes=1))
    assert [result["changed"] for result in results] == [True, False]
    assert summary(results)["deferred"] == 1 and summary(results)["failed"] == 0


def test_what_was_not_asked_for_is_left(tmp_path):
    paths = images(tmp_path, 3)
    only = [os.fsdecode(paths[1])]
    results = run(requests(tmp_path, paths), settings(tmp_path, only=only))
    assert [(result["action"], result["reason"]) for result in results] == [
        ("defer", "unplanned"),
        ("convert", None),
        ("defer", "unplanned"),
    ]
    again = run(requests(tmp_path, paths), settings(tmp_path, only=only))
    assert [result["action"] for result in again] == ["defer", "noop", "defer"]


def test_a_chain_is_left_where_one_of_it_was_not_asked_for(tmp_path):
    build(ImageSpec(size=MIB)).write(tmp_path / "base.qcow")
    build(ImageSpec(size=MIB, backing=Backing(b"base.qcow"))).write(tmp_path / "overlay.qcow")
    paths = [os.fsencode(tmp_path / name) for name in ("base.qcow", "overlay.qcow")]
    for only, action in ([os.fsdecode(paths[1])], "defer"), ([os.fsdecode(path) for path in paths], "convert"):
        results = run(requests(tmp_path, paths), settings(tmp_path, only=only))
        assert [result["action"] for result in results] == [action] * 2


def test_check_mode_tells_what_would_be_deferred(tmp_path):
    results = run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, max_bytes=1, check_mode=True))
    assert [result["action"] for result in results] == ["convert", "defer"]


def test_no_image_is_begun_after_the_window(tmp_path):
    for workers in (1, 2):
        results = run(requests(tmp_path, images(tmp_path, 3)), settings(tmp_path, max_minutes=0, workers=workers))
        assert [(result["action"], result["reason"], result["msg"]) for result in results] == [
            ("defer", "window", "deferred: the window of this run has closed; run again to go on")
        ] * 3
        assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))


def took(folder, seconds):
    """A record of an earlier migration on this host: 64 clusters of 4 KiB took so long."""
    src, dest = named(b"/gone/old.qcow", ino=1, size=1, mtime_ns=1), named(b"/gone/old.qcow2")
    record = Records(os.fsencode(folder / "state")).begin(src, dest)
    record.note(State.VERIFIED, copy_bytes=64 * 4096, seconds=seconds)
    record.note(State.CLEANED)


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_would_not_be_ready_in_time_is_not_begun(tmp_path, workers, check_mode):
    took(tmp_path, 3600.0)
    results = run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, max_minutes=30, workers=workers, check_mode=check_mode))
    assert [(result["action"], result["reason"]) for result in results] == [("defer", "window")] * 2
    assert "it would take about 1 h 00 min, and the window of this run closes in 30 min" in results[0]["msg"]
    assert len(os.listdir(tmp_path / "state" / "records")) == 1


def test_an_estimate_that_was_wrong_is_mended_by_what_is_measured(tmp_path):
    took(tmp_path, 70.0)
    results = run(requests(tmp_path, images(tmp_path, 3)), settings(tmp_path, max_minutes=2, check_mode=True))
    assert [result["action"] for result in results] == ["convert", "defer", "defer"]
    results = run(requests(tmp_path, images(tmp_path, 3)), settings(tmp_path, max_minutes=2))
    assert [result["action"] for result in results] == ["convert"] * 3


def test_a_smaller_image_may_still_be_begun(tmp_path):
    (large,) = images(tmp_path, 1)
    small = os.fsencode(tmp_path / "small.qcow")
    build(disk(1, size=MIB, filled=1)).write(os.fsdecode(small))
    results = run(requests(tmp_path, [large, small], bandwidth=4096), settings(tmp_path, max_minutes=0.1, check_mode=True))
    assert [result["action"] for result in results] == ["defer", "convert"]  # 128 and 2 seconds, by the limit alone


def test_only_what_was_migrated_tells_how_long_images_take(tmp_path, monkeypatch):
    def execute(plan, *dummy):
        raise ImageInUse("is in use", plan.request.src)

    learned = []
    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(Estimates, "learn", lambda self, size, seconds, images=1: learned.append((seconds, images)))
    run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, max_minutes=10))
    assert learned == []
    monkeypatch.undo()

    def slowly(self, plans):  # as a guest that is shut down first
        time.sleep(0.5)
        return [result for plan in plans for result in self._carry_out([plan])]

    monkeypatch.setattr(Estimates, "learn", lambda self, size, seconds, images=1: learned.append((seconds, images)))
    monkeypatch.setattr(batch._Batch, "_job", slowly)
    monkeypatch.setattr(batch.domain_policy, "together", lambda units, domains: [sum(units, [])])
    results = run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, max_minutes=10))
    ((seconds, count),) = learned
    assert count == 2 and seconds >= 0.5 + sum(result["seconds"] for result in results) - 0.01, "they are rounded"


def test_a_limit_of_last_night_is_no_speed(tmp_path):
    (path,) = images(tmp_path, 1)
    run(requests(tmp_path, [path], bandwidth=MIB), settings(tmp_path))
    assert Estimates(Records(os.fsencode(tmp_path / "state")).all()).__dict__ == Estimates().__dict__


def test_an_image_that_needs_more_than_a_whole_window_is_told_so(tmp_path):
    took(tmp_path, 3600.0)
    wanted = requests(tmp_path, images(tmp_path, 1))
    for age, too_short in ((0.0, True), (3600.0, False)):
        (result,) = run(wanted, settings(tmp_path, max_minutes=30, run_age=age, check_mode=True))
        assert ("the whole window of 30 min is too short for it, choose a longer one" in result["msg"]) == too_short, result


def test_a_result_that_is_in_place_is_not_left_to_another_run(tmp_path, monkeypatch):
    def complete(self):
        raise ImageInUse("is being opened", self.plan.request.src)

    monkeypatch.setattr(Migration, "complete", complete)
    (result,) = run(requests(tmp_path, images(tmp_path, 1)), settings(tmp_path, fail_on_in_use=False))
    assert (result["failed"], result["reason"]) == (True, "in-use")


def test_what_never_fits_is_refused_and_what_lacks_files_or_records_is_deferred(tmp_path, monkeypatch):
    real, asked, room = free_space.filesystem, [], {}

    def filesystem(directory):
        asked.append(directory)
        where = "state" if directory.startswith(state) else "images"
        return real(directory)._replace(key=(1, len(where)), free=1 << 40, free_inodes=1 << 20)._replace(**room.get(where, {}))

    monkeypatch.setattr(free_space, "filesystem", filesystem)
    state = os.fsencode(tmp_path / "state")
    os.mkdir(state)
    wanted = requests(tmp_path, images(tmp_path / "images", 5))

    def outcome(**rooms):
        room.clear()
        room.update(rooms)
        asked.clear()
        results = run(wanted, settings(tmp_path, reserve=0, fail_on_no_space=False, check_mode=True))
        assert len(asked) == len(set(asked)), "each directory once"
        return sorted((result["action"], result["reason"], result["failed"]) for result in results)

    done, left = ("convert", None, False), ("defer", "space", False)
    assert outcome(state={"free": 3 << 16}) == [done] * 3 + [left] * 2
    assert outcome(images={"free_inodes": 2}) == [done] * 2 + [left] * 3
    assert outcome(images={"free": 1000}) == [("refuse", "no-space", True)] * 5


def test_as_many_as_fit(tmp_path):
    with mounted("tmpfs", str(tmp_path)) as point:
        folder = pathlib.Path(point)
        wanted = requests(tmp_path, [*images(folder, 3, filled=200), *images(folder / "small", 2, filled=1)])
        needs = [result["after"]["file_size"] for result in run(wanted, settings(tmp_path, check_mode=True, reserve=0))]
        free = os.statvfs(point)
        reserve = free.f_bavail * free.f_frsize - sum(needs[1:])
        for check_mode in (True, False):
            with pytest.raises(NoSpace) as refused:
                run(wanted, settings(tmp_path, reserve=reserve, check_mode=check_mode))
            assert "fail_on_no_space=false" in str(refused.value) and not list(folder.rglob("*.qcow2"))
        for check_mode in (True, False):
            results = run(wanted, settings(tmp_path, reserve=reserve, fail_on_no_space=False, check_mode=check_mode))
            assert [result["action"] for result in results].count("convert") == 4, results  # of the large ones, one is too many
            (left,) = [result for result in results if result["action"] == "defer"]
            assert left["reason"] == "space" and left["src"].endswith(("/0.qcow", "/1.qcow", "/2.qcow")) and "are missing" in left["msg"]


def test_an_image_changed_since_the_plan_is_refused_and_the_others_are_done(tmp_path):
    paths = images(tmp_path, 2)
    wanted = []
    for path, request in zip(paths, requests(tmp_path, paths)):
        fd = os.open(path, os.O_RDONLY)
        found = identity(fd)
        os.close(fd)
        wanted.append(request._replace(expect=(("ino", found.ino), ("mtime_ns", found.mtime_ns), ("size", found.size))))
    os.utime(paths[0], (1, 1))
    first, second = run(wanted, settings(tmp_path))
    assert (first["failed"], first["reason"]) == (True, "changed")
    assert "mtime_ns was" in first["msg"] and "Scan again" in first["msg"]
    assert os.path.exists(paths[0]) and second["changed"]


@pytest.mark.parametrize("token", ["abc", None, "../../x"])
def test_status_files_tell_and_go_away(tmp_path, monkeypatch, token):
    """Also where nobody watches; a token is no path."""
    seen = []
    write = Progress._write

    def spy(self, suffix, facts):
        write(self, suffix, facts)
        if facts is not None:
            folder = tmp_path / "state" / "progress"
            seen.extend(json.loads(path.read_text()) for path in folder.glob("*.json"))

    monkeypatch.setattr(Progress, "_write", spy)
    run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, watched_as=token))
    assert os.listdir(tmp_path / "state" / "progress") == []
    assert {facts["token"].isalnum() and (facts["token"] == "abc") == (token == "abc") for facts in seen} == {True}
    calls = [facts for facts in seen if "path" not in facts]
    workers = [facts for facts in seen if "path" in facts]
    assert [
        stage for stage in ("waiting", "recovering", "planning", "working", "ending") if any(call["stage"] == stage for call in calls)
    ] == ["waiting", "recovering", "planning", "working", "ending"]
    assert calls[-1]["done"] == calls[-1]["images"] == 2
    assert calls[-1]["bytes"] == calls[-1]["total"] == 2 * 2 * 64 * 4096
    assert {worker["stage"] for worker in workers} == {"copy", "verify"}
    assert calls[0]["start"] == started(os.getpid())


def test_what_a_killed_call_has_left_is_swept(tmp_path):
    folder = tmp_path / "state" / "progress"
    folder.mkdir(parents=True)
    (folder / "dead.json").write_text("{}")
    run(requests(tmp_path, images(tmp_path, 1)), settings(tmp_path, watched_as="abc"))
    assert os.listdir(folder) == []
