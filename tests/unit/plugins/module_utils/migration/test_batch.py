# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Limits of a run, plans that are held to, and the status files, without Ansible."""

import json
import os

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host.files import identity
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import started
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import summary
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.progress import Progress
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk


def images(folder, number, *, filled=64):
    paths = []
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


def test_check_mode_tells_what_would_be_deferred(tmp_path):
    results = run(requests(tmp_path, images(tmp_path, 2)), settings(tmp_path, max_bytes=1, check_mode=True))
    assert [result["action"] for result in results] == ["convert", "defer"]


def test_no_image_is_begun_after_the_window(tmp_path):
    for workers in (1, 2):
        results = run(requests(tmp_path, images(tmp_path, 3)), settings(tmp_path, max_minutes=0, workers=workers))
        assert [result["reason"] for result in results] == ["deferred"] * 3
        assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))


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
