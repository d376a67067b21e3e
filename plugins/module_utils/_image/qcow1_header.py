# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of QCOW version 1, the backing file name it points to, and Xen's extension with its byte orders.

Layout and limits are those of QEMU's ``block/qcow.c`` and Xen's ``block-qcow.c``."""

import hashlib
import os
import struct
from array import array
from typing import List, NamedTuple, Optional, Sequence

from .._errors import DamagedImage, UnsupportedImage
from .detect import QCOW_MAGIC, ReadAt
from .raw import data_ranges

HEADER_SIZE = 48
"""Bytes of the header; writers may put an extension behind it."""

MAX_BACKING_NAME = 1023
"""Bytes; QEMU refuses longer names (``block/qcow.c``)."""

CLUSTER_BITS = range(9, 17)
L2_BITS = range(6, 14)

CRYPT_NONE = 0
CRYPT_AES = 1

_HEADER = struct.Struct(">IIQIIQBBHIQ")


class Qcow1Header(NamedTuple):
    """The header as it is on disk; offsets, lengths and sizes in bytes."""

    backing_offset: int
    backing_length: int
    mtime: int
    size: int
    cluster_bits: int
    l2_bits: int
    crypt_method: int
    l1_offset: int

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_coverage(self) -> int:
        """Guest bytes one L1 entry stands for."""
        return 1 << (self.cluster_bits + self.l2_bits)

    @property
    def l2_size(self) -> int:
        """Bytes in an L2 table."""
        return 8 << self.l2_bits

    @property
    def l1_entries(self) -> int:
        """Entries in the L1 table; derived, not stored."""
        return -(-self.size // self.l2_coverage)

    @property
    def has_backing(self) -> bool:
        """QEMU's rule: an offset *and* a length."""
        return bool(self.backing_offset and self.backing_length)


def parse_header(head: bytes, path: Optional[bytes] = None) -> Qcow1Header:
    """The header of an image that :func:`~.detect.is_qcow1` recognised.

    :param head: the first bytes of the file, at least 48 unless the file is shorter.
    :raises DamagedImage: where a field is outside the format's limits.
    :raises UnsupportedImage: where the encryption method is not one QEMU ever wrote.
    """
    if len(head) < HEADER_SIZE:
        raise DamagedImage(
            "the QCOW v1 header is cut off: {0} of {1} bytes".format(len(head), HEADER_SIZE), path, hint="Restore the file from a backup."
        )
    magic, version, backing_offset, backing_length, mtime, size, cluster_bits, l2_bits, _padding, crypt_method, l1_offset = (
        _HEADER.unpack_from(head)
    )
    if magic != int.from_bytes(QCOW_MAGIC, "big") or version != 1:
        raise UnsupportedImage("not a QCOW v1 image", path, reason="not-v1")
    header = Qcow1Header(backing_offset, backing_length, mtime, size, cluster_bits, l2_bits, crypt_method, l1_offset)
    problems = []
    if cluster_bits not in CLUSTER_BITS:
        problems.append("cluster_bits is {0}, must be 9..16 (byte 32)".format(cluster_bits))
    if l2_bits not in L2_BITS:
        problems.append("l2_bits is {0}, must be 6..13 (byte 33)".format(l2_bits))
    if size <= 1:
        problems.append("the virtual size is {0} bytes (byte 24)".format(size))
    elif size >= 1 << 63:
        problems.append("the virtual size is {0} bytes, more than any disk can have (byte 24)".format(size))
    if header.has_backing and backing_length > MAX_BACKING_NAME:
        problems.append("the backing file name is {0} bytes long, at most 1023 are allowed (byte 16)".format(backing_length))
    if problems:
        raise DamagedImage(
            "impossible QCOW v1 header: " + "; ".join(problems), path, hint="The file was not changed. Restore it from a backup."
        )
    if crypt_method not in (CRYPT_NONE, CRYPT_AES):
        raise UnsupportedImage("unknown encryption method {0} (byte 36)".format(crypt_method), path)
    return header


def read_backing_name(read_at: ReadAt, header: Qcow1Header, path: Optional[bytes] = None) -> Optional[bytes]:
    """The name of the backing file as stored, cut at the first NUL as QEMU does; ``None`` where there is none.

    :raises DamagedImage: where the name lies outside the file.
    """
    if not header.has_backing:
        return None
    name = read_at(header.backing_length, header.backing_offset) if header.backing_offset < 1 << 63 else b""
    if len(name) < header.backing_length:
        raise DamagedImage(
            "the backing file name ({0} bytes at {1}) lies outside the file".format(header.backing_length, header.backing_offset),
            path,
            hint="The file was not changed. Restore it from a backup.",
        )
    return name.split(b"\0")[0] or None


MAGIC = b"XEN\xfb"
OFFSET = 48
FLAG_SPARSE = 1
FLAG_BIG_ENDIAN = 2

_LONG = 16
_SHORT = 12  # trees before 2006-12: no flags
_ALIGNMENT = 4096
_SAMPLE = 256
_TABLES = 8
_MOST_HASHED = 64 << 20
_PIECE = 1 << 20


class Extension(NamedTuple):
    """blktap's header extension as it is on disk."""

    size: int  # bytes, 16 or 12
    checksum: bytes  # four bytes
    min_cluster_alloc: int  # clusters allocated at a time: 1, or 512 for files that are not sparse
    flags: Optional[int]  # None in the 12-byte form


def parse_extension(head: bytes, backing_offset: int, l1_offset: int) -> Optional[Extension]:
    """The extension of an image whose file starts with ``head`` (64 bytes); ``None`` where there is none.

    tapdisk looks for it only where the L1 table lies at a multiple of 4096; we ask the same, so that no name or table is taken for it.
    """
    if l1_offset % _ALIGNMENT or not l1_offset or head[OFFSET : OFFSET + 4] != MAGIC or len(head) < OFFSET + _SHORT:
        return None
    short = backing_offset == OFFSET + _SHORT or len(head) < OFFSET + _LONG
    (alloc,) = struct.unpack_from(">I", head, 56)
    flags = None if short else struct.unpack_from(">I", head, 60)[0]
    return Extension(_SHORT if short else _LONG, head[52:56], alloc, flags)


class Order(NamedTuple):
    """The byte order of an L1 table and how it was found."""

    byteorder: str  # "big" or "little"
    decided: bool  # False: the table is empty, or makes no sense either way
    text: str


def l1_order(fd: int, l1_offset: int, l1_entries: int, l2_size: int) -> Order:
    """Decide the byte order of an L1 table by its content.

    Read the right way, entries lie inside the file and name tables whose entries lie inside it; the wrong way round they are numbers of
    around 2**40 and more. Looks at no more than the first 256 non-zero entries.

    :param l1_offset: byte in the file.
    :param l2_size: bytes in an L2 table.
    """
    file_size = os.lseek(fd, 0, os.SEEK_END)
    words = _first_words(fd, l1_offset, l1_offset + 8 * l1_entries)
    if not words:
        return Order("big", False, "the L1 table is empty: either byte order says so")
    end = l1_offset + 8 * l1_entries
    offsets = {
        "big": struct.unpack(">{0}Q".format(len(words)), b"".join(words)),
        "little": struct.unpack("<{0}Q".format(len(words)), b"".join(words)),
    }
    scores = {order: _inside(offsets[order], file_size, end) for order in offsets}
    if scores["big"] == scores["little"] and scores["big"]:
        scores = {order: _sensible_tables(fd, offsets[order][:_TABLES], file_size, l2_size) for order in offsets}
    if scores["little"] > scores["big"]:
        return Order("little", True, "the L1 table is little-endian (told by its content)")
    if scores["big"] > scores["little"]:
        return Order("big", True, "the L1 table is big-endian (told by its content)")
    return Order("big", False, "the L1 table makes no more sense in one byte order than in the other")


def _first_words(fd: int, start: int, end: int) -> List[bytes]:
    words: List[bytes] = []
    for data_at, length in data_ranges(fd, end):
        position = max(start, data_at - (data_at - start) % 8)
        while position < data_at + length:
            piece = os.pread(fd, min(1 << 16, end - position), position)
            position += 1 << 16
            if any(piece):
                words.extend(piece[at : at + 8] for at in range(0, len(piece) // 8 * 8, 8) if any(piece[at : at + 8]))
            if len(words) >= _SAMPLE or not piece:
                return words[:_SAMPLE]
    return words


def _inside(offsets: Sequence[int], file_size: int, l1_end: int) -> int:
    return sum(1 for offset in offsets if OFFSET <= offset < file_size) + len(
        {offset for offset in offsets if l1_end <= offset < file_size}
    )


def _sensible_tables(fd: int, offsets: Sequence[int], file_size: int, l2_size: int) -> int:
    score = 0
    for offset in offsets:
        if offset >= file_size:
            continue
        raw = os.pread(fd, l2_size, offset)
        entries = array("Q", struct.unpack(">{0}Q".format(len(raw) // 8), raw[: len(raw) // 8 * 8]))
        score += sum(1 if entry < file_size and entry % 512 == 0 else -1 for entry in entries if entry)
    return score


def checksum_matches(fd: int, extension: Extension, l1_offset: int, l1_entries: int) -> Optional[bool]:
    """Whether the stored checksum is that of the L1 table as it lies on disk; ``None`` for tables too large to hash (over 64 MiB).

    It proves integrity, not byte order, and is stale after an unclean shutdown: never more than a hint.
    """
    left = 8 * l1_entries
    if left > _MOST_HASHED:
        return None
    try:
        digest = hashlib.md5()
    except ValueError:  # FIPS mode knows no MD5
        return None
    position = l1_offset
    while left > 0:
        piece = os.pread(fd, min(_PIECE, left), position)
        if not piece:
            return False
        digest.update(piece)
        position += len(piece)
        left -= len(piece)
    start = digest.digest()[:4]
    return extension.checksum in (start, start[::-1])
