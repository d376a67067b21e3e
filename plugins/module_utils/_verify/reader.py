# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The second way to read an image, for verification only.

It shares no code with the extents: not the headers, not the tables, not the search for holes. That is the one deliberate exception to "everything
speaks extents": a mistake in the one path must not hide in the other. Only decryption is the same, and is handed in by whoever opens a chain.
"""

import os
import stat
from typing import Any, Iterator, List, NamedTuple

from .._fingerprint import BLOCK
from .holes import FileMap, called_a_hole


class Place(NamedTuple):
    """Bytes of a file on which what the guest sees depends."""

    what: str  # they are, in words
    fd: int
    path: bytes
    start: int  # byte in the file
    length: int  # bytes


class Reader:
    """One file of a chain. ``size`` is the virtual size in bytes."""

    size = 0

    def blocks(self) -> Iterator[range]:
        """Indexes of the blocks in which this file may hold something, in ranges whose beginnings ascend; they may overlap."""
        raise NotImplementedError

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        """Lay what this file holds of a block, and of those after it, over ``view`` (whole blocks long).

        :param lowest: nothing lies below: what the file does not hold, up to its virtual size, becomes zeros.
        :raises DamagedImage: where a compressed cluster cannot be inflated.
        """
        raise NotImplementedError

    def places(self, block: int) -> List[Place]:
        """Where it looks first to read a block."""
        return []

    def held(self) -> int:
        """Bytes that the file occupies; of a block device, all."""
        return 0


def misreported(readers: List[Reader], block: int) -> List[Place]:
    """Of what has to be looked at for a block, that which the filesystem calls a hole although it holds something."""
    places = [place for reader in readers for place in reader.places(block)]
    return [place for place in places if called_a_hole(place.fd, place.start, place.start + place.length)]


class FileReader(Reader):
    """A reader of an open file.

    :param fd: descriptor open for reading; stays the caller's. :param path: its name, for messages.
    """

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path

    def held(self) -> int:
        status = os.fstat(self.fd)
        return 512 * status.st_blocks if stat.S_ISREG(status.st_mode) else os.lseek(self.fd, 0, os.SEEK_END)

    def stored(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from byte ``offset`` of the file; the bytes behind its end are zeros."""
        done = _read_into(self.fd, view, offset)
        while done < len(view):  # the end of the file, or a signal
            data = os.pread(self.fd, len(view) - done, offset + done)
            if not data:
                view[done:] = bytes(len(view) - done)
                return
            view[done : done + len(data)] = data
            done += len(data)


if hasattr(os, "preadv"):

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, (view,), offset)

else:  # Python 3.6

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        data = os.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)


class RawReader(FileReader):
    """A raw image; only holes that are proven to be holes are not visited."""

    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, path)
        self._map = FileMap(fd)
        self.size = self._map.size

    def blocks(self) -> Iterator[range]:
        for start, stop in self._map.ranges():
            yield range(start // BLOCK, -(-stop // BLOCK))

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        self.stored(block * BLOCK, view)

    def places(self, block: int) -> List[Place]:
        length = min(BLOCK, self.size - block * BLOCK)
        return [Place("data", self.fd, self.path, block * BLOCK, length)] if length > 0 else []


class LostReader(Reader):
    """What the operator gave up in an image that has a base: zeros laid over the base, to be put before the image itself.

    :param size: virtual size of the image in bytes. :param lost: guest ranges ``(start, length)`` in bytes.
    """

    def __init__(self, size: int, lost: Any) -> None:
        self.size = size
        self.lost = sorted(lost)

    def blocks(self) -> Iterator[range]:
        for start, length in self.lost:
            yield range(start // BLOCK, -(-(start + length) // BLOCK))

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        zero_lost(self.lost, block * BLOCK, view)


def zero_lost(lost: Any, guest: int, view: memoryview) -> None:
    """Make zeros of what was given up.

    :param lost: guest ranges ``(start, length)`` in bytes. :param view: bytes from guest byte ``guest`` on.
    """
    for start, length in lost:
        first = max(start - guest, 0)
        last = min(start + length - guest, len(view))
        if first < last:
            view[first:last] = bytes(last - first)
