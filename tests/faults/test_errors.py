# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""EIO and ENOSPC at every system call of a migration, and filesystems that really are full.

After each: an error of our own family that names what failed, the old state (or, once the result has its name, both files and a record that
the next run finishes), the space given back, and a next run that converges.
"""

import os
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError, reason_of
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.execute import execute
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import CONVERT
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.planner import make_plan
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import DENSE, FAILING, Point, Scene, Server, points
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted

MODES = {"other-name": {}, "same-name": {"keep_name": True}, "dense": {"spec": DENSE, "format": "raw"}}
REMOVING = ("unlink", "unlinkat")


def message_of(answer: dict[str, Any]) -> str:
    """What the operator would read; empty where the call's failure did not matter."""
    if "raised" in answer:
        return answer["msg"]
    return "; ".join(result["msg"] for result in answer["results"] if result["failed"])


def leftovers(scene: Scene) -> list[str]:
    return [name for name in scene.listing() if name.startswith(".vmimage-qcow.")]


def one_fault(server: Server, scene: Scene, point: Point, error: str, *, from_there_on: bool) -> str:
    """Let one fault happen and see that all is well; returns ``refused``, ``in place`` or ``harmless``."""
    job = scene.job
    answer = server.failed_at(point, error, job.pop("job"), from_there_on=from_there_on, **job)
    message = message_of(answer)
    scene.assert_whole()
    published = os.path.exists(scene.dest) and scene.states()[-1:] != ["failed"] and (not scene.in_place or os.path.exists(scene.retired))
    if message:
        assert len(message) > 20, message
        if not published and point.call not in REMOVING:
            # A directory that cannot be synced after the removal, or a record that cannot be written, is looked after by the next run.
            assert leftovers(scene) == [], "the space was not given back"
            assert os.path.exists(scene.src)
    else:
        scene.assert_migrated()
    job = scene.job
    again = server.call(job.pop("job"), **job)
    assert message_of(again) == "", again
    scene.assert_migrated()
    return "harmless" if not message else "in place" if published else "refused"


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("mode", sorted(MODES))
def test_each_call_fails(server: Server, tmp_path: Any, tell: Callable[..., None], mode: str, error: str) -> None:
    scene = Scene(str(tmp_path), **MODES[mode])
    job = scene.job
    found = points(server.trace(os.path.join(str(tmp_path), "log"), FAILING, job.pop("job"), **job), FAILING)
    if mode == "dense":
        found = [point for point in found if point.helper or ".tmp" in point.text]
    ends: dict[str, int] = {}
    for point in found:
        scene = Scene(str(tmp_path), **MODES[mode])
        try:
            end = one_fault(server, scene, point, error, from_there_on=False)
        except AssertionError as problem:
            raise AssertionError(
                "%s at %s: %s\nstates %s, files %s" % (error, point, problem, scene.states(), scene.listing())
            ) from problem
        ends[end] = ends.get(end, 0) + 1
    tell(
        "%s, %s: %d points: %s" % (error, mode, len(found), ", ".join("%d %s" % (count, end) for end, count in sorted(ends.items()))),
        errors=len(found),
    )


@pytest.mark.parametrize("call", ["pwrite64", "write", "fsync", "ftruncate"])
def test_storage_stays_broken(server: Server, tmp_path: Any, tell: Callable[..., None], call: str) -> None:
    """From some call on every call of its kind fails, those of the cleaning up included."""
    scene = Scene(str(tmp_path))
    job = scene.job
    found = [
        point
        for point in points(server.trace(os.path.join(str(tmp_path), "log"), FAILING, job.pop("job"), **job), FAILING)
        if point.call == call
    ]
    for point in found:
        scene = Scene(str(tmp_path))
        job = scene.job
        answer = server.failed_at(point, "ENOSPC" if call != "fsync" else "EIO", job.pop("job"), from_there_on=True, **job)
        scene.assert_whole()
        if message_of(answer):
            assert leftovers(scene) == [] or call in ("fsync",), point
        job = scene.job
        assert message_of(server.call(job.pop("job"), **job)) == ""
        scene.assert_migrated()
    tell("%s broken for good: %d points" % (call, len(found)), errors=len(found))


def full_disk(directory: str, room: int) -> str:
    """Fill a filesystem until ``room`` bytes are left; returns the file that fills it."""
    usage = os.statvfs(directory)
    filler = os.path.join(directory, "filler")
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        left = usage.f_bavail * usage.f_frsize - room
        while left > 0:
            left -= os.write(fd, bytes(min(left, 1 << 16)))
        os.fsync(fd)
    finally:
        os.close(fd)
    return filler


def used(directory: str) -> int:
    usage = os.statvfs(directory)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


@pytest.mark.parametrize("fstype", ["tmpfs", "ext4"])
def test_disk_fills_up_during_the_copy(tmp_path: Any, tell: Callable[..., None], fstype: str) -> None:
    """Somebody takes the space after it had been checked; the copy meets a disk that really is full."""
    with mounted(fstype, str(tmp_path), size_mib=24) as point:
        rooms = [0, 4096, 65536, 300000, 1 << 20, 2 << 20]
        for room in rooms:
            scene = Scene(point, spec=ImageSpec(size=8 << 20, clusters={index: Plain(os.urandom(4096)) for index in range(1024)}))
            request = Request(os.fsencode(scene.src), retire=True, state_dir=os.fsencode(os.path.join(str(tmp_path), "state")))
            records = Records(request.state_dir)
            plan = make_plan(request, records)
            assert plan.action == CONVERT
            filler = full_disk(point, room)
            before = used(point)
            with pytest.raises((QcowError, OSError)) as caught:
                execute(plan, Session(request.state_dir))
            code = getattr(caught.value, "reason", None) or reason_of(caught.value)
            assert code == "no-space", caught.value
            scene.assert_as_before()
            assert used(point) <= before + 65536, "space was not given back"
            os.unlink(filler)
            result = batch.run([request], batch.Settings(request.state_dir, reserve=0))[0]
            assert not result["failed"], result["msg"]
            assert scene.listing() == scene.migrated()
        tell("%s filled up with %d different rests" % (fstype, len(rooms)), filesystems_filled=len(rooms))


@pytest.mark.parametrize("fstype", ["tmpfs", "ext4"])
def test_state_directory_on_a_full_disk(tmp_path: Any, fstype: str) -> None:
    """No record, no change."""
    with mounted(fstype, str(tmp_path), size_mib=24) as point:
        scene = Scene(str(tmp_path / "elsewhere"), state=os.path.join(point, "state"))
        os.makedirs(os.path.join(scene.state, "records"))
        full_disk(point, 0)
        try:
            results = batch.run(
                [Request(os.fsencode(scene.src), retire=True, state_dir=os.fsencode(scene.state))], batch.Settings(os.fsencode(scene.state))
            )
            assert results[0]["failed"]
        except QcowError as error:
            assert error.reason in ("no-space", "state")
        scene.assert_as_before()


def test_plan_that_does_not_fit_writes_nothing(tmp_path: Any) -> None:
    """Three images of which any one would fit, but not all: refused together, with everything else that is wrong, in one list."""
    with mounted("ext4", str(tmp_path), size_mib=24) as point:
        requests = []
        state = os.fsencode(os.path.join(str(tmp_path), "state"))
        for number in range(3):
            path = os.path.join(point, "disk%d.qcow" % number)
            build(ImageSpec(size=8 << 20, clusters={index: Plain(os.urandom(4096)) for index in range(800)})).write(path)
            requests.append(Request(os.fsencode(path), retire=True, state_dir=state))
        requests.append(Request(os.fsencode(os.path.join(point, "not-there")), state_dir=state))
        before = sorted(os.listdir(point))
        with pytest.raises(QcowError) as caught:
            batch.run(requests, batch.Settings(state))
        assert caught.value.reason == "no-space"
        assert [problem["reason"] for problem in caught.value.details["problems"]] == ["no-space", "missing"]
        assert sorted(os.listdir(point)) == before
        assert (
            not os.listdir(os.path.join(os.fsdecode(state), "records"))
            if os.path.exists(os.path.join(os.fsdecode(state), "records"))
            else True
        )
        assert not batch.run(requests[:1], batch.Settings(state, reserve=1 << 20))[0]["failed"]
