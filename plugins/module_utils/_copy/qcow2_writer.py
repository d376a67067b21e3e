# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes qcow2 version 3, front to back, in one pass.

Clusters are taken from the end of the file in the order in which they are asked for, so that what follows in the guest follows in the file; an L2
table is written as soon as the guest has passed its range, a refcount block as soon as the file has. Memory holds the L1 table (at most
32 MiB by the format) and one table of each other kind. Specification: QEMU's ``docs/interop/qcow2.txt``.
"""

import os
import struct
import sys
from array import array
from typing import Iterator, Optional, Tuple

from .._errors import UnsupportedImage
from .._image.detect import QCOW_MAGIC
from .._image.extent import SECTOR
from .refcounts import Refcounts

DEFAULT_CLUSTER_SIZE = 1 << 16
MIN_CLUSTER_SIZE = 1 << 9
MAX_CLUSTER_SIZE = 1 << 21
MAX_L1_SIZE = 32 << 20
"""Bytes; QEMU refuses a larger L1 table (``QCOW_MAX_L1_SIZE``)."""

MAX_BACKING_NAME = 1023

INCOMPATIBLE_EXTENDED_L2 = 1 << 4
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0

_HEADER_LENGTH = 112
_V2_HEADER_LENGTH = 72
COPIED = 1 << 63
COMPRESSED_FLAG = 1 << 62
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_FEATURE_NAMES = 0x6803F857
_FEATURE_NAMES = ((0, 0, b"dirty bit"), (0, 1, b"corrupt bit"), (0, 4, b"extended L2 entries"), (1, 0, b"lazy refcounts"))
_SUBCLUSTERS = 32
_ALL_SUBCLUSTERS = (1 << _SUBCLUSTERS) - 1
_ZERO_FLAG = 1


class Qcow2Options:
    """What the new image should be like.

    :param cluster_size: bytes, a power of two from 512 to 2 MiB.
    :param lazy_refcounts: sets the compatible feature bit, so that QEMU may write refcounts late.
    :param extended_l2: 32 subclusters a cluster; needs clusters of at least 16 KiB.
    :param compressed: clusters are stored as DEFLATE streams where that is shorter.
    :param backing_name: name of the backing file as it is to be stored.
    :param backing_format: QEMU's driver name of the backing file; always stored with the name.
    :param preallocated: every cluster gets its place, whatever it holds.
    :param version: 3 (compat 1.1) or 2 (compat 0.10).
    """

    def __init__(
        self,
        cluster_size: int = DEFAULT_CLUSTER_SIZE,
        *,
        lazy_refcounts: bool = False,
        extended_l2: bool = False,
        compressed: bool = False,
        backing_name: Optional[bytes] = None,
        backing_format: Optional[str] = None,
        preallocated: bool = False,
        version: int = 3,
    ) -> None:
        if cluster_size & (cluster_size - 1) or not MIN_CLUSTER_SIZE <= cluster_size <= MAX_CLUSTER_SIZE:
            raise UnsupportedImage("cluster size {0} is not a power of two from 512 bytes to 2 MiB".format(cluster_size))
        if extended_l2 and cluster_size < 1 << 14:
            raise UnsupportedImage("extended L2 entries need clusters of at least 16 KiB, not {0} bytes".format(cluster_size))
        if backing_name is not None and not backing_format:
            raise UnsupportedImage("a backing file name is never stored without its format")
        if version == 2 and (lazy_refcounts or extended_l2 or backing_name is not None):
            raise UnsupportedImage("compat 0.10 knows no lazy refcounts, no extended L2 entries, and no zeros over a backing file")
        if preallocated and (compressed or backing_name is not None):
            raise UnsupportedImage("neither a compressed image nor an overlay can be preallocated")
        self.cluster_size = cluster_size
        self.lazy_refcounts = lazy_refcounts
        self.extended_l2 = extended_l2
        self.compressed = compressed
        self.backing_name = backing_name
        self.backing_format = backing_format
        self.preallocated = preallocated
        self.version = version

    @property
    def by_subcluster(self) -> bool:
        """Whether subclusters are placed by themselves: over a backing file, so that nothing has to be copied up from below."""
        return self.extended_l2 and self.backing_name is not None and not self.compressed


def require_possible(options: Qcow2Options, virtual_size: int) -> Tuple[bytearray, int]:
    """The header cluster, and the number of L1 entries, of an image with a disk of ``virtual_size`` bytes.

    :raises UnsupportedImage: where the format cannot hold the image with these options.
    """
    coverage = options.cluster_size // (16 if options.extended_l2 else 8) * options.cluster_size
    l1_entries = -(-virtual_size // coverage)
    if 8 * l1_entries > MAX_L1_SIZE:
        raise UnsupportedImage(
            "a disk of {0} bytes needs a larger L1 table than qcow2 allows with clusters of {1} bytes".format(
                virtual_size, options.cluster_size
            ),
            hint="Choose larger clusters.",
        )
    return header_cluster(options), l1_entries


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


def header_cluster(options: Qcow2Options) -> bytearray:
    """The first cluster, complete but for size, L1 and refcount table.

    :raises UnsupportedImage: where the backing file name does not fit into one cluster.
    """
    extensions = b""
    if options.backing_name is not None:
        extensions += _extension(_EXTENSION_BACKING_FORMAT, str(options.backing_format).encode("ascii"))
    names = _extension(_EXTENSION_FEATURE_NAMES, b"".join(struct.pack(">BB46s", kind, bit, name) for kind, bit, name in _FEATURE_NAMES))
    name = options.backing_name or b""
    if len(name) > MAX_BACKING_NAME:
        raise UnsupportedImage("the backing file name is {0} bytes long, at most 1023 are allowed".format(len(name)))
    end = struct.pack(">II", 0, 0)
    length = _HEADER_LENGTH if options.version == 3 else _V2_HEADER_LENGTH
    if options.version == 3 and length + len(extensions) + len(names) + len(end) + len(name) <= options.cluster_size:
        extensions += names
    name_offset = length + len(extensions) + len(end)
    if name_offset + len(name) > options.cluster_size:
        raise UnsupportedImage(
            "a backing file name of {0} bytes does not fit into the first cluster of {1} bytes".format(len(name), options.cluster_size),
            hint="Choose larger clusters.",
        )
    header = bytearray(options.cluster_size)
    struct.pack_into(
        ">4sIQII", header, 0, QCOW_MAGIC, options.version, name_offset if name else 0, len(name), options.cluster_size.bit_length() - 1
    )
    if options.version == 3:
        struct.pack_into(
            ">QQQII",
            header,
            72,
            INCOMPATIBLE_EXTENDED_L2 if options.extended_l2 else 0,
            COMPATIBLE_LAZY_REFCOUNTS if options.lazy_refcounts else 0,
            0,
            4,  # refcount_order: 1 << 4 bits
            length,
        )
    body = extensions + end + name
    header[length : length + len(body)] = body
    return header


def complete_header(header: bytearray, size: int, l1_offset: int, l1_entries: int, table_offset: int, table_clusters: int) -> None:
    """Put in what is known last: virtual size in bytes, and where L1 table and refcount table (in clusters) lie."""
    struct.pack_into(">QII", header, 24, size, 0, l1_entries)
    struct.pack_into(">QQI", header, 40, l1_offset, table_offset, table_clusters)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
