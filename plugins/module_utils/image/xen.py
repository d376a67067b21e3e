# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Xen's blktap dialect of QCOW v1: a header extension, and an L1 table that may be little-endian.

Trees before 2008-03-27 wrote the L1 table in host order. Later ones convert it on open and say so in a flag, but for two years the flag
was tested in the wrong byte order, so tables were swapped an odd or even number of times: the flag proves nothing. The content does.
Source: Xen, ``tools/blktap/drivers/block-qcow.c`` and ``block-qcow2.c`` of 2006 to 2010. QEMU knows nothing of this and reads zeros.
"""

import hashlib
import os
import struct
from array import array
from typing import List, NamedTuple, Optional, Sequence

from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import data_ranges

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
