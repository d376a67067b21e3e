# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The second way to read an image, for verification only.

It shares no decoding with the extents: header and entries are looked up one cluster at a time, the way the formats describe them. That is the one
deliberate exception to "everything speaks extents": a mistake in the one reader must not hide in the other. Neighbours are read at once only
inside of what is asked for at a time, ranges without an L2 table cost nothing.
"""

import os
import struct
import zlib
from typing import Any, Callable, Iterator, Optional, Tuple

from .._errors import DamagedImage
from .._image.fingerprint import BLOCK
from .._image.raw import data_ranges, next_data

_ALL = (1 << 64) - 1
_L1_CHUNK = 4096  # entries
_ZEROS = bytes(8 * _L1_CHUNK)

Decrypt = Callable[[int, bytes], bytes]


class PlainImage:
    """One file of a chain, read plainly. ``size`` is the virtual size in bytes."""

    size = 0

    def blocks(self) -> Iterator[range]:
        """Indexes of the blocks in which this file may hold something, in ranges whose beginnings ascend; they may overlap."""
        raise NotImplementedError

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        """Lay what this file holds of a block, and of those behind it, over ``view`` (whole blocks long).

        :param lowest: nothing lies below: what the file does not hold, up to its virtual size, becomes zeros.
        """
        raise NotImplementedError

    def held(self) -> int:
        """Bytes of the file, but for holes."""
        return 0


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
        self.compressed_flag = 0
        # A word with none of these bits stands for a cluster stored as it is, at the byte that the others give.
        self.special_flags = _ALL
        self.address_bits = _ALL

    def held(self) -> int:
        return 512 * os.fstat(self.fd).st_blocks

    def table_at(self, entry: int) -> int:
        """Where the L2 table lies that an L1 entry names; 0 for none."""
        raise NotImplementedError

    def overlay(self, guest: int, entry: bytes, view: memoryview) -> None:
        """Lay the cluster at byte ``guest`` of the disk over ``view`` (its part of a block, or a block's part of it)."""
        raise NotImplementedError

    def _l1(self, index: int) -> int:
        return int.from_bytes(os.pread(self.fd, 8, self.l1_offset + 8 * index), "big")

    def _tables(self) -> Iterator[int]:
        """Indexes of the L1 entries that are not zero; holes of the file and runs of zeros are passed over whole."""
        first = 0
        while first < self.l1_size:
            data_at = next_data(self.fd, self.l1_offset + 8 * first)
            if data_at is None:
                return
            first = (data_at - self.l1_offset) // 8
            chunk = os.pread(self.fd, 8 * max(0, min(_L1_CHUNK, self.l1_size - first)), self.l1_offset + 8 * first)
            if not _ZEROS.startswith(chunk):
                words = struct.unpack(">%dQ" % (len(chunk) // 8), chunk[: len(chunk) // 8 * 8])
                for number, word in enumerate(words, first):
                    if word:
                        yield number
            first += _L1_CHUNK

    def blocks(self) -> Iterator[range]:
        reach = self.per_table * self.cluster
        for index in self._tables():
            begin = index * reach
            yield from self._occupied(index, begin // BLOCK, -(-min(begin + reach, self.size) // BLOCK))

    def _occupied(self, index: int, first: int, last: int) -> Iterator[range]:
        """Those blocks of one table in which an entry is not zero."""
        table = self._load(index)
        width = BLOCK // self.cluster * self.entry_size
        if width < self.entry_size or len(table) <= width:
            yield range(first, last)
            return
        zeros = bytes(width)
        begin = first
        for number in range(first, last):
            if table.startswith(zeros, (number - first) * width):
                if begin < number:
                    yield range(begin, number)
                begin = number + 1
        if begin < last:
            yield range(begin, last)

    def _load(self, index: int) -> bytes:
        if index != self._table_index:
            offset = self.table_at(self._l1(index)) if index < self.l1_size else 0
            self._table = os.pread(self.fd, self.per_table * self.entry_size, offset) if offset else b""
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
            self._stored(first & usual, view)
            return
        expected = -1
        begin = at = address = 0
        for word in words:
            if word != expected:
                if expected >= 0:
                    self._stored(address, view[begin:at])
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
            self._stored(address, view[begin:at])

    def _stored(self, offset: int, view: memoryview) -> None:
        done = _read_into(self.fd, view, offset)
        if done < len(view):  # the end of the file, but for a signal
            data = os.pread(self.fd, len(view) - done, offset + done)
            view[done : done + len(data)] = data
            done += len(data)
            view[done:] = bytes(len(view) - done)

    def _inflated(self, offset: int, length: int, skip: int, view: memoryview) -> None:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(os.pread(self.fd, length, offset), self.cluster)
        except zlib.error as error:
            raise DamagedImage("the compressed cluster at byte {0} cannot be inflated ({1})".format(offset, error), self.path) from error
        if len(data) != self.cluster:
            raise DamagedImage(
                "the compressed cluster at byte {0} yields {1} of {2} bytes".format(offset, len(data), self.cluster), self.path
            )
        view[:] = data[skip : skip + len(view)]


if hasattr(os, "preadv"):

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, (view,), offset)

else:  # Python 3.6

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        data = os.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)


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
        self.compressed_flag = 1 << 63
        if not self.encrypted and not self.lost:
            self.special_flags = self.compressed_flag

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

    def blocks(self) -> Iterator[range]:
        for start, length in self.lost:
            yield range(start // BLOCK, -(-(start + length) // BLOCK))

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        for start, length in self.lost:
            first = max(start - block * BLOCK, 0)
            last = min(start + length - block * BLOCK, len(view))
            if first < last:
                view[first:last] = bytes(last - first)


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
        self.compressed_flag = 1 << 62
        self.address_bits = 0x00FFFFFFFFFFFE00
        if not self.extended:
            self.special_flags = self.compressed_flag | (1 if self.version == 3 else 0)

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

    def held(self) -> int:
        return 512 * os.fstat(self.fd).st_blocks

    def blocks(self) -> Iterator[range]:
        for start, length in data_ranges(self.fd, self.size):
            yield range(start // BLOCK, -(-(start + length) // BLOCK))

    def fill(self, block: int, view: memoryview, *, lowest: bool) -> None:
        done = _read_into(self.fd, view, block * BLOCK)
        while done < len(view):
            data = os.pread(self.fd, len(view) - done, block * BLOCK + done)
            if not data:
                view[done:] = bytes(len(view) - done)
                return
            view[done : done + len(data)] = data
            done += len(data)
