# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QCOW v1 to qcow2 by new metadata alone: every cluster and every compressed stream stays where it lies in the file.

The file is cloned (or, where the filesystem cannot share blocks, copied as it is), L2 and L1 tables and refcounts are written behind its end,
and last of all the first cluster becomes a qcow2 header. QCOW v1 allows more than qcow2 does: clusters that are not aligned to their size, and
whatever lies in the first cluster, are copied behind the end too. The old tables become free clusters. The price is the old cluster size.
"""

import os
import sys
from array import array
from typing import Iterator, List, Optional

from .._errors import UnsupportedImage
from .._image import entry_arithmetic
from .._image.extent import COMPRESSED, DATA, SECTOR, Extent, clip
from .._image.file_io import PIECE, clone_file, read_all, write_all
from .._image.qcow1 import Qcow1
from .._image.qcow2_header import MAX_L1_SIZE, Qcow2Options, complete_header, header_cluster
from .._image.raw import data_ranges
from .chunks import HOLE, nonzero_runs
from .copier import Copied, OnProgress
from .writers import COMPRESSED_FLAG, COPIED

MAX_CLUSTERS = 20 << 20
"""Clusters of a file whose references are counted: two bytes of memory each."""

_ONE = array("H", [1]).tobytes()
_MAX_REFCOUNT_TABLE = 8 << 20  # bytes; QEMU refuses a larger one (QCOW_MAX_REFTABLE_SIZE)


def why_not(image: Qcow1, options: Qcow2Options) -> Optional[str]:
    """Why an image cannot keep its layout as qcow2, in words; ``None`` where it can.

    :param options: cluster size as the image's; lazy refcounts, compression and extended L2 entries are not to be had this way.
    """
    cluster = image.cluster_size
    if image.header.crypt_method:
        return "it is encrypted"
    l1_size = 8 * -(-image.virtual_size // (cluster // 8 * cluster))
    if l1_size > MAX_L1_SIZE:
        return "with clusters of {0} bytes the L1 table would be larger than qcow2 allows".format(cluster)
    clusters = -(-image.file_size // cluster)
    if clusters > MAX_CLUSTERS:
        return "counting the references to {0} clusters would take too much memory".format(clusters)
    if 8 * -(-2 * clusters // (cluster // 2)) > _MAX_REFCOUNT_TABLE:
        return "with clusters of {0} bytes the refcount table would be larger than QEMU allows".format(cluster)
    try:
        header_cluster(options)
    except UnsupportedImage as error:
        return str(error)
    return None


def transcode(image: Qcow1, fd: int, options: Qcow2Options, progress: Optional[OnProgress] = None) -> Copied:
    """Make the empty file ``fd`` a qcow2 with the layout of ``image``. Nothing is synced.

    :param options: see :func:`why_not`, which must have found nothing.
    :raises DamagedImage: what walking the image raises.
    :raises OSError: what writing raises.
    """
    shared = clone_file(image.fd, fd)
    if not shared:
        _copy_file(image, fd, progress)
    job = _Transcoding(image, fd, options)
    job.count()
    guest = job.write_tables()
    job.finish()
    if progress is not None and shared:
        progress(guest)
    return Copied(guest, guest, job.carried, guest if shared else 0)


def _copy_file(image: Qcow1, fd: int, progress: Optional[OnProgress]) -> None:
    with memoryview(bytearray(PIECE)) as view:
        for start, length in data_ranges(image.fd, image.file_size):
            for position in range(start, start + length, PIECE):
                size = min(PIECE, start + length - position)
                read_all(image, position, view[:size])
                for first, last in nonzero_runs(view, 0, size, HOLE):
                    write_all(fd, view[first:last], position + first)
                if progress is not None:
                    progress(size)


class _Transcoding:
    def __init__(self, image: Qcow1, fd: int, options: Qcow2Options) -> None:
        self.image = image
        self.fd = fd
        self.options = options
        self.cluster = cluster = image.cluster_size
        self.carried = 0
        # Behind the end of a disk that is not a whole number of sectors the result shows zeros: its last cluster is written anew.
        self.odd = image.virtual_size // cluster * cluster if image.virtual_size % SECTOR else image.virtual_size
        self.per_table = cluster // 8
        self.old_end = -(-image.file_size // cluster)  # clusters
        self.end = self.old_end  # clusters given away, those of the old file included
        self.references = array("H", bytes(2 * self.old_end))  # of the old file's clusters; all behind them have one
        if self.old_end:
            self.references[0] = 1  # the header
        self.l1 = array("Q", bytes(8 * -(-image.virtual_size // (self.per_table * cluster))))
        self._tables = _Buffered(fd)

    def count(self) -> None:
        """Count the references to each cluster that stays where it is."""
        references, cluster = self.references, self.cluster
        for extent in self._extents():
            if not self._stays(extent):
                continue
            first = extent.offset // cluster
            last = -(-(extent.offset + extent.stored) // cluster)
            if extent.kind == COMPRESSED:
                # As the specification has it: every cluster touched by the sectors that the entry names.
                last = -(-(-(-(extent.offset + extent.stored) // SECTOR) * SECTOR) // cluster)
            if last - first > 1 and not any(references[first:last]):
                references[first:last] = array("H", [1]) * (last - first)
                continue
            for number in range(first, last):
                if references[number] == 0xFFFF:
                    raise UnsupportedImage(
                        "a cluster is used more than 65535 times (byte {0})".format(number * cluster),
                        self.image.path,
                        hint="Nothing was published. Convert it with layout=recluster.",
                    )
                references[number] += 1

    def _extents(self) -> Iterator[Extent]:
        """Those of the image; a last cluster of which the guest does not see whole sectors comes by itself."""
        for extent in self.image.extents():
            for start, stop in ((extent.start, self.odd), (max(self.odd, extent.start), extent.start + extent.length)):
                piece = clip(extent, start, stop)
                if piece is not None:
                    yield piece

    def _stays(self, extent: Extent) -> bool:
        return extent.start < self.odd and extent.offset >= self.cluster and (extent.kind == COMPRESSED or not extent.offset % self.cluster)

    def write_tables(self) -> int:
        """Write L2 tables, and behind them what has to move. Returns the guest bytes that the image holds."""
        guest = 0
        index = -1
        table = array("Q")
        for extent in self._extents():
            guest += extent.length
            number = extent.start // self.cluster
            for word in self._runs(extent):
                while len(word):
                    at, slot = divmod(number, self.per_table)
                    if at != index:
                        self._put_table(index, table)
                        index, table = at, array("Q", bytes(self.cluster))
                    count = min(len(word), self.per_table - slot)
                    table[slot : slot + count] = word[:count]
                    word = word[count:]
                    number += count
        self._put_table(index, table)
        return guest

    def _put_table(self, index: int, table: array) -> None:
        if index >= 0:
            self.l1[index] = self._append(_big_endian(table)) | COPIED

    def _runs(self, extent: Extent) -> Iterator[array]:
        """The L2 entries of an extent."""
        cluster, offset = self.cluster, extent.offset
        if extent.start >= self.odd and extent.kind in (COMPRESSED, DATA):
            data = self.image.inflate(extent) if extent.kind == COMPRESSED else os.pread(self.image.fd, extent.length, offset)
            yield array("Q", [self._append(data[: extent.length]) | COPIED])
            return
        if extent.kind == COMPRESSED:
            self.carried += extent.length
            if not self._stays(extent):
                offset = self._append(os.pread(self.image.fd, extent.stored, offset))
            sectors = (offset + extent.stored - 1) // SECTOR - offset // SECTOR
            yield array("Q", [COMPRESSED_FLAG | sectors << (62 - (cluster.bit_length() - 9)) | offset])
            return
        count = -(-extent.length // cluster)
        if extent.kind != DATA:
            raise UnsupportedImage("a range was lost", self.image.path, hint="Nothing was published. Set layout=recluster to salvage it.")
        if not self._stays(extent):
            for number in range(count):
                data = os.pread(self.image.fd, cluster, offset + number * cluster)
                yield array("Q", [self._append(data) | COPIED])
            return
        first = offset // cluster
        entries = entry_arithmetic.ascending(count, offset | COPIED, cluster)
        counted = self.references[first : first + count]
        if counted.tobytes() != _ONE * count:
            for number, references in enumerate(counted):
                if references > 1:
                    entries[number] &= ~COPIED
        yield entries

    def _append(self, data: bytes) -> int:
        """Put data into clusters of its own behind all others; their byte."""
        offset = self.end * self.cluster
        clusters = -(-len(data) // self.cluster)
        self._tables.write(offset, data + bytes(clusters * self.cluster - len(data)))
        self.end += clusters
        return offset

    def finish(self) -> None:
        """Write the L1 table, the refcounts and, last of all, the header."""
        cluster = self.cluster
        l1_offset = self._append(_big_endian(self.l1) or bytes(1))
        per_block = cluster // 2
        blocks = clusters = 0
        while True:  # blocks and table count themselves
            total = self.end + blocks + clusters
            needed = -(-total // per_block)
            if (needed, -(-8 * needed // cluster)) == (blocks, clusters):
                break
            blocks, clusters = max(needed, blocks), max(-(-8 * needed // cluster), clusters)
        table_offset = self.end * cluster
        first_block = self.end + clusters
        table = array("Q", range(first_block * cluster, (first_block + blocks) * cluster, cluster))
        self._append(_big_endian(table))
        for number in range(blocks):
            begin = number * per_block
            counts = self.references[begin : begin + per_block]
            new = max(0, min(total - begin, per_block) - len(counts))
            counts.extend(array("H", [1]) * new)
            self._append(_big_endian(counts))
        self._tables.flush()
        header = header_cluster(self.options)
        complete_header(header, -(-self.image.virtual_size // SECTOR) * SECTOR, l1_offset, len(self.l1), table_offset, clusters)
        os.ftruncate(self.fd, self.end * cluster)
        write_all(self.fd, header, 0)


class _Buffered:
    """Small pieces written one behind the other, some of them at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._parts: List[bytes] = []
        self._start = self._size = 0

    def write(self, offset: int, data: bytes) -> None:
        if self._size and offset != self._start + self._size or self._size >= PIECE:
            self.flush()
        if not self._size:
            self._start = offset
        self._parts.append(data)
        self._size += len(data)

    def flush(self) -> None:
        if self._parts:
            write_all(self._fd, b"".join(self._parts), self._start)
        self._parts = []
        self._size = 0


def _big_endian(table: array) -> bytes:
    if sys.byteorder == "little":
        table = table[:]
        table.byteswap()
    return table.tobytes()
