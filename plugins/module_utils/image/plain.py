# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The second way to read an image, for verification only.

It shares no decoding with the extents: header and entries are looked up one cluster at a time, the way the formats describe them. That is the one
deliberate exception to "everything speaks extents": a mistake in the one reader must not hide in the other. Plain, not fast; but ranges
without an L2 table cost nothing.
"""

import heapq
import os
import struct
import zlib
from typing import Any, Callable, Iterator, List, Optional, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import DamagedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import data_ranges

BLOCK = 1 << 16
"""Bytes of the pieces in which two images are compared and fingerprinted; independent of any cluster size."""

Decrypt = Callable[[int, bytes], bytes]


class PlainImage:
    """One file of a chain, read plainly. ``size`` is the virtual size in bytes."""

    size = 0

    def blocks(self) -> Iterator[int]:
        """Indexes of the blocks in which this file may hold something, ascending, perhaps repeated."""
        raise NotImplementedError

    def fill(self, block: int, buffer: bytearray) -> None:
        """Lay what this file holds of a block over ``buffer`` (one block long)."""
        raise NotImplementedError


class _Tabled(PlainImage):
    """What QCOW v1 and qcow2 have in common: two levels of tables of big-endian 64-bit words."""

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path
        self._table_index = -1
        self._table = b""
        self.cluster = 0
        self.entry_size = 8
        self.per_table = 0
        self.l1_offset = 0
        self.l1_size = 0

    def table_at(self, entry: int) -> int:
        """Where the L2 table lies that an L1 entry names; 0 for none."""
        raise NotImplementedError

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        """Lay the cluster at byte ``guest`` of the disk over ``view`` (its part of a block, or a block's part of it)."""
        raise NotImplementedError

    def _l1(self, index: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, self.l1_offset + 8 * index), "big")

    def blocks(self) -> Iterator[int]:
        reach = self.per_table * self.cluster
        for start, length in data_ranges(self.fd, self.l1_offset + 8 * self.l1_size):
            first = max(0, (start - self.l1_offset) // 8)
            last = -(-(start + length - self.l1_offset) // 8)
            while first < last:
                chunk = os.pread(self.fd, 8 * min(4096, last - first), self.l1_offset + 8 * first)
                if any(chunk):
                    for number in range(len(chunk) // 8):
                        if any(chunk[8 * number : 8 * number + 8]):
                            begin = (first + number) * reach
                            yield from self._occupied(first + number, begin // BLOCK, -(-min(begin + reach, self.size) // BLOCK))
                first += 4096

    def _occupied(self, index: int, first: int, last: int) -> Iterator[int]:
        """Those blocks of one table in which an entry is not zero."""
        table = self._load(index)
        width = BLOCK // self.cluster * self.entry_size
        if width < self.entry_size or len(table) <= width:
            yield from range(first, last)
            return
        for number in range(last - first):
            if any(table[number * width : (number + 1) * width]):
                yield first + number

    def _load(self, index: int) -> bytes:
        if index != self._table_index:
            offset = self.table_at(self._l1(index)) if index < self.l1_size else 0
            self._table = os.pread(self.fd, self.per_table * self.entry_size, offset) if offset else b""
            self._table_index = index
        return self._table

    def fill(self, block: int, buffer: bytearray) -> None:
        start = block * BLOCK
        stop = min(start + BLOCK, self.size)
        view = memoryview(buffer)
        guest = start
        while guest < stop:
            number = guest // self.cluster
            step = min((number + 1) * self.cluster, stop) - guest
            index, slot = divmod(number, self.per_table)
            table = self._load(index)
            entry = table[slot * self.entry_size : (slot + 1) * self.entry_size]
            if any(entry):
                self.overlay(guest, entry, view[guest - start : guest - start + step])
            guest += step

    def _stored(self, offset: int, view: memoryview) -> None:
        data = os.pread(self.fd, len(view), offset)
        view[: len(data)] = data
        if len(data) < len(view):
            view[len(data) :] = bytes(len(view) - len(data))

    def _inflated(self, offset: int, length: int, skip: int, view: memoryview) -> None:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(os.pread(self.fd, length, offset), self.cluster)
        except zlib.error as error:
            raise DamagedImage("the compressed cluster at byte {0} cannot be inflated ({1})".format(offset, error), self.path) from error
        if len(data) != self.cluster:
            raise DamagedImage("the compressed cluster at byte {0} yields {1} of {2} bytes".format(offset, len(data), self.cluster), self.path)
        view[:] = data[skip : skip + len(view)]


class PlainQcow1(_Tabled):
    """A QCOW v1 image, cluster by cluster.

    :param l1_byteorder: ``little`` for old Xen images; found out here where it is not given.
    :param lost: guest ranges ``(start, length)`` that the operator accepted as zeros (salvage).
    """

    def __init__(self, fd: int, path: bytes, decrypt: Optional[Decrypt] = None, l1_byteorder: Optional[str] = None, lost: Any = ()) -> None:
        super().__init__(fd, path)
        head = os.pread(fd, 52, 0)
        (self.size,) = struct.unpack_from(">Q", head, 24)
        self.cluster = 1 << head[32]
        self.per_table = 1 << head[33]
        self.encrypted = head[39] == 1
        (self.l1_offset,) = struct.unpack_from(">Q", head, 40)
        self.l1_size = -(-self.size // (self.cluster * self.per_table))
        self.decrypt = decrypt
        self.l1_byteorder = l1_byteorder or ("little" if head[48:52] == b"XEN\xfb" and self._first_entry_is_little() else "big")
        self.lost = sorted(lost)

    def _first_entry_is_little(self) -> bool:
        """Whether the first L1 entry that is not zero names a byte of the file only when it is read backwards."""
        if self.l1_offset % 4096:
            return False
        end = self.l1_offset + 8 * self.l1_size
        size = os.lseek(self.fd, 0, os.SEEK_END)
        for start, length in data_ranges(self.fd, min(end, size)):
            for place in range(max(start // 4096 * 4096, self.l1_offset), min(start + length, end), 4096):
                page = os.pread(self.fd, min(4096, end - place), place)
                for number in range(0, len(page) if any(page) else 0, 8):
                    word = page[number : number + 8]
                    if any(word):
                        return int.from_bytes(word, "little") < size <= int.from_bytes(word, "big")
        return False

    def table_at(self, entry: int) -> int:
        return entry if self.l1_byteorder == "big" else int.from_bytes(entry.to_bytes(8, "big"), "little")

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        word = int.from_bytes(entry, "big")
        skip = guest % self.cluster
        if any(start <= guest + len(view) - 1 and guest < start + length for start, length in self.lost):
            self._overlay_salvaged(guest, word, skip, view)
        elif word >> 63:
            self._compressed(word, skip, view)
        elif self.encrypted:
            self._encrypted(guest, word + skip, view)
        else:
            self._stored(word + skip, view)

    def _compressed(self, word: int, skip: int, view: memoryview) -> None:
        bits = 63 - (self.cluster.bit_length() - 1)
        self._inflated(word & ((1 << bits) - 1), word >> bits & (self.cluster - 1), skip, view)

    def _encrypted(self, guest: int, offset: int, view: memoryview) -> None:
        if self.decrypt is None:
            raise DamagedImage("the image is encrypted and there is no key", self.path, reason="passphrase")
        whole = bytearray(-(-len(view) // 512) * 512)
        self._stored(offset, memoryview(whole))
        view[:] = self.decrypt(guest, bytes(whole))[: len(view)]

    def _overlay_salvaged(self, guest: int, word: int, skip: int, view: memoryview) -> None:
        """A cluster of which the operator gave up some bytes: those are zeros, the others as stored."""
        kept = bytearray(len(view))
        if not word >> 63 and word % 512 == 0:
            if self.encrypted:
                self._encrypted(guest, word + skip, memoryview(kept))
            else:
                self._stored(word + skip, memoryview(kept))
        view[:] = kept
        for start, length in self.lost:
            first = max(start - guest, 0)
            last = min(start + length - guest, len(view))
            if first < last:
                view[first:last] = bytes(last - first)


class PlainLost(PlainImage):
    """What the operator gave up in an image that has a base: zeros laid over the base, to be put before the image itself.

    :param size: virtual size of the image in bytes. :param lost: guest ranges ``(start, length)`` in bytes.
    """

    def __init__(self, size: int, lost: Any) -> None:
        self.size = size
        self.lost = sorted(lost)

    def blocks(self) -> Iterator[int]:
        for start, length in self.lost:
            yield from range(start // BLOCK, -(-(start + length) // BLOCK))

    def fill(self, block: int, buffer: bytearray) -> None:
        for start, length in self.lost:
            first = max(start - block * BLOCK, 0)
            last = min(start + length - block * BLOCK, BLOCK)
            if first < last:
                buffer[first:last] = bytes(last - first)


class PlainQcow2(_Tabled):
    """A qcow2 image without encryption or external data, cluster by cluster."""

    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, path)
        head = os.pread(fd, 112, 0)
        (bits, self.size, _crypt, self.l1_size, self.l1_offset) = struct.unpack_from(">IQIIQ", head, 20)
        self.cluster = 1 << bits
        self.version = head[7]
        self.extended = bool(self.version == 3 and head[79] & 16)
        self.entry_size = 16 if self.extended else 8
        self.per_table = self.cluster // self.entry_size

    def table_at(self, entry: int) -> int:
        return entry & 0x00FFFFFFFFFFFE00

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        word = int.from_bytes(entry[:8], "big")
        skip = guest % self.cluster
        if word >> 62 & 1:
            shift = 62 - (self.cluster.bit_length() - 9)
            offset = word & ((1 << shift) - 1)
            sectors = (word & ((1 << 62) - 1)) >> shift
            self._inflated(offset, (sectors + 1) * 512 - offset % 512, skip, view)
        elif self.extended:
            self._subclusters(word & 0x00FFFFFFFFFFFE00, int.from_bytes(entry[8:], "big"), skip, view)
        elif word & 1 and self.version == 3:
            view[:] = bytes(len(view))
        elif word & 0x00FFFFFFFFFFFE00:
            self._stored((word & 0x00FFFFFFFFFFFE00) + skip, view)

    def _subclusters(self, offset: int, bitmap: int, skip: int, view: memoryview) -> None:
        width = self.cluster // 32
        done = 0
        while done < len(view):
            bit = (skip + done) // width
            step = min((bit + 1) * width - skip, len(view)) - done
            if bitmap >> (32 + bit) & 1:
                view[done : done + step] = bytes(step)
            elif bitmap >> bit & 1:
                self._stored(offset + skip + done, view[done : done + step])
            done += step


class PlainRaw(PlainImage):
    """A raw image; holes are not visited."""

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def blocks(self) -> Iterator[int]:
        for start, length in data_ranges(self.fd, self.size):
            yield from range(start // BLOCK, -(-(start + length) // BLOCK))

    def fill(self, block: int, buffer: bytearray) -> None:
        data = os.pread(self.fd, BLOCK, block * BLOCK)
        buffer[: len(data)] = data


def guest_blocks(chain: List[PlainImage]) -> Iterator[Tuple[int, bytearray]]:
    """``(index, bytes)`` of the guest's blocks in which any file of a chain may hold something; ``chain[0]`` is the image itself.

    The bytearray is one block long, zero behind the end of the disk, and reused: take what you need before the next one.
    """
    size = chain[0].size
    previous = -1
    buffer = bytearray(BLOCK)
    for block in heapq.merge(*(image.blocks() for image in chain)):
        if block == previous:
            continue
        previous = block
        if block * BLOCK >= size:
            break
        buffer[:] = bytes(BLOCK)
        for image in reversed(chain):
            image.fill(block, buffer)
            # Behind its end a base shows zeros to its overlay, whatever lies below it.
            end = max(0, image.size - block * BLOCK)
            if end < BLOCK:
                buffer[end:] = bytes(BLOCK - end)
        yield block, buffer
