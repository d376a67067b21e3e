# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real filesystems and real other users for tests that need them."""

import contextlib
import fcntl
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, Callable, Iterator, Optional

from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool

NOBODY = 65534
_SIZE_MIB = {"xfs": 320, "btrfs": 160, "ext4": 64}
_MKFS = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}


@contextlib.contextmanager
def mounted(fstype: str, folder: str, *, size_mib: int = 0, options: str = "") -> Iterator[str]:
    """A new, empty filesystem below ``folder``: tmpfs, or a loop mount of xfs, btrfs or ext4. Needs root."""
    require_root()
    point = os.path.join(folder, "mount-" + fstype)
    os.makedirs(point)
    if fstype == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=%dm,mode=0755%s" % (size_mib or 64, options and "," + options), "tmpfs", point]
    else:
        require_tool(_MKFS[fstype][0])
        disk = os.path.join(folder, fstype + ".disk")
        with open(disk, "wb") as stream:
            stream.truncate((size_mib or _SIZE_MIB[fstype]) << 20)
        subprocess.run([*_MKFS[fstype], disk], check=True, stdout=subprocess.DEVNULL)
        command = ["mount", "-o", "loop" + (options and "," + options), disk, point]
    with _one_at_a_time():
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE)
    require(done.returncode == 0, "cannot mount %s: %s" % (fstype, done.stderr.decode(errors="replace").strip()))
    try:
        yield point
    finally:
        # A failed test may have left a descriptor open: that must not hide its failure.
        if subprocess.run(["umount", point], check=False, stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["umount", "-l", point], check=True)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keeps tests in other processes from looking for a free loop device: they open ours while they do."""
    with open(os.path.join(tempfile.gettempdir(), "vmimage-qcow-loop-devices.lock"), "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class FatByFuse:
    """exFAT or FAT as FUSE shows them: after every mount the same files have other inode numbers. Context manager; needs root.

    :param kind: ``exfat``, or ``fat``, whose driver cannot lengthen a file without writing to it. :param folder: gets the disk.
    :param point: where it is mounted; in ``folder`` if not given.
    """

    _MAKE = {"exfat": ["mkfs.exfat"], "fat": ["mkfs.vfat"]}
    _MOUNT = {"exfat": ["mount.exfat-fuse"], "fat": ["fusefat", "-o", "rw+"]}

    def __init__(self, kind: str, folder: str, *, point: str = "", size_mib: int = 64) -> None:
        require_root()
        require(os.path.exists("/dev/fuse"), "needs /dev/fuse")
        for tool in (self._MAKE[kind][0], self._MOUNT[kind][0]):
            require_tool(tool)
        self.point = point or os.path.join(folder, "mount-" + kind)
        os.makedirs(self.point, exist_ok=True)
        self._mount = self._MOUNT[kind]
        self._disk = os.path.join(folder, kind + ".disk")
        with open(self._disk, "wb") as stream:
            stream.truncate(size_mib << 20)
        subprocess.run([*self._MAKE[kind], self._disk], check=True, stdout=subprocess.DEVNULL)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "FatByFuse":
        device: Any = self._disk
        if self._mount[0] != "fusefat":  # that one takes files only
            device = self._stack.enter_context(loop_device(pathlib.Path(self._disk)))
        self._command = [*self._mount, str(device), self.point]
        try:
            self._attach()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *dummy: Any) -> None:
        self._detach()
        self._stack.close()

    def remount(self, *first: str) -> None:
        """Take it away and bring it back. Inode numbers are given out as files are asked for: ``first`` names some to be asked for before others."""
        self._detach()
        self._attach()
        for name in first:
            os.stat(os.path.join(self.point, name))

    def _attach(self) -> None:
        done = subprocess.run(self._command, check=False, capture_output=True)
        require(
            done.returncode == 0 and os.path.ismount(self.point), "cannot mount by FUSE: %s" % done.stderr.decode(errors="replace").strip()
        )

    def _detach(self) -> None:
        subprocess.run(["umount", self.point], check=True)
        for _look in range(200):  # the program writes what it holds, and then ends
            if not any(_arguments(pid)[-1:] == [os.fsencode(self.point)] for pid in os.listdir("/proc") if pid.isdigit()):
                return
            time.sleep(0.05)


def _arguments(pid: str) -> list[bytes]:
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as stream:
            return stream.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


@contextlib.contextmanager
def loop_device(path: pathlib.Path, content: Optional[bytes] = None) -> Iterator[pathlib.Path]:
    """A block device that holds the bytes, made of a file ``path`` (of what is there, if not given). Needs root."""
    require_root()
    if content is not None:
        path.write_bytes(content)
    with _one_at_a_time():
        done = subprocess.run([require_tool("losetup"), "--find", "--show", path], capture_output=True, check=False, text=True)
    require(done.returncode == 0, "needs loop devices: " + done.stderr.strip())
    device = pathlib.Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def let_in(folder: str) -> None:
    """Let other users into a test's own folder: pytest closes it and the folders of worker, session and user above it."""
    while True:
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        if mode & 0o005 != 0o005:
            os.chmod(folder, mode | 0o055)
        if os.path.basename(folder).startswith("pytest-of-") or os.path.dirname(folder) == "/":
            return
        folder = os.path.dirname(folder)


def in_child(function: Callable[[], Any], *, uid: int = 0, gid: int = 0) -> int:
    """Run ``function`` in a forked process, as another user where ``uid`` is given, and return its exit code.

    0 it returned, 1 it raised (the traceback is on stderr); it may also end itself with ``os._exit``.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    code = 1
    try:
        if uid:
            os.setgroups([])
            os.setgid(gid or uid)
            os.setuid(uid)
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
