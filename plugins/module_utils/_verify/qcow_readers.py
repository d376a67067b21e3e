# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QCOW v1 and qcow2 read for verification: header and entries are looked up one cluster at a time, the way the formats describe them.

Neighbours are read at once only inside of what is asked for at a time; ranges without an L2 table cost nothing.
"""

import os
import struct
import zlib
from typing import Any, Callable, Iterator, List, Optional, Tuple

from .._errors import DamagedImage, UnsupportedImage
from .._fingerprint import BLOCK
from .holes import FileMap
from .reader import FileReader, Place, RawReader, Reader, zero_lost

_ALL = (1 << 64) - 1
_L1_CHUNK = 32768  # bytes
_ZEROS = bytes(_L1_CHUNK)
_READ_WHOLE = 64 << 20
"""Bytes of an L1 table that is read whole, holes and all: enough for 16 TiB with QEMU's default clusters, and a matter of milliseconds."""

_QCOW2_ADDRESS = 0x00FFFFFFFFFFFE00  # of an entry: where in the file

Decrypt = Callable[[int, bytes], bytes]
"""``(first guest byte, whole sectors) -> plain sectors``; the one thing that verification has in common with the copy."""


class TableReader(FileReader):
    """What QCOW v1 and qcow2 have in common: two levels of tables of big-endian 64-bit words. Sizes and offsets in bytes."""

    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, path)
        self._table_index = -1
        self._table = b""
        self.cluster = 0
        self.entry_size = 8
        self.per_table = 0  # entries of an L2 table
        self.l1_offset = 0
        self.l1_size = 0  # entries
        # A word with none of these bits stands for a cluster stored as it is, at the byte that the others give.
        self.special_flags = _ALL
        self.address_bits = _ALL
        self._map: Optional[FileMap] = None
        self._last_stream = (-1, -1)  # offset and length of the stream that was inflated last
        self._last_cluster = b""

    def found(self) -> None:
        """The header has been read: to be called before the tables are."""
        if 8 * self.l1_size > _READ_WHOLE:
            self._map = FileMap(self.fd)

    def table_at(self, entry: int) -> int:
        """Where the L2 table lies that an L1 entry names; 0 for none."""
        raise NotImplementedError

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        """Lay the cluster at byte ``guest`` of the disk over ``view`` (its part of a block, or a block's part of it)."""
        raise NotImplementedError

    def _l1(self, index: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, self.l1_offset + 8 * index), "big")

    def l1_words(self) -> Iterator[Tuple[int, int]]:
        """``(index, entry)`` of the L1 table where the entry, read as a big-endian number, is not zero."""
        begin, end = self.l1_offset, self.l1_offset + 8 * self.l1_size
        done = begin
        for start, stop in [(begin, end)] if self._map is None else self._map.ranges(begin, end):
            position = max(begin + (start - begin) // 8 * 8, done)
            done = min(begin - (begin - stop) // 8 * 8, end)
            while position < done:
                chunk = os.pread(self.fd, min(_L1_CHUNK, done - position), position)
                if not chunk:
                    return  # the end of the file
                if not _ZEROS.startswith(chunk):
                    first = (position - begin) // 8
                    words = struct.unpack(">%dQ" % (len(chunk) // 8), chunk[: len(chunk) // 8 * 8])
                    for number, word in enumerate(words, first):
                        if word:
                            yield number, word
                position += _L1_CHUNK

    def blocks(self) -> Iterator[range]:
        reach = self.per_table * self.cluster
        for index, _word in self.l1_words():
            begin = index * reach
            yield from self._occupied(index, begin, min(begin + reach, self.size))

    def _occupied(self, index: int, begin: int, end: int) -> Iterator[range]:
        """The blocks of guest bytes [begin, end), one table's, in which an entry is not zero."""
        table = self._load(index)
        unit = max(self.cluster, BLOCK)
        if begin % unit:  # tables of less than a block, beside each other
            yield range(begin // BLOCK, -(-end // BLOCK))
            return
        width = unit // self.cluster * self.entry_size
        zeros = bytes(width)
        first = None  # type: Optional[int]
        for number in range(-(-(end - begin) // unit)):
            piece = table[number * width : (number + 1) * width]
            if piece == zeros or not any(piece):
                if first is not None:
                    yield range((begin + first * unit) // BLOCK, (begin + number * unit) // BLOCK)
                    first = None
            elif first is None:
                first = number
        if first is not None:
            yield range((begin + first * unit) // BLOCK, -(-end // BLOCK))

    def places(self, block: int) -> List[Place]:
        guest = block * BLOCK
        index = guest // (self.cluster * self.per_table)
        offset = self.table_at(self._l1(index)) if index < self.l1_size else 0
        entry = Place("an L1 entry", self.fd, self.path, self.l1_offset + 8 * index, 8)
        table = Place("an L2 table", self.fd, self.path, offset, self.per_table * self.entry_size)
        return [entry, table] if offset else []

    def _load(self, index: int) -> bytes:
        if index != self._table_index:
            offset = self.table_at(self._l1(index)) if index < self.l1_size else 0
            self._table = os.pread(self.fd, self.per_table * self.entry_size, offset) if 0 < offset < 1 << 63 else b""
            self._table_index = index
        return self._table

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        start = block * BLOCK
        stop = min(start + len(view), self.size)
        guest = start
        while guest < stop:
            index, slot = divmod(guest // self.cluster, self.per_table)
            table = self._load(index)
            count = min(self.per_table - slot, -(-(stop - guest) // self.cluster))
            step = min((guest // self.cluster + count) * self.cluster, stop) - guest
            entries = table[slot * self.entry_size : (slot + count) * self.entry_size]
            part = view[guest - start : guest - start + step]
            if self.special_flags == _ALL or guest % self.cluster or len(entries) < 8 * count:
                if lowest:
                    part[:] = bytes(step)
                self._one_by_one(guest, entries, part)
            else:
                self._in_runs(guest, struct.unpack(">%dQ" % count, entries), part, lowest)
            guest += step

    def _one_by_one(self, guest: int, entries: bytes, view: memoryview) -> None:
        done = 0
        for position in range(0, len(entries), self.entry_size):
            step = min(self.cluster - (guest + done) % self.cluster, len(view) - done)
            entry = entries[position : position + self.entry_size]
            if any(entry):
                self.overlay(guest + done, entry, view[done : done + step])
            done += step

    def _in_runs(self, guest: int, words: Tuple[int, ...], view: memoryview, lowest: bool) -> None:
        """The same for tables of simple words: clusters that follow each other in the file, too, are read at once."""
        cluster, special, usual = self.cluster, self.special_flags, self.address_bits
        first = words[0]
        if first & usual and not first & special and words == tuple(range(first, first + len(words) * cluster, cluster)):
            self.stored(first & usual, view)
            return
        expected = -1
        begin = at = address = 0
        for word in words:
            if word != expected:
                if expected >= 0:
                    self.stored(address, view[begin:at])
                if word & usual and not word & special:
                    begin, address = at, word & usual
                    expected = word + cluster
                else:
                    expected = -1
                    part = view[at : at + cluster]
                    if lowest:
                        part[:] = bytes(len(part))
                    if word:
                        self.overlay(guest + at, word.to_bytes(8, "big"), part)
            else:
                expected += cluster
            at += cluster
        if expected >= 0:
            self.stored(address, view[begin:at])

    def _inflate(self, offset: int, length: int, skip: int, view: memoryview) -> None:
        if (offset, length) != self._last_stream:  # many clusters may share one
            inflater = zlib.decompressobj(-15)
            try:
                data = inflater.decompress(os.pread(self.fd, length, offset), self.cluster)
            except zlib.error as error:
                raise DamagedImage(
                    "the compressed cluster at byte {0} cannot be inflated ({1})".format(offset, error), self.path
                ) from error
            if len(data) != self.cluster:
                raise DamagedImage(
                    "the compressed cluster at byte {0} yields {1} of {2} bytes".format(offset, len(data), self.cluster), self.path
                )
            self._last_stream, self._last_cluster = (offset, length), data
        view[:] = self._last_cluster[skip : skip + len(view)]


class Qcow1Reader(TableReader):
    """A QCOW v1 image, cluster by cluster.

    :param decrypt: for encrypted images. :param lost: guest ranges ``(start, length)`` that the operator accepted as zeros (salvage).
    """

    def __init__(self, fd: int, path: bytes, decrypt: Optional[Decrypt] = None, lost: Any = ()) -> None:
        super().__init__(fd, path)
        head = os.pread(fd, 52, 0)
        (self.size,) = struct.unpack_from(">Q", head, 24)
        self.cluster = 1 << head[32]
        self.per_table = 1 << head[33]
        self.encrypted = head[39] == 1
        (self.l1_offset,) = struct.unpack_from(">Q", head, 40)
        self.l1_size = -(-self.size // (self.cluster * self.per_table))
        self.found()
        self.decrypt = decrypt
        self.little = head[48:52] == b"XEN\xfb" and self.l1_offset % 4096 == 0 and self._first_entry_is_little()
        self.lost = sorted(lost)
        if not self.encrypted and not self.lost:
            self.special_flags = 1 << 63  # compressed

    def _first_entry_is_little(self) -> bool:
        """Whether the first L1 entry that is not zero names a byte of the file only when it is read backwards, as in old images of Xen."""
        size = os.lseek(self.fd, 0, os.SEEK_END)
        for _index, word in self.l1_words():
            return _backwards(word) < size <= word
        return False

    def table_at(self, entry: int) -> int:
        return _backwards(entry) if self.little else entry

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
            self.stored(word + skip, view)

    def _compressed(self, word: int, skip: int, view: memoryview) -> None:
        bits = 63 - (self.cluster.bit_length() - 1)
        self._inflate(word & ((1 << bits) - 1), word >> bits & (self.cluster - 1), skip, view)

    def _encrypted(self, guest: int, offset: int, view: memoryview) -> None:
        if self.decrypt is None:
            raise DamagedImage("the image is encrypted and there is no key", self.path, reason="passphrase")
        whole = bytearray(-(-len(view) // 512) * 512)
        self.stored(offset, memoryview(whole))
        view[:] = self.decrypt(guest, bytes(whole))[: len(view)]

    def _overlay_salvaged(self, guest: int, word: int, skip: int, view: memoryview) -> None:
        """A cluster of which the operator gave up some bytes: those are zeros, the others as stored."""
        kept = bytearray(len(view))
        if not word >> 63 and word % 512 == 0:
            if self.encrypted:
                self._encrypted(guest, word + skip, memoryview(kept))
            else:
                self.stored(word + skip, memoryview(kept))
        view[:] = kept
        zero_lost(self.lost, guest, view)


def _backwards(word: int) -> int:
    return int.from_bytes(word.to_bytes(8, "big"), "little")


class Qcow2Reader(TableReader):
    """A qcow2 image without encryption or external data, cluster by cluster."""

    def __init__(self, fd: int, path: bytes) -> None:
        super().__init__(fd, path)
        head = os.pread(fd, 112, 0)
        (bits, self.size, encryption, self.l1_size, self.l1_offset) = struct.unpack_from(">IQIIQ", head, 20)
        if encryption:
            raise UnsupportedImage("encrypted qcow2 (method {0})".format(encryption), path)
        self.cluster = 1 << bits
        self.version = head[7]
        self.extended = bool(self.version == 3 and head[79] & 16)
        self.entry_size = 16 if self.extended else 8
        self.per_table = self.cluster // self.entry_size
        self.address_bits = _QCOW2_ADDRESS
        if not self.extended:
            self.special_flags = 1 << 62 | (1 if self.version == 3 else 0)  # compressed, zeros
        self.found()

    def table_at(self, entry: int) -> int:
        return entry & _QCOW2_ADDRESS

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        word = int.from_bytes(entry[:8], "big")
        skip = guest % self.cluster
        if word >> 62 & 1:
            shift = 62 - (self.cluster.bit_length() - 9)
            offset = word & ((1 << shift) - 1)
            sectors = (word & ((1 << 62) - 1)) >> shift
            self._inflate(offset, (sectors + 1) * 512 - offset % 512, skip, view)
        elif self.extended:
            self._subclusters(word & _QCOW2_ADDRESS, int.from_bytes(entry[8:], "big"), skip, view)
        elif word & 1 and self.version == 3:
            view[:] = bytes(len(view))
        elif word & _QCOW2_ADDRESS:
            self.stored((word & _QCOW2_ADDRESS) + skip, view)

    def _subclusters(self, offset: int, bitmap: int, skip: int, view: memoryview) -> None:
        width = self.cluster // 32
        done = 0
        while done < len(view):
            bit = (skip + done) // width
            step = min((bit + 1) * width - skip, len(view)) - done
            if bitmap >> (32 + bit) & 1:
                view[done : done + step] = bytes(step)
            elif bitmap >> bit & 1:
                self.stored(offset + skip + done, view[done : done + step])
            done += step


def open_reader(format_name: str, fd: int, path: bytes) -> Reader:
    """One file read by the second path; ``format_name`` is qcow, qcow2 or raw."""
    readers = {"qcow": Qcow1Reader, "qcow2": Qcow2Reader, "raw": RawReader}
    return readers[format_name](fd, path)
