# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a migrated image keeps of its original, end to end, on real filesystems: rights, labels, flags, times, holes."""

import fcntl
import os
import struct
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host import linux
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain
from ansible_collections.vmimage.qcow.tests.support.faults import Scene
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool

HOW = {"other-name": {}, "same-name": {"keep_name": True}, "raw": {"format": "raw"}}


def migrate(scene: Scene, **options: Any) -> dict[str, Any]:
    state = os.fsencode(scene.state)
    result = batch.run(
        [Request(os.fsencode(scene.src), state_dir=state, **dict(scene.options, **options))], batch.Settings(state, reserve=0)
    )[0]
    assert not result["failed"], result["msg"]
    return result


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("how", sorted(HOW))
def test_rights_and_labels(tmp_path: Any, how: str, fstype: str) -> None:
    require_tool("setfacl")
    with mounted(fstype, str(tmp_path)) as point:
        scene = Scene(point, state=str(tmp_path / "state"), **HOW[how])
        os.chown(scene.src, 64055, 108)
        os.chmod(scene.src, 0o640)
        subprocess.run(["setfacl", "-m", "u:4711:rw,g:4712:r", scene.src], check=True)
        os.setxattr(scene.src, "user.backup", b"nightly")
        os.setxattr(scene.src, "security.selinux", b"system_u:object_r:virt_image_t:s0\0")
        os.setxattr(scene.src, "trusted.site", b"1")
        os.utime(scene.src, ns=(1234567890123456789, 1234567890987654321))
        wanted = {name: os.getxattr(scene.src, name) for name in os.listxattr(scene.src)}
        assert "system.posix_acl_access" in wanted and "security.selinux" in wanted
        before = os.stat(scene.src)
        result = migrate(scene)
        assert result["warnings"] == []
        after = os.stat(scene.dest)
        assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
        assert after.st_mtime_ns == before.st_mtime_ns
        assert {name: os.getxattr(scene.dest, name) for name in os.listxattr(scene.dest)} == wanted
        kept = os.stat(scene.retired)
        assert (kept.st_ino, kept.st_mtime_ns, kept.st_mode, kept.st_uid) == (
            before.st_ino,
            before.st_mtime_ns,
            before.st_mode,
            before.st_uid,
        )


def test_access_time_of_the_original_stays(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    os.utime(scene.src, ns=(1234567890123456789, 1234567890987654321))
    migrate(scene)
    assert os.stat(scene.retired).st_atime_ns == 1234567890123456789


def test_times_by_option(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    os.utime(scene.src, ns=(1234567890123456789, 1234567890987654321))
    migrate(scene, timestamps=False)
    assert os.stat(scene.dest).st_mtime_ns > 1500000000 * 10**9


def test_never_more_readable_than_the_original(server: Any, tmp_path: Any) -> None:
    """At every call of the migration of a 0600 image, whatever lies there can be read by its owner only."""
    scene = Scene(str(tmp_path))
    os.chmod(scene.src, 0o600)
    job = scene.job
    old = os.umask(0)
    try:
        lines = server.trace(str(tmp_path / "log"), ["openat", "fchmod", "fsetxattr", "chmod"], job.pop("job"), **job)
    finally:
        os.umask(old)
    modes = [line for line in lines if ".tmp" in line and ("O_CREAT" in line or "chmod" in line)]
    assert modes
    assert all("0600" in line for line in modes), modes
    assert os.stat(scene.dest).st_mode & 0o777 == 0o600


def flags_of(path: str) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return linux.get_flags(fd) or 0
    finally:
        os.close(fd)


def set_flag(path: str, flag: int, *, on: bool) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = linux.get_flags(fd) or 0
        linux.set_flags(fd, flags | flag if on else flags & ~flag)
    finally:
        os.close(fd)


def test_no_copy_on_write(tmp_path: Any) -> None:
    with mounted("btrfs", str(tmp_path)) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        os.unlink(scene.src)
        os.close(os.open(scene.src, os.O_CREAT | os.O_WRONLY, 0o644))
        set_flag(scene.src, linux.FLAG_NOCOW, on=True)
        with open(scene.src, "r+b") as stream:
            stream.write(scene.original)
        assert flags_of(scene.src) & linux.FLAG_NOCOW
        migrate(scene)
        assert flags_of(scene.dest) & linux.FLAG_NOCOW
        scene.assert_migrated()


@pytest.mark.parametrize("flag", ["FLAG_IMMUTABLE", "FLAG_APPEND"])
@pytest.mark.parametrize("what", ["original", "directory"])
def test_protected(tmp_path: Any, what: str, flag: str) -> None:
    """chattr +i, +a: found before anything is copied, together with everything else; keeping a protected original is fine."""
    require_root()
    with mounted("ext4", str(tmp_path)) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        place = scene.src if what == "original" else scene.images
        set_flag(place, getattr(linux, flag), on=True)
        try:
            state = os.fsencode(scene.state)
            for check_mode in (True, False):
                request = Request(os.fsencode(scene.src), retire=True, state_dir=state)
                result = batch.run([request], batch.Settings(state, reserve=0, check_mode=check_mode))[0]
                assert result["failed"] and result["reason"] == "protected", result
                scene.assert_as_before()
            if what == "original":
                assert not batch.run([request._replace(retire=False)], batch.Settings(state, reserve=0))[0]["failed"]
        finally:
            set_flag(place, getattr(linux, flag), on=False)
        migrate(scene)
        scene.assert_migrated()


def test_read_only_filesystem(tmp_path: Any) -> None:
    with mounted("ext4", str(tmp_path)) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        state = os.fsencode(scene.state)
        result = batch.run([Request(os.fsencode(scene.src), retire=True, state_dir=state)], batch.Settings(state, reserve=0))[0]
        assert result["failed"] and result["reason"] == "read-only", result
        subprocess.run(["mount", "-o", "remount,rw", point], check=True)
        migrate(scene)


def test_reserve_in_percent(tmp_path: Any) -> None:
    with mounted("ext4", str(tmp_path)) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        request = Request(os.fsencode(scene.src), retire=True, state_dir=os.fsencode(scene.state))
        with pytest.raises(Exception, match="keep"):
            batch.run([request], batch.Settings(request.state_dir, reserve=0, reserve_percent=99.0))
        scene.assert_as_before()
        assert not batch.run([request], batch.Settings(request.state_dir, reserve=0, reserve_percent=1.0))[0]["failed"]


def test_two_images_that_want_one_name(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    other = os.path.join(scene.images, "disk.QCOW")
    os.link(scene.src, other)
    os.unlink(other)
    with open(other, "wb") as stream:
        stream.write(scene.original)
    state = os.fsencode(scene.state)
    requests = [Request(os.fsencode(path), retire=True, state_dir=state) for path in (scene.src, other)]
    results = batch.run(requests, batch.Settings(state, reserve=0))
    assert [result["failed"] for result in results] == [False, True]
    assert results[1]["reason"] == "exists"
    assert sorted(os.listdir(scene.images)) == ["disk.QCOW", "disk.qcow.qcow1.orig", "disk.qcow2"]


@pytest.mark.parametrize("how", ["other-name", "raw"])
def test_holes_stay_holes(tmp_path: Any, how: str) -> None:
    spec = ImageSpec(size=1 << 30, clusters={0: Plain(b"first" * 800), 100000: Plain(b"middle" * 600), 262143: Plain(b"last" * 1000)})
    scene = Scene(str(tmp_path), spec=spec, **HOW[how])
    state = os.fsencode(scene.state)
    result = batch.run([Request(os.fsencode(scene.src), state_dir=state, **scene.options)], batch.Settings(state, reserve=0))[0]
    assert not result["failed"], result["msg"]
    assert os.stat(scene.dest).st_blocks * 512 < 2 << 20


def test_retired_original_keeps_its_extents(tmp_path: Any) -> None:
    """Retiring is a rename: not a block of the original moves."""
    scene = Scene(str(tmp_path))
    before = fiemap(scene.src)
    migrate(scene)
    assert fiemap(scene.retired) == before


def fiemap(path: str) -> bytes:
    """Where a file's extents lie (FS_IOC_FIEMAP), as the kernel tells it."""
    request = bytearray(struct.pack("=QQLLLL", 0, 1 << 62, 1, 0, 64, 0) + bytes(56 * 64))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0xC020660B, request, True)
    except OSError:
        pytest.skip("this filesystem does not tell where extents lie")
    finally:
        os.close(fd)
    return bytes(request)
