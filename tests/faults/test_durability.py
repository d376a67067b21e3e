# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of durability, read from the system calls of a migration: what a step relies on is on storage before the step is taken."""

import os
import re
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Scene, Server


class Calls:
    """The changing calls of a job in order; positions in them."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def first(self, pattern: str, after: int = -1) -> int:
        for index in range(after + 1, len(self.lines)):
            if re.search(pattern, self.lines[index]):
                return index
        raise AssertionError("no call matches %r after %d" % (pattern, after))

    def last(self, pattern: str) -> int:
        return max(index for index, line in enumerate(self.lines) if re.search(pattern, line))

    def recorded(self, state: str) -> tuple[int, int]:
        """Where a state's line is written, and where it is synced."""
        written = self.first(r'write\(\d+<[^>]*\.jsonl(\.new)?>, ".*\\"state\\": \\"%s\\"' % state)
        return written, self.first(r"fsync\(\d+<[^>]*\.jsonl(\.new)?>\) = 0", written)

    def synced(self, directory: str, after: int) -> int:
        return self.first(r"fsync\(\d+<%s>\) = 0" % re.escape(directory), after)


@pytest.fixture(params=["other-name", "same-name"])
def migration(request: Any, server: Server, tmp_path: Any) -> tuple[Scene, Calls]:
    scene = Scene(str(tmp_path), **({"keep_name": True} if request.param == "same-name" else {}))
    job = scene.job
    lines = server.trace(os.path.join(str(tmp_path), "log"), CHANGING, job.pop("job"), **job)
    return scene, Calls(lines)


def test_record_before_act_and_act_before_record(migration: tuple[Scene, Calls]) -> None:
    scene, calls = migration
    records = os.path.join(scene.state, "records")
    planned = calls.recorded("planned")
    named = calls.first(r"rename\(.*\.jsonl\.new", planned[1])
    on_storage = calls.synced(records, named)
    created = calls.first(r"openat\(.*\.vmimage-qcow\.[^\"]*\.tmp\", O_RDWR\|O_CREAT\|O_EXCL")
    assert on_storage < created, "the record is on storage before the temporary file is made"
    copying = calls.recorded("copying")
    wrote = calls.first(r"(pwrite64|pwritev|copy_file_range|ftruncate)\(.*\.tmp>")
    assert copying[1] < wrote, "copying is recorded before the first byte is written"

    last_data = calls.last(r"(pwrite64|pwritev|copy_file_range|ftruncate|fchmod|utimensat)\(\d+<[^>]*\.tmp>")
    data_synced = calls.first(r"fsync\(\d+<[^>]*\.tmp>\) = 0", last_data)
    name_synced = calls.synced(scene.images, data_synced)
    verified = calls.recorded("verified")
    assert last_data < data_synced < name_synced < verified[0], "data and name are on storage before the record says verified"

    published_act = calls.first(r"rename(at2?)?\(.*\.vmimage-qcow\.[^\"]*\.tmp\"")
    assert verified[1] < published_act, "verified is on storage before the result gets its name"
    published_synced = calls.synced(scene.images, published_act)
    published = calls.recorded("published")
    assert published_synced < published[0], "the name is on storage before the record says published"

    repointed, retired, done = calls.recorded("repointed"), calls.recorded("retired"), calls.recorded("done")
    if scene.in_place:
        linked = calls.first(r"link(at)?\(")
        assert verified[1] < linked < calls.synced(scene.images, linked) < published_act, (
            "the old file has its second name before the first goes"
        )
    else:
        renamed = calls.first(r"renameat2\(.*disk\.qcow\", .*\.qcow1\.orig\"")
        assert repointed[1] < renamed, "repointed is on storage before the original loses its name"
        assert renamed < calls.synced(scene.images, renamed) < retired[0], "the new name is on storage before the record says retired"
    assert published[1] < repointed[0] < repointed[1] < retired[0] < retired[1] < done[0] < done[1]


def test_source_is_never_opened_for_writing(migration: tuple[Scene, Calls]) -> None:
    scene, calls = migration
    opened = [
        line
        for line in calls.lines
        if re.search(r'openat\(\d+<%s>, "%s"' % (re.escape(scene.images), re.escape(os.path.basename(scene.src))), line)
    ]
    assert opened
    assert not [line for line in opened if "O_WRONLY" in line or "O_RDWR" in line]
    written = [line for line in calls.lines if re.match(r"\d+ +(p?write\w*|ftruncate|fallocate)\(\d+<%s>" % re.escape(scene.src), line)]
    assert written == []


def test_rollback(server: Server, tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    job = scene.job
    server.call(job.pop("job"), **job)
    calls = Calls(server.trace(os.path.join(str(tmp_path), "log"), CHANGING, "roll_back", state=scene.state, paths=[scene.images]))
    begun = calls.recorded("rolling-back")
    back = calls.first(r"renameat2\(.*\.qcow1\.orig\"")
    gone = calls.first(r"unlink(at)?\(.*disk\.qcow2\"")
    over = calls.recorded("rolled-back")
    assert begun[1] < back < calls.synced(scene.images, back) < gone, "the original is back on storage before the result goes"
    assert gone < calls.synced(scene.images, gone) < over[0]


def test_cleanup(server: Server, tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    job = scene.job
    server.call(job.pop("job"), **job)
    calls = Calls(server.trace(os.path.join(str(tmp_path), "log"), CHANGING, "clean", state=scene.state))
    begun, over = calls.recorded("cleaning"), calls.recorded("cleaned")
    gone = calls.first(r"unlink(at)?\(.*\.qcow1\.orig\"")
    assert begun[1] < gone < calls.synced(scene.images, gone) < over[0]
