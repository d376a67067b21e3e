# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records: torn lines, journals that never began, and what recovery does when the world has changed since the crash."""

import os
import shutil
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, commit
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Record, Records, named
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_entries import explain
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.recover import recover
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session
from ansible_collections.vmimage.qcow.tests.support.faults import CHANGING, Point, Scene, Server, points
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool


@pytest.fixture
def records(tmp_path: Any) -> Records:
    return Records(os.fsencode(str(tmp_path / "state")))


def begin(records: Records) -> Record:
    return records.begin(named(b"/x/a.qcow", ino=1), named(b"/x/a.qcow2"), format="qcow2")


def test_torn_line_does_not_count(records: Records) -> None:
    record = begin(records)
    record.note("copying", temporary=named(b"/x/t", ino=2))
    with open(record.path, "rb") as stream:
        whole = stream.read()
    record.note("verified", fingerprint="f" * 2000)
    with open(record.path, "rb") as stream:
        longer = stream.read()
    for cut in range(len(whole), len(longer) - 1, 37):
        with open(record.path, "wb") as stream:
            stream.write(longer[:cut])
        read = next(records.all())
        assert read.state == "copying"
        assert "fingerprint" not in read.facts
        read.note("failed", error="after the tear")
        assert next(records.all()).state == "failed"
        assert next(records.all()).facts["error"] == "after the tear"


def test_zeros_after_a_crash_do_not_count(records: Records) -> None:
    """Some filesystems leave a hole of zeros where an append was under way."""
    record = begin(records)
    with open(record.path, "ab") as stream:
        stream.write(bytes(300))
    read = next(records.all())
    assert read.state == "planned"
    read.note("failed")
    assert next(records.all()).state == "failed"


def test_record_appears_whole_or_not_at_all(records: Records) -> None:
    record = begin(records)
    fresh = record.path + b".new"
    shutil.copy(record.path, fresh)
    assert len(list(records.all())) == 1
    records.sweep()
    assert not os.path.exists(fresh)


def test_unreadable_record_is_reported_not_removed(records: Records) -> None:
    record = begin(records)
    record.note("done")
    broken = os.path.join(records.directory, b"20200101T000000.000000Z-ffffffff.jsonl")
    with open(broken, "wb") as stream:
        stream.write(b"\xff\x00garbage")
    answers = recover(Session(records.state_dir))
    assert [answer["failed"] for answer in answers] == [True]
    assert "cannot be read" in answers[0]["msg"]
    assert os.path.exists(broken)


def test_records_are_private(records: Records) -> None:
    record = begin(records)
    assert os.stat(record.path).st_mode & 0o777 == 0o600
    assert os.stat(records.directory).st_mode & 0o777 == 0o700


def test_order_within_a_second(records: Records) -> None:
    made = [begin(records).id for time in range(20)]
    assert [record.id for record in records.all()] == made


def test_no_state_directory(tmp_path: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StateError):
        begin(Records(os.fsencode(str(blocked / "state"))))


def crashed(server: Server, scene: Scene, state: str) -> None:
    """Leave a scene as a crash leaves it that comes just after the record said ``state``."""
    job = scene.job
    name = job.pop("job")
    lines = server.trace(scene.images + ".log", CHANGING, name, **job)
    found = points(lines, CHANGING)
    at = next(number for number, point in enumerate(found) if '\\"state\\": \\"%s\\"' % state in point.text and point.call == "write")
    synced = next(number for number in range(at, len(found)) if found[number].call == "fsync")
    # How often files are opened differs from run to run: /proc is read, and lists other processes.
    point = next(point for point in found[synced + 1 :] if point.call != "openat")
    fresh = Scene(
        os.path.dirname(scene.images),
        **{key: value for key, value in scene.options.items() if key != "retire"},
        retire=scene.options["retire"],
    )
    assert server.killed_at(Point(*point), name, **job)
    assert fresh.states() == [state], (fresh.states(), point)


def again(scene: Scene) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    state = os.fsencode(scene.state)
    recovered: list[dict[str, Any]] = []
    results = batch.run([Request(os.fsencode(scene.src), state_dir=state, **scene.options)], batch.Settings(state, reserve=0), recovered)
    return results, recovered


def test_verified_result_is_not_copied_again(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration import execute

    scene = Scene(str(tmp_path))
    crashed(server, scene, "verified")
    monkeypatch.setattr(execute, "_produce", None)  # whoever calls it fails
    results, recovered = again(scene)
    assert [entry["msg"] for entry in recovered] == ["put the proven result in place"]
    assert (results[0]["failed"], results[0]["changed"]) == (False, False)
    scene.assert_migrated()


def test_explained_without_being_touched(server: Server, tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    crashed(server, scene, "copying")
    before = scene.listing()
    record = Records(os.fsencode(scene.state)).unfinished()[0]
    assert "temporary file will be removed" in explain(record)["unfinished"]
    state = os.fsencode(scene.state)
    recovered: list[dict[str, Any]] = []
    batch.run([Request(os.fsencode(scene.src), retire=True, state_dir=state)], batch.Settings(state, reserve=0, check_mode=True), recovered)
    assert [entry["record"] for entry in recovered] == [record.id]
    assert scene.listing() == before


@pytest.mark.parametrize("result", ["qcow2", "raw"], ids=["while written", "while read back"])
def test_killed_while_qemu_img_works(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, result: str) -> None:
    """A compressed result takes further temporary files, which have no names: the run is killed, as by the OOM killer, while qemu-img works."""
    real = require_tool("qemu-img")
    wrapper = tmp_path / "bin" / "qemu-img"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\ncase "$*" in convert*"-O %s "*) kill -9 $PPID; sleep 1;; esac\nexec %s "$@"\n' % (result, real))
    wrapper.chmod(0o755)
    scene = Scene(str(tmp_path), compression="zstd")
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "%s:%s" % (wrapper.parent, os.environ["PATH"]))
        pid = os.fork()
        if pid == 0:
            try:
                again(scene)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    assert len([name for name in scene.listing() if name.endswith(".tmp")]) == 1, scene.listing()
    results, recovered = again(scene)
    assert [entry["msg"] for entry in recovered] == ["removed the temporary file"]
    assert not results[0]["failed"], results[0]["msg"]
    assert scene.listing() == scene.migrated()


def touch(path: str) -> None:
    with open(path, "r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"the guest went on with the original")


@pytest.mark.parametrize("state", ["verified", "published", "repointed"])
def test_original_written_since_the_crash(server: Server, tmp_path: Any, state: str) -> None:
    """The original is the truth: the result is withdrawn and made anew."""
    scene = Scene(str(tmp_path))
    crashed(server, scene, state)
    touch(scene.src)
    results, recovered = again(scene)
    assert "result" in recovered[0]["msg"] and not recovered[0]["failed"]
    assert not results[0]["failed"], results[0]["msg"]
    with open(scene.retired, "rb") as stream:
        assert b"the guest went on" in stream.read()
    assert scene.listing() == scene.migrated()


def test_both_written_since_the_crash(server: Server, tmp_path: Any) -> None:
    """Nobody but the operator can know which is right: both stay."""
    scene = Scene(str(tmp_path))
    crashed(server, scene, "published")
    touch(scene.src)
    os.utime(scene.dest)
    before = scene.listing()
    for _turn in range(2):
        results, recovered = again(scene)
        assert recovered[0]["failed"] and "both been used" in recovered[0]["msg"]
        assert results[0]["failed"] and results[0]["reason"] == "unfinished"
        assert scene.listing() == before


def test_result_written_since_the_crash(server: Server, tmp_path: Any) -> None:
    """A guest was started on the result: the migration is finished, its writes stay."""
    scene = Scene(str(tmp_path))
    crashed(server, scene, "repointed")
    with open(scene.dest, "ab") as stream:
        stream.write(bytes(512))
    size = os.path.getsize(scene.dest)
    results, recovered = again(scene)
    assert not recovered[0]["failed"] and not results[0]["failed"], (recovered, results)
    assert scene.listing() == scene.migrated()
    assert os.path.getsize(scene.dest) == size


@pytest.mark.parametrize("state", ["verified", "published"])
def test_original_removed_since_the_crash(server: Server, tmp_path: Any, state: str) -> None:
    scene = Scene(str(tmp_path))
    crashed(server, scene, state)
    os.unlink(scene.src)
    _results, recovered = again(scene)
    assert not recovered[0]["failed"]
    scene.assert_settled()
    assert scene.listing() == ([] if state == "verified" else ["disk.qcow2"])


@pytest.mark.parametrize("state", ["published", "repointed"])
@pytest.mark.parametrize("renamed", [False, True])
def test_result_removed_since_the_crash(server: Server, tmp_path: Any, state: str, renamed: bool) -> None:
    """The original is all that is left: it is not retired, has its name, and is migrated again."""
    scene = Scene(str(tmp_path))
    crashed(server, scene, state)
    os.unlink(scene.dest)
    if renamed:
        os.rename(scene.src, scene.src + ".qcow1.orig")
    choice = Choice(os.fsencode(scene.state), paths=(os.fsencode(scene.images),))
    assert [answer["changed"] for answer in clean_all(choice, min_age=0)] == []
    assert scene.listing() == ["disk.qcow"]
    results, _recovered = again(scene)
    assert not results[0]["failed"], results[0]["msg"]
    scene.assert_migrated()


class Died(BaseException):
    pass


def test_filesystem_of_the_result_is_not_mounted(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is not lost: guests may have written to it. The record stays as it is until the filesystem is there."""
    require_root()
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    for place in (disk, elsewhere):
        place.mkdir()
    scene = Scene(str(tmp_path), dest=os.fsencode(elsewhere / "disk.qcow2"))
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        subprocess.run(["mount", "--bind", disk, elsewhere], check=True)

        def dying(*_given: Any) -> None:
            raise Died

        with monkeypatch.context() as killed:
            killed.setattr(commit, "_retire", dying)
            with pytest.raises(Died):
                again(scene)
        assert scene.states() == ["repointed"]
        subprocess.run(["umount", elsewhere], check=True)
        _results, recovered = again(scene)
        assert [entry["failed"] for entry in recovered] == [True] and "is that mounted" in recovered[0]["msg"], recovered
        assert scene.states() == ["repointed"] and os.path.exists(scene.src)
        subprocess.run(["mount", "--bind", disk, elsewhere], check=True)
        results, recovered = again(scene)
        assert [entry["failed"] for entry in recovered] == [False] and scene.states() == ["done"], (results, recovered)
        assert os.listdir(elsewhere) == ["disk.qcow2"] and not os.path.exists(scene.src)
    finally:
        for place in (elsewhere, disk):
            subprocess.run(["umount", place], check=False, stderr=subprocess.DEVNULL)


def test_name_taken_since_the_crash(server: Server, tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    crashed(server, scene, "verified")
    with open(scene.dest, "w") as stream:
        stream.write("somebody's file")
    results, recovered = again(scene)
    assert recovered[0]["failed"] or results[0]["failed"]
    with open(scene.dest) as stream:
        assert stream.read() == "somebody's file"
    os.unlink(scene.dest)
    results, _recovered = again(scene)
    assert not results[0]["failed"], results[0]["msg"]
    scene.assert_migrated()
