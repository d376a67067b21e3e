# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Linux calls that Python 3.6 does not name: renameat2, inode flags, open-file-description locks, leases, mounts, priorities."""

import array
import errno
import fcntl
import os
import struct
from typing import Any, Dict, List, NamedTuple, Optional

try:
    import ctypes
except ImportError:  # a Python may be built without it
    ctypes = None  # type: ignore[assignment]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# <asm/unistd.h>; only needed where the C library is older than 2.28 and has no renameat2 of its own.
_NR_RENAMEAT2 = {
    "x86_64": 316,
    "aarch64": 276,
    "i386": 353,
    "i686": 353,
    "armv7l": 382,
    "ppc64le": 357,
    "ppc64": 357,
    "s390x": 347,
    "riscv64": 276,
}

# <linux/fs.h>: FS_IOC_GETFLAGS is _IOR('f', 1, long), FS_IOC_SETFLAGS is _IOW('f', 2, long); the kernel moves an int all the same.
_LONG = struct.calcsize("l")
_REVERSED_IOC = os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha"))  # these number the directions differently
_IOC_READ, _IOC_WRITE, _IOC_SHIFT = (2, 4, 29) if _REVERSED_IOC else (2, 1, 30)
_FS_IOC_GETFLAGS = (_IOC_READ << _IOC_SHIFT) | (_LONG << 16) | (ord("f") << 8) | 1
_FS_IOC_SETFLAGS = (_IOC_WRITE << _IOC_SHIFT) | (_LONG << 16) | (ord("f") << 8) | 2
FLAG_SYNC = 0x00000008
FLAG_IMMUTABLE = 0x00000010
FLAG_APPEND = 0x00000020
FLAG_NODUMP = 0x00000040
FLAG_NOATIME = 0x00000080
FLAG_NOCOW = 0x00800000

# <fcntl.h>; Python names the first three only since 3.9.
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_F_SETSIG, _F_SETLEASE, _F_GETLEASE = 10, 1024, 1025
# struct flock with 64-bit offsets in the C compiler's own alignment: 32 bytes on every 64-bit Linux and on 32-bit ARM,
# 24 on i386, which is what the C library of a Python built with large file support hands to the kernel.
_FLOCK = "hhqqi0q"

_libc: Any = None


def libc() -> Any:
    """The C library with errno kept; loaded once.

    :raises OSError: ENOSYS where this Python was built without ctypes.
    """
    global _libc
    if _libc is None:
        if ctypes is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def renameat2(source: bytes, dest: bytes, flags: int, *, src_dir_fd: int = _AT_FDCWD, dst_dir_fd: int = _AT_FDCWD) -> None:
    """``renameat2(2)``.

    :param src_dir_fd: the directory that ``source`` is in; ``dst_dir_fd``: that of ``dest``.
    :raises OSError: as the call does; ENOSYS where neither the C library nor we know the call's number.
    """
    library = libc()
    names = (ctypes.c_long(src_dir_fd), ctypes.c_char_p(source), ctypes.c_long(dst_dir_fd), ctypes.c_char_p(dest), ctypes.c_ulong(flags))
    if hasattr(library, "renameat2"):
        failed = library.renameat2(ctypes.c_int(src_dir_fd), names[1], ctypes.c_int(dst_dir_fd), names[3], ctypes.c_uint(flags))
    else:
        number = _NR_RENAMEAT2.get(os.uname().machine)
        if number is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, dest)
        failed = library.syscall(ctypes.c_long(number), *names)
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), source, None, dest)


def get_flags(fd: int) -> Optional[int]:
    """Inode flags as ``lsattr`` shows them, or ``None`` where the filesystem has none."""
    buffer = array.array("i", [0, 0])
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, buffer, True)
    except OSError:
        return None
    return buffer[0]


def set_flags(fd: int, flags: int) -> None:
    """Set all inode flags at once.

    :raises OSError: where the filesystem or our rights forbid it.
    """
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, array.array("i", [flags, 0]), False)


class Lock(NamedTuple):
    """A lock in the way: ``kind`` is ``fcntl.F_RDLCK`` or ``F_WRLCK``, ``pid`` is -1 for a lock of an open file description."""

    kind: int
    start: int
    length: int
    pid: int


def find_lock(fd: int, start: int, length: int) -> Optional[Lock]:
    """The first lock of anybody else that touches the bytes ``start`` to ``start + length`` (0 = to the end), or ``None``.

    Asks only: nothing is locked and nothing waits. Locks of other open file descriptions of this same process count too.

    :raises OSError: where the filesystem or an old kernel has no such locks.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    try:
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, question)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, question)  # before Linux 3.15 there were only the locks of processes
    kind, dummy, start, length, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else Lock(kind, start, length, pid)


def set_lock(fd: int, kind: int, start: int, length: int) -> None:
    """Take (``F_RDLCK``, ``F_WRLCK``) or give back (``F_UNLCK``) a lock of the open file description; never waits.

    :raises OSError: EAGAIN where somebody else's lock forbids it.
    """
    fcntl.fcntl(fd, _F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))


def set_lease(fd: int, kind: int, signal_number: int) -> None:
    """Take (``F_RDLCK``) or give back (``F_UNLCK``) a lease; the kernel sends ``signal_number`` when somebody breaks it.

    :raises OSError: EAGAIN where the file is open for writing, EACCES where we neither own it nor have CAP_LEASE.
    """
    if kind != fcntl.F_UNLCK:
        fcntl.fcntl(fd, _F_SETSIG, signal_number)
    fcntl.fcntl(fd, _F_SETLEASE, kind)


def get_lease(fd: int) -> int:
    """The lease we have, or the one we are being forced down to."""
    return fcntl.fcntl(fd, _F_GETLEASE)


class Mount(NamedTuple):
    """One line of ``/proc/self/mountinfo``; names are bytes with the kernel's octal escapes undone."""

    mount_id: int
    major: int
    minor: int
    root: bytes
    point: bytes
    fstype: str
    source: bytes
    options: bytes
    parent: int  # the ``mount_id`` of what it is mounted on


def _unescape(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    parts = text.split(b"\\")
    return parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])


def mounts() -> List[Mount]:
    """Every mount of this mount namespace, in the kernel's order; empty where /proc is missing."""
    found: List[Mount] = []
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return found
    for line in lines:
        front, dummy, back = line.partition(b" - ")
        fields, tail = front.split(b" "), back.split(b" ")
        if len(fields) < 6 or len(tail) < 2:
            continue
        major, dummy, minor = fields[2].partition(b":")
        found.append(
            Mount(
                int(fields[0]),
                int(major),
                int(minor),
                _unescape(fields[3]),
                _unescape(fields[4]),
                tail[0].decode("ascii", "replace"),
                _unescape(tail[1]),
                fields[5],
                int(fields[1]),
            )
        )
    return found


def mount_points() -> Dict[bytes, Mount]:
    """What one meets at each mount point that is not itself hidden under another mount."""
    met: Dict[bytes, Mount] = {}
    for mount in sorted(mounts(), key=lambda mount: mount.point.rstrip(b"/").count(b"/")):
        above = mount.point
        while above != b"/" and (above == mount.point or above not in met):
            above = os.path.dirname(above)
        below = [there.mount_id for there in (met.get(mount.point), met.get(above)) if there is not None]
        if not below or mount.parent in below:
            met[mount.point] = mount
    return met


def mount_of(fd: int) -> Optional[Mount]:
    """The mount an open file lies on, exact also where ``st_dev`` is not the mounted device (Btrfs), or ``None`` if unknown."""
    try:
        with open("/proc/self/fdinfo/{0}".format(fd), "rb") as stream:
            info = stream.read()
    except OSError:
        return None
    for line in info.splitlines():
        if line.startswith(b"mnt_id:"):
            wanted = int(line[7:])
            return next((mount for mount in mounts() if mount.mount_id == wanted), None)
    return None


# <asm/unistd.h>; no C library has a function for it.
_NR_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "i386": 289,
    "i686": 289,
    "armv7l": 314,
    "ppc64le": 273,
    "ppc64": 273,
    "s390x": 282,
}
_LOWEST_NICE = 19
# <linux/ioprio.h>: best effort, lowest of its eight levels. Not idle: an idle process that holds a lock of the filesystem can stop everybody.
_PROCESS, _BEST_EFFORT, _SHIFT, _LOWEST_LEVEL = 1, 2, 13, 7


def lower() -> List[str]:
    """Give this process the lowest ordinary priority for processor and disk. Returns what could not be done, in words."""
    problems = []
    try:
        os.nice(_LOWEST_NICE)
    except OSError as error:
        problems.append("the processor priority could not be lowered: {0}".format(error.strerror))
    number = _NR_IOPRIO_SET.get(os.uname().machine)
    try:
        if number is None or libc().syscall(number, _PROCESS, 0, _BEST_EFFORT << _SHIFT | _LOWEST_LEVEL) != 0:
            problems.append("the disk priority could not be lowered")
    except OSError as error:
        problems.append("the disk priority could not be lowered: {0}".format(error.strerror))
    return problems
