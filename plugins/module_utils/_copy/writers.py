# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes results: raw images into files and over devices, and qcow2 version 3, each front to back in one pass.

Clusters of a qcow2 image are taken from the end of the file in the order in which they are asked for, so that what follows in the guest follows in
the file; an L2 table is written as soon as the guest has passed its range, a refcount block as soon as the file has. Memory holds the L1 table (at
most 32 MiB by the format) and one table of each other kind. Specification: QEMU's ``docs/interop/qcow2.txt``.
"""

import fcntl
import os
import struct
import sys
from array import array
from typing import Iterator, List, Optional, Tuple

from .._image.extent import SECTOR
from .._image.qcow2_header import Qcow2Options, complete_header, require_possible
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


COPIED = 1 << 63
COMPRESSED_FLAG = 1 << 62
_SUBCLUSTERS = 32
_ALL_SUBCLUSTERS = (1 << _SUBCLUSTERS) - 1
_ZERO_FLAG = 1

REFCOUNT_BYTES = 2
"""Bytes of one count, in the files we write."""


class Refcounts:
    """16-bit reference counts of the clusters of a file that only grows, kept for the blocks that are not written yet."""

    def __init__(self, cluster_size: int) -> None:
        self.per_block = cluster_size // REFCOUNT_BYTES
        self.table = array("Q")
        self._blocks: dict = {}
        self._kept: List[int] = []

    @property
    def blocks_placed(self) -> int:
        """Blocks that have their place in the file."""
        return len(self.table)

    def blocks_needed(self, clusters: int) -> int:
        """Blocks that count so many clusters."""
        return -(-clusters // self.per_block)

    def complete_blocks(self, clusters: int) -> bool:
        """Whether the first block not placed yet counts only clusters before ``clusters``, so that it can be written for good."""
        return clusters >= (self.blocks_placed + 1) * self.per_block

    def add(self, first: int, last: int) -> None:
        """One more reference to each of the clusters first..last."""
        while first <= last:
            number, index = divmod(first, self.per_block)
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = array("H", bytes(REFCOUNT_BYTES * self.per_block))
            count = min(last - first + 1, self.per_block - index)
            if count > 1 and not any(block[index : index + count]):
                block[index : index + count] = array("H", [1]) * count
            else:
                for position in range(index, index + count):
                    block[position] += 1
            first += count

    def place_block(self, offset: int, *, keep: bool) -> Optional[array]:
        """Note that the next block lies at byte ``offset``; it is returned to be written unless it is kept for later changes."""
        number = self.blocks_placed
        self.table.append(offset)
        if keep:
            self._kept.append(number)
            return None
        return self._blocks.pop(number)

    def unwritten(self) -> List[Tuple[int, array]]:
        """``(offset, block)`` of the blocks that were kept."""
        return [(self.table[number], self._blocks[number]) for number in self._kept]


class Qcow2Writer:
    """Writes one image into an empty file.

    Guest ranges are placed in ascending order; :meth:`finish` writes what the image needs to be one. Until then the file has no header.
    What is never placed shows the backing file where there is one, else zeros; ``backed`` says that zeros have to be placed too.
    ``unit`` is the number of bytes that can be placed by themselves.

    :param fd: descriptor open for writing, at least; stays the caller's.
    :param virtual_size: bytes, a multiple of 512.
    :raises UnsupportedImage: where the format cannot hold the image with these options.
    """

    format = "qcow2"

    def __init__(self, fd: int, virtual_size: int, options: Optional[Qcow2Options] = None) -> None:
        self.fd = fd
        self.virtual_size = virtual_size
        self.options = options or Qcow2Options()
        self.cluster_size = self.options.cluster_size
        self.compressed = self.options.compressed
        self.backed = self.options.backing_name is not None or self.options.preallocated
        self._by_subcluster = self.options.by_subcluster
        self.unit = self.cluster_size // _SUBCLUSTERS if self._by_subcluster else self.cluster_size
        self._entry_words = 2 if self.options.extended_l2 else 1
        self._entries_per_l2 = self.cluster_size // (8 * self._entry_words)
        self._l2_coverage = self._entries_per_l2 * self.cluster_size
        self._header, l1_entries = require_possible(self.options, virtual_size)
        self._l1 = array("Q", bytes(8 * l1_entries))
        self._l2 = array("Q")
        self._l2_index = -1
        self._end = 0  # first byte of the file not given away yet; a multiple of the cluster size unless streams are being packed
        self._refcounts = Refcounts(self.cluster_size)
        self._allocate(1)

    def place(self, start: int, length: int) -> Iterator[Tuple[int, int]]:
        """Give guest bytes [start, start + length) places in the file: whole units, but for the end of the disk.

        :return: ``(offset in the file, bytes)`` of the pieces, in guest order.
        """
        stop = start + length
        while start < stop:
            border = (start // self._l2_coverage + 1) * self._l2_coverage
            piece = min(stop, border) - start
            if self._by_subcluster and (start % self.cluster_size or piece < self.cluster_size):
                piece = min(piece, self.cluster_size - start % self.cluster_size)
                yield self._place_subclusters(start, -(-piece // self.unit)), piece
            else:
                if self._by_subcluster and stop < self.virtual_size:
                    piece -= piece % self.cluster_size
                yield self._place_in_table(start, -(-piece // self.cluster_size)), piece
            start += piece

    def _place_subclusters(self, start: int, count: int) -> int:
        index = start // self._l2_coverage
        self._open_l2(index)
        slot = 2 * ((start - index * self._l2_coverage) // self.cluster_size)
        first = start % self.cluster_size // self.unit
        if not self._l2[slot]:
            self._l2[slot] = self._allocate(1) | COPIED
        self._l2[slot + 1] |= ((1 << count) - 1) << first
        return (self._l2[slot] & ~COPIED) + start % self.cluster_size

    def place_zeros(self, start: int, length: int) -> None:
        """Let guest bytes [start, start + length), whole units, read as zeros whatever the backing file holds.

        Takes data clusters only where the image is preallocated.
        """
        if self.options.preallocated:
            for _piece in self.place(start, length):
                pass
            return
        for position in range(start, start + length, self.unit):
            index = position // self._l2_coverage
            self._open_l2(index)
            number = (position - index * self._l2_coverage) // self.cluster_size
            if self._entry_words == 1:
                self._l2[number] = _ZERO_FLAG
            elif self._by_subcluster:
                self._l2[2 * number + 1] |= 1 << (_SUBCLUSTERS + position % self.cluster_size // self.unit)
            else:
                self._l2[2 * number + 1] = _ALL_SUBCLUSTERS << _SUBCLUSTERS

    def _place_in_table(self, start: int, count: int) -> int:
        cluster = self.cluster_size
        index = start // self._l2_coverage
        self._open_l2(index)
        first = (start - index * self._l2_coverage) // cluster
        offset = self._allocate(count)
        entries = array("Q", range(offset | COPIED, (offset + count * cluster) | COPIED, cluster))
        if self._entry_words == 1:
            self._l2[first : first + count] = entries
        else:
            self._l2[2 * first : 2 * (first + count) : 2] = entries
            self._l2[2 * first + 1 : 2 * (first + count) : 2] = array("Q", [_ALL_SUBCLUSTERS]) * count
        return offset

    def place_stream(self, start: int, length: int) -> int:
        """Give the cluster at guest byte ``start`` a place as a DEFLATE stream of ``length`` bytes, packed behind the last one."""
        cluster_bits = self.cluster_size.bit_length() - 1
        index = start // self._l2_coverage
        self._open_l2(index)
        offset = self._end
        last = offset + length - 1
        sectors = last // SECTOR - offset // SECTOR
        # The specification counts the clusters touched by the sectors the descriptor names, rounded to whole sectors.
        self._refcounts.add(offset // self.cluster_size, last // self.cluster_size)
        self._end = offset + length
        shift = 62 - (cluster_bits - 8)
        self._l2[self._entry_words * ((start - index * self._l2_coverage) // self.cluster_size)] = (
            COMPRESSED_FLAG | sectors << shift | offset
        )
        self._flush_refcounts()
        return offset

    def finish(self) -> None:
        """Write the tables and, last of all, the header. Nothing is synced."""
        self._close_l2()
        l1_offset = self._allocate(max(1, -(-8 * len(self._l1) // self.cluster_size)))
        self._write(l1_offset, self._l1)
        table_offset, table_clusters = self._finish_refcounts()
        complete_header(self._header, self.virtual_size, l1_offset, len(self._l1), table_offset, table_clusters)
        os.ftruncate(self.fd, self._end)
        os.pwrite(self.fd, self._header, 0)

    def _finish_refcounts(self) -> Tuple[int, int]:
        """Place and write the last refcount blocks and the table; their own clusters may need a further block each."""
        per_table_cluster = self.cluster_size // 8
        cluster = self.cluster_size
        self._round_up()
        # One block more than needed now covers what the table and the blocks themselves take.
        while True:
            blocks = self._refcounts.blocks_needed(self._end // cluster)
            clusters = -(-(blocks + 1) // per_table_cluster)
            total = self._end // cluster + clusters + blocks - self._refcounts.blocks_placed
            if self._refcounts.blocks_needed(total) <= blocks + 1:
                break
            self._allocate(1)  # practically never: the extra block was not enough; waste a cluster and count again
        table_offset = self._allocate(clusters)
        while self._refcounts.blocks_placed < self._refcounts.blocks_needed(self._end // cluster):
            self._place_block(all_known=False)
        for offset, block in self._refcounts.unwritten():
            self._write(offset, block)
        self._write(table_offset, self._refcounts.table)
        return table_offset, clusters

    def _place_block(self, *, all_known: bool) -> None:
        offset = self._end
        self._refcounts.add(offset // self.cluster_size, offset // self.cluster_size)
        self._end = offset + self.cluster_size
        block = self._refcounts.place_block(offset, keep=not all_known)
        if block is not None:
            self._write(offset, block)

    def _flush_refcounts(self) -> None:
        """Write refcount blocks whose clusters are all given away; only at cluster borders, so that packed streams stay together."""
        while self._refcounts.complete_blocks(self._end // self.cluster_size):
            self._round_up()
            self._place_block(all_known=True)

    def _round_up(self) -> None:
        self._end = -(-self._end // self.cluster_size) * self.cluster_size

    def _allocate(self, clusters: int) -> int:
        self._round_up()
        offset = self._end
        first = offset // self.cluster_size
        self._refcounts.add(first, first + clusters - 1)
        self._end = offset + clusters * self.cluster_size
        self._flush_refcounts()
        return offset

    def _open_l2(self, index: int) -> None:
        if index != self._l2_index:
            self._close_l2()
            self._l2 = array("Q", bytes(self.cluster_size))
            self._l2_index = index

    def _close_l2(self) -> None:
        if self._l2_index < 0:
            return
        offset = self._allocate(1)
        self._write(offset, self._l2)
        self._l1[self._l2_index] = offset | COPIED
        self._l2_index = -1

    def _write(self, offset: int, table: array) -> None:
        if sys.byteorder == "little":
            table = table[:]
            table.byteswap()
        os.pwrite(self.fd, table.tobytes(), offset)
