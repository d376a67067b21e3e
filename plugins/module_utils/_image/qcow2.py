# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qcow2 versions 2 and 3 as a source: bases and overlays of a backing chain, and what we wrote ourselves.

Specification: QEMU's ``docs/interop/qcow2.txt``.
"""

import os
import sys
import zlib
from array import array
from typing import Iterator, Optional, Tuple

from .._errors import DamagedImage, UnsupportedImage
from .extent import COMPRESSED, DATA, SECTOR, ZERO, Extent, Layer
from .qcow2_header import COMPRESSION_TYPE, CORRUPT, DIRTY, EXTENDED_L2, parse_header

_KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | COMPRESSION_TYPE | EXTENDED_L2

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO_FLAG = 1


class Qcow2(Layer):
    """A qcow2 image open for reading. What it cannot read in full it refuses when opened.

    :param content: not only the tables are to be read.
    :raises DamagedImage: where the header or a table cannot be true.
    :raises UnsupportedImage: external data files, unknown features; with ``content`` encryption, and compression other than DEFLATE.
    """

    format = "qcow2"

    def __init__(self, fd: int, path: bytes, *, content: bool = True) -> None:
        super().__init__(fd, path)
        self.header = header = parse_header(os.pread(fd, 1 << 16, 0), path)
        self.virtual_size = header.size
        self.cluster_size = 1 << header.cluster_bits
        unknown = header.incompatible & ~_KNOWN_INCOMPATIBLE
        if unknown:
            raise UnsupportedImage("qcow2 features we cannot read (incompatible bits {0:#x})".format(unknown), path)
        if header.incompatible & CORRUPT:
            raise DamagedImage("the qcow2 image is marked corrupt", path, hint="Repair it with qemu-img check -r first.")
        if content and header.crypt_method:
            raise UnsupportedImage("encrypted qcow2 (method {0})".format(header.crypt_method), path)
        if content and header.compression_type:
            raise UnsupportedImage("qcow2 with compression type {0}".format(header.compression_type), path)
        if header.l1_offset + 8 * header.l1_entries > self.file_size:
            raise DamagedImage("the L1 table lies outside the file", path)
        self._words = 2 if header.incompatible & EXTENDED_L2 else 1

    @property
    def has_readable_content(self) -> bool:
        """Whether more than the tables can be read here."""
        return not self.header.crypt_method and not self.header.compression_type

    @property
    def backing_name(self) -> Optional[bytes]:
        """The name of the backing file as stored; ``None`` where there is none."""
        header = self.header
        if not header.backing_offset or not header.backing_length:
            return None
        return os.pread(self.fd, header.backing_length, header.backing_offset) or None

    def l2_tables(self) -> Iterator[Tuple[int, int]]:
        """``(first guest byte, offset in the file)`` of each L2 table, in guest order."""
        raw = os.pread(self.fd, 8 * self.header.l1_entries, self.header.l1_offset)
        coverage = self.cluster_size // (8 * self._words) * self.cluster_size
        for index, entry in enumerate(_entries(raw)):
            offset = entry & _OFFSET
            if not offset or not self.partition.touches(index * coverage, coverage):
                continue
            if offset % self.cluster_size or offset + self.cluster_size > self.file_size:
                raise DamagedImage("the L2 table at byte {0} is misaligned or outside the file".format(offset), self.path)
            if index * coverage < self.virtual_size:
                yield index * coverage, offset

    def extents(self) -> Iterator[Extent]:
        """See :meth:`Layer.extents`.

        :raises DamagedImage: where an entry cannot be true.
        """
        for start, offset in self.l2_tables():
            table = _entries(os.pread(self.fd, self.cluster_size, offset))
            pieces = self._table_extents(start, table) if self._words == 1 else self._subcluster_extents(start, table)
            yield from merged(pieces)

    def _table_extents(self, start: int, table: array) -> Iterator[Extent]:
        cluster = self.cluster_size
        position = start
        for entry in table:
            if entry:
                length = min(cluster, self.virtual_size - position)
                if length <= 0:
                    return
                if entry & _COMPRESSED:
                    yield self._stream(position, length, entry)
                elif entry & _ZERO_FLAG and self.header.version == 3:
                    yield Extent(position, length, ZERO, self, 0, 0, 0)
                elif entry & _OFFSET:
                    yield self._data(position, length, entry & _OFFSET)
            position += cluster

    def _subcluster_extents(self, start: int, table: array) -> Iterator[Extent]:
        cluster = self.cluster_size
        sub = cluster // 32
        for index in range(len(table) // 2):
            entry, bitmap = table[2 * index], table[2 * index + 1]
            position = start + index * cluster
            if position >= self.virtual_size:
                return
            if entry & _COMPRESSED:
                yield self._stream(position, min(cluster, self.virtual_size - position), entry)
                continue
            for bit in range(32):
                at = position + bit * sub
                length = min(sub, self.virtual_size - at)
                if length <= 0:
                    return
                if bitmap >> (32 + bit) & 1:
                    yield Extent(at, length, ZERO, self, 0, 0, 0)
                elif bitmap >> bit & 1:
                    yield self._data(at, length, (entry & _OFFSET) + bit * sub)

    def _data(self, position: int, length: int, offset: int) -> Extent:
        if offset + length > -(-self.file_size // SECTOR) * SECTOR:
            raise DamagedImage("guest byte {0}: the cluster at byte {1} lies outside the file".format(position, offset), self.path)
        return Extent(position, length, DATA, self, offset, length, 0)

    def _stream(self, position: int, length: int, entry: int) -> Extent:
        shift = 62 - (self.header.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry >> shift & ((1 << (62 - shift)) - 1)) + 1
        stored = min(sectors * SECTOR - offset % SECTOR, self.file_size - offset)
        if stored <= 0:
            raise DamagedImage(
                "guest byte {0}: the compressed cluster at byte {1} lies outside the file".format(position, offset), self.path
            )
        return Extent(position, length, COMPRESSED, self, offset, stored, 0)

    def _cluster_of(self, extent: Extent, stream: bytes) -> Optional[bytes]:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, self.cluster_size)
        except zlib.error as error:
            raise DamagedImage(
                "guest byte {0}: the compressed cluster at byte {1}: {2}".format(extent.start, extent.offset, error), self.path
            ) from error
        if len(data) != self.cluster_size:
            raise DamagedImage(
                "guest byte {0}: the compressed cluster at byte {1} yields {2} of {3} bytes".format(
                    extent.start, extent.offset, len(data), self.cluster_size
                ),
                self.path,
            )
        return data


def merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Neighbours in the guest that are neighbours in the file, or both zeros, as one extent."""
    last = None  # type: Optional[Extent]
    for extent in extents:
        if last is not None and last.kind == extent.kind and last.start + last.length == extent.start:
            if extent.kind == ZERO:
                last = last._replace(length=last.length + extent.length)
                continue
            if extent.kind == DATA and last.offset + last.length == extent.offset:
                last = last._replace(length=last.length + extent.length, stored=last.stored + extent.length)
                continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def _entries(raw: bytes) -> array:
    entries = array("Q")
    entries.frombytes(raw[: len(raw) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries
