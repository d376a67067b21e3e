# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes raw images, into files and over devices, and takes all of a file's space before a guest needs it."""

import fcntl
import os
import struct
from typing import Iterator, Tuple

from .._image.raw import data_ranges

_BLKZEROOUT = 0x127F
_ZEROS = bytes(1 << 20)


class RawWriter:
    """Writes a raw image into an empty file: what is never placed stays a hole.

    :param fd: descriptor open for writing; stays the caller's.
    :param size: virtual size in bytes.
    """

    format = "raw"
    cluster_size = 4096  # what is not placed stays a hole; the block size of the usual filesystems
    unit = cluster_size
    compressed = False
    backed = False

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.virtual_size = size
        os.ftruncate(fd, size)

    def place(self, start: int, length: int) -> Iterator[Tuple[int, int]]:
        """See ``Qcow2Writer.place``: guest bytes lie where they are."""
        yield start, length

    def finish(self) -> None:
        """Nothing is left to write: a raw image has no tables."""


class DeviceWriter(RawWriter):
    """Writes a raw image over whatever a device held; zeros are written too."""

    backed = True

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.virtual_size = size

    def place_zeros(self, start: int, length: int) -> None:
        """See ``Qcow2Writer.place_zeros``; by the device itself where it can."""
        try:
            fcntl.ioctl(self.fd, _BLKZEROOUT, struct.pack("QQ", start, length))
        except OSError:
            while length:
                done = os.pwrite(self.fd, _ZEROS[: min(length, len(_ZEROS))], start)
                start, length = start + done, length - done


def preallocate(fd: int, *, full: bool) -> None:
    """Give every hole of a finished file its space.

    :param fd: open for reading and writing. :param full: write zeros there instead of only reserving the space.
    :raises OSError: where the filesystem has not got it.
    """
    size = os.lseek(fd, 0, os.SEEK_END)
    if not full:
        if size:
            os.posix_fallocate(fd, 0, size)
        return
    position = 0
    for start, length in list(data_ranges(fd, size)) + [(size, 0)]:
        while position < start:
            position += os.pwrite(fd, _ZEROS[: min(len(_ZEROS), start - position)], position)
        position = start + length
