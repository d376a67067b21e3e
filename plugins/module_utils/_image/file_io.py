# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes between a file and memory, and what the kernel does with ranges of files without our seeing the bytes.

Everything here works on every Linux and every Python from 3.6; where a call is missing, the next best is done instead.
"""

import errno
import fcntl
import os
import struct
from typing import Any, Optional

from .._errors import ImageChanged

try:
    import ctypes
except ImportError:  # a Python may be built without it
    ctypes = None  # type: ignore[assignment]

# <linux/fs.h>: FICLONE is _IOW(0x94, 9, int), FICLONERANGE is _IOW(0x94, 13, struct file_clone_range).
_RANGE = struct.Struct("=qQQQ")  # source descriptor, source offset, length, offset in the result
_IOW = 0x80000000 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 0x40000000
_FICLONE = _IOW | 4 << 16 | 0x94 << 8 | 9
_FICLONERANGE = _IOW | _RANGE.size << 16 | 0x94 << 8 | 13

# Answers that say "not these files" or "not this range"; anything else is an error of the disk.
_NOT_CLONED = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY))

_SYNC_FILE_RANGE_WRITE = 2
PIECE = 1 << 20
"""Bytes read or written at a time where nothing asks for more or less."""


if hasattr(os, "preadv"):

    def read_into(fd: int, view: memoryview, offset: int) -> int:
        """Read into ``view`` from byte ``offset``; the number of bytes that came."""
        return os.preadv(fd, (view,), offset)

else:  # Python 3.6

    def read_into(fd: int, view: memoryview, offset: int) -> int:
        """See above."""
        data = os.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)


def read_all(layer: Any, offset: int, view: memoryview) -> None:
    """Fill ``view`` from byte ``offset`` of a layer's file.

    :raises ImageChanged: where the file has become shorter than it was when it was opened.
    """
    wanted = len(view)
    done = read_into(layer.fd, view, offset)
    while done < wanted:
        count = read_into(layer.fd, view[done:], offset + done)
        if not count:
            raise ImageChanged(
                "the file ends at byte {0} while it is being read".format(offset + done), layer.path, hint="Nothing was published."
            )
        done += count


def write_all(fd: int, data: Any, offset: int) -> None:
    """Write the whole of ``data`` at byte ``offset``."""
    done = os.pwrite(fd, data, offset)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def copy_all(layer: Any, offset: int, length: int, target: int, at: int) -> None:
    """Copy ``length`` bytes from byte ``offset`` of a layer's file to byte ``at`` of another.

    :raises ImageChanged: see :func:`read_all`.
    """
    while length:
        piece = bytearray(min(length, PIECE))
        read_all(layer, offset, memoryview(piece))
        write_all(target, piece, at)
        offset, at, length = offset + len(piece), at + len(piece), length - len(piece)


def clone_file(source: int, target: int) -> bool:
    """Let ``target``, an empty file, share all of ``source``'s blocks. Whether that was possible.

    :raises OSError: for anything but "not these files".
    """
    return _ioctl(target, _FICLONE, source)


def clone_range(source: int, offset: int, length: int, target: int, at: int) -> bool:
    """Let bytes [at, at + length) of ``target`` share the blocks of bytes [offset, offset + length) of ``source``.

    All three must be multiples of the filesystem's block size. Whether that was possible.

    :raises OSError: for anything but "not these files" and "not this range".
    """
    return _ioctl(target, _FICLONERANGE, _RANGE.pack(source, offset, length, at))


def _ioctl(fd: int, request: int, argument: Any) -> bool:
    try:
        fcntl.ioctl(fd, request, argument)
        return True
    except OSError as error:
        if error.errno in _NOT_CLONED:
            return False
        raise


def clone_unit(source: int, target: int) -> int:
    """The block size in bytes in which ranges of ``source`` can be cloned into ``target``; 0 where they cannot.

    Found out by doing it once behind the end of ``target``, whose size is put back.
    """
    status = os.fstat(target)
    if os.fstat(source).st_dev != status.st_dev:
        return 0  # Btrfs could between subvolumes, but has one number for each; cp asks, we would have to as well
    unit = os.statvfs(target).f_bsize
    if unit <= 0 or os.fstat(source).st_size < unit:
        return 0
    try:
        return unit if clone_range(source, 0, unit, target, -(-status.st_size // unit) * unit) else 0
    except OSError:
        return 0
    finally:
        os.ftruncate(target, status.st_size)


_sync_file_range: Optional[Any] = None


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to the disk, so that the sync at the end finds little left. Never fails."""
    global _sync_file_range
    if _sync_file_range is None:
        _sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if ctypes is not None else None
        _sync_file_range = _sync_file_range or (lambda *dummy: 0)
    if ctypes is not None:
        _sync_file_range(ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def expect(fd: int, offset: int, length: int) -> None:
    """Tell the kernel that a range will be read soon. Never fails."""
    _advise(fd, offset, length, "POSIX_FADV_WILLNEED")


def forget(fd: int, offset: int = 0, length: int = 0) -> None:
    """Let the kernel drop a range (to the end of the file where ``length`` is 0) from its page cache, but for what is not on the disk yet."""
    _advise(fd, offset, length, "POSIX_FADV_DONTNEED")


def _advise(fd: int, offset: int, length: int, advice: str) -> None:
    number = getattr(os, advice, None)
    if number is not None:
        try:
            os.posix_fadvise(fd, offset, length, number)
        except OSError:
            pass  # a pipe, or a filesystem without advice
