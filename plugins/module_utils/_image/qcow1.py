# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QCOW version 1: tables and extents.

The format has no specification; the layout is QEMU's ``block/qcow.c``. QEMU believes the tables whatever they say and reads zeros
past the end of the file. We do not: everything that cannot be true is :class:`Damage`, handed to the caller with the guest bytes it costs.
"""

import os
import zlib
from array import array
from itertools import repeat
from operator import itemgetter
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from .._errors import DamagedImage, PassphraseError
from . import entry_arithmetic, qcow1_header
from .detect import reader_at
from .extent import CHUNK, COMPRESSED, DATA, ENCRYPTED, SCATTERED, SECTOR, ZERO, Extent, Layer, Scattered
from .qcow1_header import CRYPT_AES, HEADER_SIZE, parse_header, read_backing_name
from .raw import next_data

_COMPRESSED_FLAG = 1 << 63
_L1_CHUNK = 1 << 16
_ZEROS = bytes(_L1_CHUNK)
_new = tuple.__new__  # an Extent without the cost of its own constructor
_offset_of = itemgetter(4)

KIND_TABLE_OUTSIDE = "table-outside-file"
KIND_TABLE_CUT = "table-cut-off"
KIND_MISALIGNED = "misaligned"
KIND_OUTSIDE = "outside-file"
KIND_CUT = "cut-off"
KIND_STREAM = "bad-stream"


class Damage(NamedTuple):
    """Something the tables claim that cannot be true, and the guest bytes that are lost by it."""

    start: int  # first guest byte
    length: int  # guest bytes
    offset: int  # byte in the file where the claim points
    what: str
    kind: str = "damage"  # one of the KIND_ words


OnDamage = Callable[[Damage], None]
"""Told of each damage; raises to stop, returns to go on as if the range were zeros."""


class Qcow1(Layer):
    """A QCOW v1 image open for reading.

    :param fd: read-only descriptor of a regular file or block device; stays the caller's.
    :param on_damage: what to do about damage; raises :class:`DamagedImage` at the first one if not given.
    :param decryptor: ``(first guest byte, whole sectors) -> plain sectors`` for an encrypted image.
    :raises DamagedImage: where header or L1 table cannot be true.
    """

    format = "qcow"

    def __init__(
        self, fd: int, path: bytes, on_damage: Optional[OnDamage] = None, decryptor: Optional[Callable[[int, bytes], bytes]] = None
    ) -> None:
        super().__init__(fd, path)
        self.header = parse_header(os.pread(fd, HEADER_SIZE, 0), path)
        self.virtual_size = self.header.size
        self.cluster_size = self.header.cluster_size
        self._decryptor = decryptor
        self._on_damage = on_damage or self._refuse
        self._require_l1_inside()
        self.xen = qcow1_header.parse_extension(os.pread(fd, 64, 0), self.header.backing_offset, self.header.l1_offset)
        self.l1_order = qcow1_header.l1_order(fd, self.header.l1_offset, self.header.l1_entries, self.header.l2_size) if self.xen else None
        self.l1_byteorder = self.l1_order.byteorder if self.l1_order else "big"

    def _refuse(self, damage: Damage) -> None:
        raise DamagedImage(
            "guest bytes {0}..{1}: {2} (file offset {3})".format(
                damage.start, damage.start + damage.length - 1, damage.what, damage.offset
            ),
            self.path,
            hint="Nothing was changed. Restore it from a backup, or set salvage=true to keep what can be read.",
            ranges=[{"start": damage.start, "length": damage.length, "offset": damage.offset, "what": damage.what}],
        )

    def _require_l1_inside(self) -> None:
        header = self.header
        end = header.l1_offset + 8 * header.l1_entries
        if header.l1_offset < HEADER_SIZE:
            raise DamagedImage("the L1 table at byte {0} overlaps the header".format(header.l1_offset), self.path)
        if end > self.file_size:
            raise DamagedImage(
                "the L1 table (bytes {0}..{1}) lies outside the file of {2} bytes".format(header.l1_offset, end - 1, self.file_size),
                self.path,
                hint="The file is truncated or its header is damaged; it was not changed. Restore it from a backup.",
            )

    @property
    def backing_name(self) -> Optional[bytes]:
        """The name of the backing file as stored, cut at the first NUL as QEMU does; ``None`` where there is none.

        :raises DamagedImage: where the name lies outside the file.
        """
        return read_backing_name(reader_at(self.fd), self.header, self.path)

    def l1_chunks(self) -> Iterator[Tuple[int, array]]:
        """The L1 table in pieces: ``(index of the first entry, entries)``, without the pieces that are holes or all zero.

        Holes of a sparse file are skipped by ``SEEK_DATA``, so that a huge claimed size costs nothing.
        """
        position = self.header.l1_offset
        end = position + 8 * self.header.l1_entries
        while position < end:
            data_at = next_data(self.fd, position)
            if data_at is None:
                return
            if data_at > position:
                position += (data_at - position) // 8 * 8
                if position >= end:
                    return
            raw = os.pread(self.fd, min(_L1_CHUNK, end - position), position)
            if raw != _ZEROS[: len(raw)]:
                yield (position - self.header.l1_offset) // 8, entry_arithmetic.entries_of(raw, self.l1_byteorder)
            position += _L1_CHUNK

    def l2_tables(self) -> Iterator[Tuple[int, int]]:
        """``(first guest byte, offset in the file)`` of each L2 table that lies inside the file, in guest order.

        Tables that cannot be there are reported as damage.
        """
        coverage = self.header.l2_coverage
        for first, entries in self.l1_chunks():
            for number in entry_arithmetic.used(entries):
                offset = entries[number]
                start = (first + number) * coverage
                if not self.partition.touches(start, coverage):
                    continue
                if offset < HEADER_SIZE or offset >= self.file_size:
                    length = min(coverage, self.virtual_size - start)
                    what = "the L2 table lies outside the file of {0} bytes".format(self.file_size)
                    self._on_damage(Damage(start, length, offset, what, KIND_TABLE_OUTSIDE))
                    continue
                yield start, offset

    def read_l2(self, start: int, offset: int) -> array:
        """The entries of the L2 table at byte ``offset``, standing for guest bytes from ``start``; never more than the disk needs.

        A table cut off by the end of the file is reported as damage and comes back shorter.
        """
        header = self.header
        needed = min(1 << header.l2_bits, -(-(self.virtual_size - start) // header.cluster_size))
        raw = os.pread(self.fd, 8 * needed, offset)
        whole = len(raw) // 8
        if whole < needed:
            lost = start + whole * header.cluster_size
            length = min(start + needed * header.cluster_size, self.virtual_size) - lost
            self._on_damage(Damage(lost, length, offset, "the L2 table is cut off by the end of the file", KIND_TABLE_CUT))
        return entry_arithmetic.entries_of(raw[: 8 * whole], "big")

    def extents(self) -> Iterator[Extent]:
        """See :meth:`Layer.extents`. Damaged ranges come as zeros after ``on_damage`` has let them pass."""
        for start, offset in self.l2_tables():
            yield from self.table_extents(start, self.read_l2(start, offset))

    def bulk_extents(self) -> Iterator[Extent]:
        """See :meth:`Layer.bulk_extents`."""
        for start, offset in self.l2_tables():
            entries = self.read_l2(start, offset)
            length = len(entries) * self.cluster_size
            if self._is_scattered(start, length, entries):
                extent = Scattered(start, length, SCATTERED, self, 0, length, 0)
                extent.offsets = entries
                yield extent
            else:
                yield from self.table_extents(start, entries)

    def _is_scattered(self, start: int, length: int, entries: array) -> bool:
        """Whether a table names whole clusters only, few of them beside each other, for guest bytes of one chunk."""
        return (
            self.header.crypt_method != CRYPT_AES
            and start + length <= self.virtual_size
            and start // CHUNK == (start + length - 1) // CHUNK
            and bool(entries)
            and entries[-1] - entries[0] != length - self.cluster_size  # else it is probably in order, which is told at once
            and 0 not in entries
            and self.only_whole_clusters(entries)
            and 8 * entry_arithmetic.neighbours(entries, self.cluster_size) < len(entries)
        )

    def runs(self) -> Iterator[Extent]:
        """See :meth:`Layer.runs`. A table in random order costs no more than one in order."""
        for start, offset in self.l2_tables():
            entries = self.read_l2(start, offset)
            length = len(entries) * self.cluster_size
            if start + length <= self.virtual_size and (
                self.in_order(entries) or 0 not in entries and (self.only_streams(entries) or self.only_whole_clusters(entries))
            ):
                yield Extent(start, length, DATA, self, 0, length, 0)
            else:
                yield from self.table_extents(start, entries)

    def only_whole_clusters(self, entries: array) -> bool:
        """Whether all that a table names are whole clusters at multiples of their size inside the file, stored as they are; 0 names none."""
        return entry_arithmetic.whole_clusters(entries, self.cluster_size, self.file_size - self.cluster_size)

    def only_streams(self, entries: array) -> Optional[Tuple[List[int], List[int]]]:
        """Where the compressed clusters of a table begin and their stored bytes; ``None`` if it names anything else, or bytes outside."""
        return entry_arithmetic.streams(entries, self.cluster_size, HEADER_SIZE, self.file_size)

    def in_order(self, entries: array) -> bool:
        """Whether a table names whole clusters that follow each other inside the file."""
        first, length = entries[0] if entries else 0, len(entries) * self.cluster_size
        inside = HEADER_SIZE <= first <= self.file_size - length and not first % SECTOR
        return inside and entry_arithmetic.in_order(entries, self.cluster_size)

    def table_extents(self, start: int, entries: array) -> Iterator[Extent]:
        """The extents of one L2 table whose first entry stands for guest byte ``start``.

        Clusters that follow each other in the guest and in the file are one extent.
        """
        cluster = self.cluster_size
        size = self.virtual_size
        kind = ENCRYPTED if self.header.crypt_method == CRYPT_AES else DATA
        if self.in_order(entries):
            yield self._plain(start, len(entries) * cluster, kind, entries[0])
            return
        whole = start + len(entries) * cluster <= size
        streams = self.only_streams(entries) if whole else None
        if streams is not None:
            guest = range(start, start + len(entries) * cluster, cluster)
            yield from map(
                _new, repeat(Extent), zip(guest, repeat(cluster), repeat(COMPRESSED), repeat(self), streams[0], streams[1], repeat(0))
            )
            return
        if whole and self._has_only_runs(entries):
            first, counts = entry_arithmetic.runs(entries, cluster)
            guest = range(start, start + len(entries) * cluster, cluster)
            lengths = list(map(cluster.__mul__, counts))
            columns = (
                map(guest.__getitem__, first),
                lengths,
                repeat(kind),
                repeat(self),
                map(entries.__getitem__, first),
                lengths,
                repeat(0),
            )
            yield from filter(_offset_of, map(_new, repeat(Extent), zip(*columns)))
            return
        last_whole = self.file_size - cluster
        run_start = run_offset = run_length = 0
        expected = -1
        position = start
        for entry in entry_arithmetic.without_tail(entries):
            if entry == expected:
                run_length += cluster
                expected += cluster
            else:
                if run_length:
                    yield _new(Extent, (run_start, run_length, kind, self, run_offset, run_length, 0))  # ends before the disk does
                    run_length = 0
                expected = -1
                if not entry:
                    pass
                elif entry & _COMPRESSED_FLAG:
                    yield self._stream(position, min(cluster, size - position), entry)
                elif entry % SECTOR:
                    yield self._lost(
                        position, min(cluster, size - position), entry, "the cluster's address is not a multiple of 512", KIND_MISALIGNED
                    )
                elif entry < HEADER_SIZE or entry >= self.file_size:
                    what = "the cluster lies outside the file of {0} bytes".format(self.file_size)
                    yield self._lost(position, min(cluster, size - position), entry, what, KIND_OUTSIDE)
                else:
                    run_start, run_offset, run_length = position, entry, cluster
                    expected = entry + cluster
            if expected > last_whole:  # the end of the file is near; cheap enough to be asked at every entry
                if run_length and run_offset + run_length > self.file_size:
                    yield from self._cut_off(run_start, run_offset, run_length, kind)
                    run_length = 0
                    expected = -1
                elif expected >= self.file_size:
                    yield self._plain(run_start, run_length, kind, run_offset)
                    run_length = 0
                    expected = -1
            position += cluster
        if run_length:
            yield self._plain(run_start, run_length, kind, run_offset)

    def _has_only_runs(self, entries: array) -> bool:
        """Whether a table names whole clusters, most of its entries one, and no run begins with an entry that names none."""
        zeros = entries.count(0)
        return 2 * zeros < len(entries) and not (zeros and self.cluster_size in entries) and self.only_whole_clusters(entries)

    def _plain(self, start: int, length: int, kind: str, offset: int) -> Extent:
        length = min(length, self.virtual_size - start)
        return _new(Extent, (start, length, kind, self, offset, length, 0))

    def _lost(self, start: int, length: int, offset: int, what: str, kind: str) -> Extent:
        self._on_damage(Damage(start, length, offset, what, kind))
        return Extent(start, length, ZERO, self, 0, 0, 0)

    def _cut_off(self, start: int, offset: int, length: int, kind: str) -> Iterator[Extent]:
        """A run whose last cluster the end of the file cuts: harmless where only bytes behind the virtual size are missing."""
        wanted = min(length, self.virtual_size - start)
        present = self.file_size - offset
        if kind == ENCRYPTED:
            present -= present % SECTOR
        if present:
            yield Extent(start, min(wanted, present), kind, self, offset, min(wanted, present), 0)
        if wanted > present:
            yield self._lost(start + present, wanted - present, offset + present, "the cluster is cut off by the end of the file", KIND_CUT)

    def _stream(self, start: int, length: int, entry: int) -> Extent:
        bits = 63 - self.header.cluster_bits
        offset = entry & ((1 << bits) - 1)
        stored = (entry >> bits) & (self.cluster_size - 1)
        if not stored:
            return self._lost(start, length, offset, "the compressed cluster has no bytes", KIND_STREAM)
        if offset < HEADER_SIZE or offset >= self.file_size:
            what = "the compressed cluster lies outside the file of {0} bytes".format(self.file_size)
            return self._lost(start, length, offset, what, KIND_OUTSIDE)
        return _new(Extent, (start, length, COMPRESSED, self, offset, min(stored, self.file_size - offset), 0))

    def _cluster_of(self, extent: Extent, stream: bytes) -> Optional[bytes]:
        """A stream may lack its end or be followed by garbage, as in QEMU: a whole cluster is enough."""
        data, error = inflate_stream(stream, self.cluster_size)[:2]
        if error is None:
            return data
        self._on_damage(Damage(extent.start, extent.length, extent.offset, "the compressed cluster " + error, KIND_STREAM))
        return None

    def unlock(self, decryptor: Callable[[int, bytes], bytes]) -> None:
        """Decrypt with ``(first guest byte, whole sectors) -> plain sectors`` from now on."""
        self._decryptor = decryptor

    def decrypt(self, start: int, data: bytes) -> bytes:
        """See :meth:`Layer.decrypt`."""
        if self._decryptor is None:
            raise PassphraseError(
                "the image is encrypted (legacy AES) and no passphrase was given",
                self.path,
                hint="Give passphrase_file. Nothing was changed.",
            )
        return self._decryptor(start, data)


def inflate_stream(stream: bytes, cluster: int) -> Tuple[bytes, Optional[str], Optional[str]]:
    """``(bytes, error, oddity)`` of one raw DEFLATE stream that should yield ``cluster`` bytes.

    Exactly ``cluster`` bytes and no error, or what is wrong. An oddity is harmless: a missing end, or more output than a cluster holds.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(stream, cluster)
    except zlib.error as error:
        return b"", "is no DEFLATE stream ({0})".format(error), None
    if len(data) != cluster:
        return b"", "yields {0} of {1} bytes".format(len(data), cluster), None
    if inflater.eof:
        return data, None, None
    try:
        more = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error:
        more = b""
    if inflater.eof and not more:
        return data, None, None
    return data, None, "yields more than a cluster" if more else "lacks its end"
