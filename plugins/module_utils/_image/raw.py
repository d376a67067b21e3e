# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Raw images: the guest's bytes as they are, with holes where the guest reads zeros."""

import errno
import os
from typing import Iterator, Optional, Tuple

from .extent import DATA, SECTOR, Extent, Layer


def next_data(fd: int, position: int) -> Optional[int]:
    """The first byte at or after ``position`` that is not in a hole; ``None`` where only a hole follows.

    Filesystems that do not know holes answer ``position`` itself.
    """
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        return None if error.errno == errno.ENXIO else position


def data_ranges(fd: int, size: int) -> Iterator[Tuple[int, int]]:
    """``(start, length)`` in bytes of what is not a hole in the first ``size`` bytes of a file."""
    position = 0
    while position < size:
        start = next_data(fd, position)
        if start is None or start >= size:
            return
        try:
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError:
            position = size
        yield start, position - start


class Raw(Layer):
    """A raw image open for reading; its size is rounded up to whole sectors, as QEMU does for raw files."""

    format = "raw"

    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, path)
        self.virtual_size = -(-self.file_size // SECTOR) * SECTOR

    def extents(self) -> Iterator[Extent]:
        """See :meth:`Layer.extents`; holes are left out, which for a base means zeros."""
        for start, length in data_ranges(self.fd, self.file_size):
            yield Extent(start, length, DATA, self, start, length, 0)
