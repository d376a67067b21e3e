# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a file may hold anything but zeros: the hole search of verification, which the copy knows nothing of.

The copy asks ``SEEK_DATA``, and believes it. Filesystems have answered it wrongly, and a copy that skips data as a hole is only found by somebody
who does not skip the same. So a range is taken for a hole here only if

* ``SEEK_DATA`` and the filesystem's extent map (``FIEMAP``) both say so. Of unwritten extents the map says that they are zeros, but not before what
  waits for them in memory has been written: it is asked again after that;
* and what the two together call data accounts for the space that the file occupies (``st_blocks``).

Else the whole file is read. Where there is no extent map (tmpfs, NFS, ZFS, FUSE), ``SEEK_DATA`` is alone; the whole file is read then, unless
that were many times what the file holds. The work is bounded by what a file holds, not by its size.
"""

import errno
import fcntl
import heapq
import os
import stat
import struct
from typing import Iterator, Tuple

ByteRange = Tuple[int, int]
"""``(start, stop)`` in bytes of a file."""

AFFORDABLE = 1 << 30
"""Bytes of holes that are read rather than believed where only one witness speaks, besides as many as the file has of data."""

_BOOKKEEPING = 128
_SMALLEST_BOOKKEEPING = 64 << 10
# A filesystem counts its own tables into what a file occupies: one byte in 128 of its data, and 64 KiB, are more than any of them needs.

_BLOCK = 512  # of st_blocks, whatever the filesystem's
_WHOLE_FILE = (1 << 63) - 1  # behind the file's end, too, space may be taken

# <linux/fiemap.h>; _IOWR('f', 11, struct fiemap) is the same number on all architectures.
_FS_IOC_FIEMAP = 0xC020660B
_REQUEST = struct.Struct("=QQIIII")  # start, length, flags, extents mapped, room for extents, reserved
_EXTENT = struct.Struct("=QQQQQIIII")  # logical and physical byte, length, two reserved, flags, three reserved
_SYNC = 1
_LAST = 0x1
_UNWRITTEN = 0x800
_AT_ONCE = 512  # extents


class FileMap:
    """Which bytes of an open file may be other than zeros. Made before processes share the work: it asks for the whole file once.

    :param fd: descriptor open for reading; stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.mapped = stat.S_ISREG(status.st_mode) and _has_map(fd)
        """Whether there is an extent map."""
        self.believed = stat.S_ISREG(status.st_mode) and self._holes_are_proven(_BLOCK * status.st_blocks)
        """Whether holes are passed over; otherwise everything is read."""

    def _holes_are_proven(self, occupied: int) -> bool:
        said = sum(stop - start for start, stop in _by_seek(self.fd, 0, self.size))
        if said >= self.size:
            return True
        if self.mapped:
            everything = _united(_by_seek(self.fd, 0, self.size), _by_map(self.fd, 0, _WHOLE_FILE, unwritten=True))
            said = sum(stop - start for start, stop in everything)
        elif self.size - said <= AFFORDABLE + said:
            return False
        return occupied <= said + said // _BOOKKEEPING + _SMALLEST_BOOKKEEPING

    def ranges(self, start: int = 0, stop: int = _WHOLE_FILE) -> Iterator[ByteRange]:
        """The ranges of [start, stop), up to the end of the file, that have to be read, ascending and without overlaps."""
        stop = min(stop, self.size)
        if start >= stop:
            return
        if not self.believed:
            yield start, stop
        elif self.mapped:
            yield from _united(_by_seek(self.fd, start, stop), _by_map(self.fd, start, stop, unwritten=False))
        else:
            yield from _by_seek(self.fd, start, stop)


def called_a_hole(fd: int, start: int, stop: int) -> bool:
    """Whether ``SEEK_DATA`` calls any of the bytes [start, stop) a hole that are not zeros. For messages: it reads them."""
    told = [start]
    for first, last in _by_seek(fd, start, stop):
        told += [first, last]
    told.append(stop)
    return any(any(os.pread(fd, last - first, first)) for first, last in zip(told[::2], told[1::2]) if first < last)


def _by_seek(fd: int, start: int, stop: int) -> Iterator[ByteRange]:
    """What ``SEEK_DATA`` and ``SEEK_HOLE`` call data; everything where they are not known, or make no sense."""
    while start < stop:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield start, stop
            return
        if first >= stop:
            return
        first = max(first, start)
        try:
            last = os.lseek(fd, first, os.SEEK_HOLE)
        except OSError:
            last = stop
        start = min(last, stop) if last > first else stop
        yield first, start


def _has_map(fd: int) -> bool:
    try:
        _extents(fd, 0, 1, 0)
    except OSError:
        return False
    return True


def _by_map(fd: int, start: int, stop: int, *, unwritten: bool) -> Iterator[ByteRange]:
    """What the extent map names; everything that is left where it fails half way.

    :param unwritten: also extents that are reserved and not written.
    """
    flags = 0
    while start < stop:
        try:
            found, last = _extents(fd, start, stop - start, flags)
        except OSError:
            yield start, stop
            return
        before = start
        for first, end, kind in found:
            if kind & _UNWRITTEN and not unwritten and not flags:
                break
            if first < stop and end > start:
                if unwritten or not kind & _UNWRITTEN:
                    yield max(first, start), min(end, stop)
                start = min(end, stop)
        else:
            if last or not found:
                return
            if start == before:  # a map that goes backwards
                yield start, stop
                return
            continue
        flags = _SYNC  # what waits in memory for this place is written before the map is asked again


def _extents(fd: int, start: int, length: int, flags: int) -> Tuple[Tuple[Tuple[int, int, int], ...], bool]:
    """Up to :data:`_AT_ONCE` extents as ``(start, stop, flags)``, and whether no others follow."""
    answer = bytearray(_REQUEST.size + _AT_ONCE * _EXTENT.size)
    _REQUEST.pack_into(answer, 0, start, length, flags, 0, _AT_ONCE, 0)
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, answer, True)
    count = min(_REQUEST.unpack_from(answer)[3], _AT_ONCE)
    words = [_EXTENT.unpack_from(answer, _REQUEST.size + number * _EXTENT.size) for number in range(count)]
    return tuple((word[0], word[0] + word[2], word[5]) for word in words), bool(words and words[-1][5] & _LAST)


def _united(one: Iterator[ByteRange], other: Iterator[ByteRange]) -> Iterator[ByteRange]:
    """The bytes that either has; ranges that touch come as one."""
    start = stop = 0
    for first, last in heapq.merge(one, other):
        if first > stop:
            if stop > start:
                yield start, stop
            start = first
        elif stop == start:
            start = first
        stop = max(stop, last)
    if stop > start:
        yield start, stop
