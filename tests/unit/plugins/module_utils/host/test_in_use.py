# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ImageChanged, ImageInUse
from ansible_collections.vmimage.qcow.plugins.module_utils._host import files, in_use, linux
from ansible_collections.vmimage.qcow.tests.support.filesystems import NOBODY, in_child, let_in, mounted
from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool


@pytest.fixture(params=["here", "tmpfs", "ext4", "xfs", "btrfs"])
def image(request, tmp_path):
    """A v1 image, and the descriptor we look at it with."""
    require_tool("qemu-img")
    with contextlib.ExitStack() as stack:
        folder = str(tmp_path) if request.param == "here" else stack.enter_context(mounted(request.param, str(tmp_path)))
        path = os.path.join(folder, "a.qcow")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", path, "8M"], check=True)
        fd = files.open_source(os.fsencode(path))
        yield path, fd
        os.close(fd)


@contextlib.contextmanager
def qemu_io(path, *options):
    """A qemu-io that holds the image open and waits."""
    require_tool("qemu-io")
    process = subprocess.Popen(["qemu-io", *options, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        # Its prompt comes after it has opened the image.
        assert select.select([process.stdout], [], [], 30)[0]
        assert os.read(process.stdout.fileno(), 4096)
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def holder(path, flags="os.O_RDONLY", then=""):
    """Another Python process that has the file open."""
    code = "import os, sys, fcntl, mmap\nfd = os.open(sys.argv[1], %s)\n%s\nprint('ready', flush=True)\nsys.stdin.read()" % (flags, then)
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def kinds(fd):
    return sorted(use.kind for use in in_use.find_users(fd))


def test_nobody(image):
    path, fd = image
    other = os.open(path, os.O_RDONLY)
    assert in_use.find_users(fd) == []
    with in_use.Guard(fd) as guard:
        assert guard.warnings == []
        guard.check()
        # Neither our guard nor our other descriptors are somebody else.
        assert in_use.find_users(fd) == [] and in_use.find_users(other) == []
    os.close(other)


def test_processes_are_looked_at_only_where_somebody_else_has_it_open(image, monkeypatch):
    path, fd = image
    looks = []
    monkeypatch.setattr(in_use, "scan", lambda *given, original=in_use.scan: looks.append(given) or original(*given))
    with in_use.Guard(fd) as guard:
        assert in_use.find_users(fd) == [] and not looks
        assert linux.get_lease(fd) == fcntl.F_RDLCK, "the guard's lease is as it was"
        with holder(path):
            assert kinds(fd) == ["reader"] and len(looks) == 1
        assert kinds(fd) == [] and len(looks) == 1
        guard.check()
    assert in_use.find_users(fd) == [] and linux.get_lease(fd) == fcntl.F_UNLCK


def test_a_qemu_writer(image):
    path, fd = image
    with qemu_io(path, "-f", "qcow") as process:
        (use,) = in_use.find_users(fd)
        assert use == ("writer", "qemu-io (pid %d)" % process.pid, "open for writing, with locks")
        (lock,) = in_use.lock_users(fd)
        assert lock.kind == "writer" and "101, 103" in lock.how
        with pytest.raises(ImageInUse) as caught, in_use.Guard(fd, os.fsencode(path)):
            pass
        assert "qemu-io (pid %d)" % process.pid in str(caught.value)
        assert caught.value.details["users"][0]["kind"] == "writer"
    assert in_use.find_users(fd) == []


def test_a_qemu_reader_may_stay(image):
    path, fd = image
    with qemu_io(path, "-r", "-f", "qcow"):
        assert kinds(fd) == ["reader"]
        assert [use.kind for use in in_use.lock_users(fd)] == ["reader"]
        with in_use.Guard(fd) as guard:
            guard.check()
            other = files.open_source(os.fsencode(path))
            # Our guard's locks lie on the same bytes as the reader's: the reader is still seen, and we are not.
            assert [use.kind for use in in_use.lock_users(other)] == ["reader"]
            os.close(other)


def test_a_qemu_writer_without_locks(image):
    path, fd = image
    with qemu_io("driver=qcow,file.driver=file,file.filename=%s,file.locking=off" % path, "--image-opts"):
        assert in_use.lock_users(fd) == []
        assert kinds(fd) == ["writer"]
        with pytest.raises(ImageInUse), in_use.Guard(fd):
            pass


def test_a_backing_file_is_read(image, tmp_path):
    path, fd = image
    overlay = os.path.join(os.path.dirname(path), "overlay.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow", overlay], check=True)
    with qemu_io(overlay, "-f", "qcow2"):
        assert kinds(fd) == ["reader"]


def test_qemu_nbd(image, tmp_path):
    path, fd = image
    require_tool("qemu-nbd")
    for options, expected in ((["-r"], ["reader"]), ([], ["writer"])):
        server = subprocess.Popen(["qemu-nbd", *options, "-f", "qcow", "-k", str(tmp_path / "socket"), path])
        deadline = time.monotonic() + 20
        while not in_use.find_users(fd) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)
        assert kinds(fd) == expected
        server.terminate()
        server.wait()


def test_plain_descriptors(image):
    path, fd = image
    with holder(path), holder(path, "os.O_RDWR"), holder(path, "os.O_WRONLY"), holder(path, "os.O_PATH | os.O_RDONLY"):
        assert kinds(fd) == ["reader", "writer", "writer"]


def test_a_mapping_without_descriptor_is_a_writer(image):
    path, fd = image
    # By hand: Python's mmap keeps a descriptor of its own.
    mapping = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
        "assert libc.mmap(None, ctypes.c_size_t(48), 3, mmap.MAP_SHARED, fd, ctypes.c_long(0)) != ctypes.c_void_p(-1).value\nos.close(fd)"
    )
    with holder(path, "os.O_RDWR", mapping):
        (use,) = in_use.find_users(fd)
        assert use.kind == "writer" and "counts" in use.how


def test_locks_of_others(image):
    path, fd = image
    with holder(path, "os.O_RDWR", "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)") as process:
        (use,) = in_use.lock_users(fd)
        assert use == ("writer", "%s (pid %d)" % (use.who.split(" ")[0], process.pid), "a lock on bytes 0 to 0")


def test_ignored_processes(image):
    path, fd = image
    with holder(path) as process:
        assert in_use.find_users(fd, ignore_pids=[process.pid]) == []


def test_many_at_once(tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(20)]
    for path in paths:
        with open(path, "wb"):
            pass
    identities = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        identities.append(files.identity(fd))
        os.close(fd)
    with holder(paths[3]), holder(paths[7], "os.O_RDWR"):
        users = in_use.find_users_many(identities)
        fd = os.open(paths[7], os.O_RDONLY)
        assert in_use.find_users(fd, seen=users) == users[identities[7][:2]]
        os.close(fd)
    assert len(users) == 20
    assert {key: [use.kind for use in uses] for key, uses in users.items() if uses} == {
        identities[3][:2]: ["reader"],
        identities[7][:2]: ["writer"],
    }
    assert in_use.find_users_many([]) == {}


def test_others_processes_are_counted_where_they_cannot_be_seen(tmp_path):
    require_root()
    path = str(tmp_path / "x")
    with open(path, "wb"):
        pass
    key = os.stat(path)

    def as_nobody():
        survey = in_use.survey([(key.st_dev, key.st_ino)])
        assert survey.unseen > 0 and survey.users == {(key.st_dev, key.st_ino): []}

    with holder(path):
        assert in_use.survey([(key.st_dev, key.st_ino)]).unseen == 0
        assert in_child(as_nobody, uid=NOBODY) == 0


@pytest.mark.parametrize("read_only", [False, True])
def test_a_loop_device(image, read_only):
    require_root()
    path, fd = image
    done = subprocess.run(
        [require_tool("losetup"), "--find", "--show", *(["-r"] if read_only else []), path], check=False, stdout=subprocess.PIPE
    )
    require(done.returncode == 0, "no loop device")
    device = done.stdout.decode().strip()
    try:
        users = [use for use in in_use.find_users(fd) if use.who == device]
        assert [use.kind for use in users] == ["reader" if read_only else "writer"]
        if not read_only:
            with pytest.raises(ImageInUse), in_use.Guard(fd):
                pass
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_block_device_that_is_mounted(tmp_path):
    with mounted("ext4", str(tmp_path)) as point:
        mount = next(mount for mount in linux.mounts() if mount.point == os.fsencode(point))
        fd = files.open_source(mount.source, block_devices=True)
        assert files.identity(fd).size == 64 << 20
        users = in_use.find_users(fd)
        assert ("writer", point, "mounted ext4") in users
        os.close(fd)


def test_the_guard_keeps_qemu_writers_out_and_lets_readers_in(image):
    path, fd = image
    require_tool("qemu-io")
    with in_use.Guard(fd) as guard:
        reader = subprocess.run(["qemu-io", "-r", "-f", "qcow", "-c", "read 0 512", path], check=False, stdout=subprocess.PIPE)
        assert reader.returncode == 0
        for _attempt in range(3):
            writer = subprocess.Popen(["qemu-io", "-f", "qcow", "-c", "write 0 512", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 20
            while writer.poll() is None and time.monotonic() < deadline:
                guard.check()
                time.sleep(0.02)
            assert b'Failed to get "write" lock' in writer.communicate()[1]
            assert writer.returncode == 1
            guard.check()
    writer = subprocess.run(["qemu-io", "-f", "qcow", "-c", "write 0 512", path], check=False, stdout=subprocess.PIPE)
    assert writer.returncode == 0


def test_the_guard_notices_a_writer_without_locks(image, monkeypatch):
    path, fd = image
    monkeypatch.setattr(in_use, "_PATIENCE", 0.3)
    with in_use.Guard(fd) as guard:
        process = subprocess.Popen([sys.executable, "-c", "import sys, time; f = open(sys.argv[1], 'r+b'); time.sleep(5)", path])
        with pytest.raises(ImageInUse):
            for _attempt in range(100):
                guard.check()
                time.sleep(0.05)
        process.kill()
        process.wait()


@pytest.mark.parametrize("lease", [True, False])
def test_the_guard_notices_what_was_written(image, lease):
    path, fd = image
    os.utime(path, ns=(1, 1))
    with in_use.Guard(fd, lease=lease) as guard:
        process = subprocess.Popen([sys.executable, "-c", "import sys; f = open(sys.argv[1], 'r+b'); f.write(b'Q'); f.close()", path])
        with pytest.raises(ImageChanged):
            for _attempt in range(200):
                guard.check()
                time.sleep(0.02)
        assert process.wait() == 0


def test_the_guard_lets_owner_and_mode_change(image):
    path, fd = image
    with in_use.Guard(fd) as guard:
        os.chmod(path, 0o600)
        os.rename(path, path + "2")
        guard.check()
        os.rename(path + "2", path)


def test_the_guard_ends_with_its_block(image):
    path, fd = image
    with in_use.Guard(fd):
        assert linux.get_lease(fd) != 2
    with holder(path, "os.O_RDWR"):
        pass
    other = os.open(path, os.O_RDONLY)
    assert linux.find_lock(other, 0, 0) is None
    os.close(other)


def test_a_broken_lease_kills_nobody(image):
    """The kernel's default for a broken lease is SIGIO, which ends a process that does not expect it."""
    path, fd = image
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL
    with in_use.Guard(fd):
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDWR | os.O_NONBLOCK)
        time.sleep(0.1)


def test_a_guard_without_the_right_to_lease(tmp_path):
    require_root()
    let_in(str(tmp_path))
    path = str(tmp_path / "x")
    with open(path, "wb"):
        pass

    def as_nobody():
        fd = files.open_source(os.fsencode(path))
        with in_use.Guard(fd) as guard:
            assert len(guard.warnings) == 1
            guard.check()

    assert in_child(as_nobody, uid=NOBODY) == 0
