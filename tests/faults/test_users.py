# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Others who have the image: writers are refused, readers may go on but keep the name, and nobody writes unnoticed."""

import contextlib
import os
import subprocess
import sys
import time
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.engine import after_the_copy
from ansible_collections.vmimage.qcow.tests.support.faults import DENSE, Scene
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool


def run(scene: Scene, **options: Any) -> dict[str, Any]:
    state = os.fsencode(scene.state)
    request = Request(os.fsencode(scene.src), state_dir=state, **dict({"retire": True}, **options))
    return batch.run([request], batch.Settings(state, reserve=0))[0]


@contextlib.contextmanager
def qemu_io(scene: Scene, *options: str, image: str = "") -> Iterator[None]:
    """A qemu-io that holds the image open, as a hypervisor does."""
    require_tool("qemu-io")
    arguments = (
        ["qemu-io", *options, image or scene.src] if not image.startswith("driver=") else ["qemu-io", *options, "--image-opts", image]
    )
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("length\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert "MiB" in answer or "KiB" in answer or "bytes" in answer, answer
    try:
        yield
    finally:
        process.communicate("quit\n", timeout=20)


@contextlib.contextmanager
def held(path: str, flags: int) -> Iterator[None]:
    """Another process that has the file open and takes no locks."""
    code = "import os, sys; fd = os.open(sys.argv[1], int(sys.argv[2])); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, path, str(flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.stdin.close()


def holder(kind: str, scene: Scene) -> Any:
    if kind == "qemu-writer":
        return qemu_io(scene, "-f", "qcow")
    if kind == "qemu-writer-without-locks":
        return qemu_io(scene, image="driver=qcow,file.driver=file,file.locking=off,file.filename=" + scene.src)
    if kind == "qemu-reader":
        return qemu_io(scene, "-r", "-f", "qcow")
    return held(scene.src, {"plain-writer": os.O_RDWR, "plain-reader": os.O_RDONLY}[kind])


@pytest.mark.parametrize("original", ["keep", "retire"])
@pytest.mark.parametrize("kind", ["qemu-writer", "qemu-writer-without-locks", "plain-writer", "qemu-reader", "plain-reader"])
def test_users(tmp_path: Any, kind: str, original: str) -> None:
    scene = Scene(str(tmp_path), retire=original == "retire")
    with holder(kind, scene):
        result = run(scene, retire=original == "retire")
        if "writer" in kind or original == "retire":
            assert result["failed"] and result["reason"] == "in-use", result
            assert "in use" in result["msg"]
            assert scene.listing() == [os.path.basename(scene.src)]
        else:
            assert not result["failed"], result["msg"]
            scene.assert_migrated()
    if result["failed"]:
        assert not run(scene, retire=original == "retire")["failed"]
        scene.assert_migrated()


def test_loop_device(tmp_path: Any) -> None:
    require_root()
    require_tool("losetup")
    scene = Scene(str(tmp_path))
    made = subprocess.run(["losetup", "--find", "--show", scene.src], check=True, stdout=subprocess.PIPE, text=True)
    try:
        result = run(scene)
        assert result["failed"] and result["reason"] == "in-use" and "loop" in result["msg"], result["msg"]
        scene.assert_as_before()
    finally:
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
    deadline = time.monotonic() + 10
    while run(scene)["failed"]:  # the kernel lets go of the file a moment later
        assert time.monotonic() < deadline
        time.sleep(0.2)
    scene.assert_migrated()


def test_result_in_use_is_not_rolled_back(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    assert not run(scene)["failed"]
    choice = Choice(os.fsencode(scene.state), paths=(os.fsencode(scene.images),))
    with qemu_io(scene, "-f", "qcow2", image=scene.dest):
        answer = roll_back_all(choice, discard_changes=True)
        assert [entry["reason"] for entry in answer] == ["in-use"]
        scene.assert_migrated()
    assert not roll_back_all(choice, discard_changes=False)[0]["failed"]
    scene.assert_as_before()


WRITER = """
import os, sys, time
# As a program of old: no locks; opens, writes a cluster in place, sets the times back, closes.
# On a busy machine the whole conversion may pass between two looks.
deadline = time.monotonic() + 20
while not any(name.startswith('.vmimage-qcow.') for name in os.listdir(os.path.dirname(sys.argv[1]))):
    if not os.path.exists(sys.argv[1]) or time.monotonic() > deadline:
        sys.exit()
time.sleep(float(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b'written meanwhile', os.fstat(fd).st_size - 4096)
os.close(fd)
print('written', flush=True)
"""


def test_source_written_during_conversion_is_noticed(tmp_path: Any, tell: Callable[..., None]) -> None:
    """50 tries, at different moments. Either the writer is held off until the original is retired or is seen; the result never is a mixture."""
    noticed = before = after = 0
    for attempt in range(50):
        scene = Scene(str(tmp_path / str(attempt % 5)), spec=DENSE)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, scene.src, str(attempt % 25 / 250)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as writer:
            result = run(scene, format="raw")
            assert writer.stdout is not None
            wrote = writer.stdout.read() == b"written\n"
        if result["failed"]:
            assert result["reason"] in ("in-use", "changed"), result["msg"]
            assert scene.listing() == ["disk.qcow"], (result["msg"], scene.listing())
            noticed += 1
            continue
        raw = os.path.join(scene.images, "disk.raw")
        assert scene.seen_by_guest(raw) == scene.guest, "the result holds bytes of two moments"
        if wrote:
            # It opened the file before it was renamed and wrote after the last look: only possible once everything was over.
            with open(scene.retired, "rb") as stream:
                assert stream.read() == scene.original, "attempt %d: a write went to the retired original unnoticed" % attempt
            before += 1
        else:
            after += 1
    tell(
        "source written during 50 conversions: %d noticed, %d came too late to find the name, %d before the plan" % (noticed, after, before)
    )
    assert noticed + after == 50
    assert noticed >= 5


def test_change_that_leaves_no_open_file_is_noticed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, tell: Callable[..., None]) -> None:
    """Without leases (as on network filesystems): a write between any two looks shows in the times, 50 of 50."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._host import in_use

    monkeypatch.setattr(in_use, "_leasable", lambda fd: False)
    noticed = 0
    for attempt in range(50):
        scene = Scene(str(tmp_path / str(attempt % 5)))

        def write(_temporary: bytes, scene: Scene = scene) -> None:
            with open(scene.src, "r+b") as stream:
                stream.seek(-4096, os.SEEK_END)
                stream.write(b"written meanwhile")

        after_the_copy(monkeypatch, write)
        result = run(scene, verify=attempt % 2 == 0)
        assert result["failed"] and result["reason"] in ("changed", "verification-failed", "in-use"), result
        assert scene.listing() == ["disk.qcow"]
        noticed += 1
    tell("source written between copy and publication: %d of 50 noticed" % noticed)


def test_guard_lasts_until_the_original_is_retired(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that starts while the original is being renamed fails on the guard's locks."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration import commit

    require_tool("qemu-io")
    scene = Scene(str(tmp_path))
    seen: list[str] = []
    rename = commit.retire

    def start_a_guest(path: bytes, aside: bytes, **options: Any) -> None:
        done = subprocess.run(
            ["qemu-io", "-f", "qcow", "-c", "write 0 512", os.fsdecode(path)], check=False, capture_output=True, text=True
        )
        seen.append(done.stderr + done.stdout)
        rename(path, aside, **options)

    monkeypatch.setattr(commit, "retire", start_a_guest)
    # No lease: it would hold qemu-io at its open for as long as we wait for it here.
    monkeypatch.setattr("ansible_collections.vmimage.qcow.plugins.module_utils._host.in_use._leasable", lambda fd: False)
    result = run(scene)
    assert not result["failed"], result["msg"]
    assert "lock" in seen[0], seen
    scene.assert_migrated()


def test_error_names_the_user(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    with held(scene.src, os.O_RDWR):
        result = run(scene)
    assert any(user["kind"] == "writer" for user in result["details"]["users"]), result["details"]
