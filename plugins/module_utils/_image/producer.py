# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which program has probably written a QCOW v1 image, by the marks that writers leave, and what known bugs of theirs have done to it.

Sources: QEMU ``block/qcow.c`` (0.6 to 10), VirtualBox ``QCOW.cpp``, FreeBSD ``mkimg/qcow.c``, Xen ``block-qcow.c``, Mac-on-Linux ``mol-img``."""

import os
import zlib
from array import array
from itertools import islice
from typing import List, NamedTuple, Optional, Tuple

from .extent import COMPRESSED, SECTOR
from .findings import WARNING, Finding
from .qcow1 import Damage, Qcow1
from .qcow1_header import CRYPT_AES, HEADER_SIZE, Qcow1Header

QEMU = "qemu"
QEMU_OLD = "qemu-0.6-to-0.9"
XEN = "xen-blktap"
VIRTUALBOX = "virtualbox"
MKIMG = "mkimg"
MOL = "mac-on-linux"
UNKNOWN = "unknown"

_TABLES = 64
_STREAMS = 256
_PAGE = 4096


class Producer(NamedTuple):
    """A guess, and what it rests on."""

    name: str  # one of the names above
    marks: List[str]  # in words


def likely_producer(image: Qcow1) -> Producer:
    """The likely writer of an image. Looks at the first 64 tables at most; damage found on the way is not its business."""
    header = image.header
    if image.xen is not None:
        return Producer(XEN, ["header extension of {0} bytes".format(image.xen.size), "L1 table " + image.l1_byteorder + "-endian"])
    tables = [offset for _start, offset in _tables(image)]
    for guess in (_mkimg, _virtualbox, _qemu):
        writer = guess(image, header, tables)
        if writer is not None:
            return writer
    return Producer(UNKNOWN, ["L1 table at byte {0}, {1} byte clusters".format(header.l1_offset, header.cluster_size)])


def _tables(image: Qcow1) -> List[Tuple[int, int]]:
    quiet = Qcow1(image.fd, image.path, _ignore)
    return list(islice(quiet.l2_tables(), _TABLES))


def _ignore(_damage: Damage) -> None:
    """Damage is reported by the check."""


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _default_shape(header: Qcow1Header) -> bool:
    return (header.cluster_bits, header.l2_bits) == (12, 9)


def _mkimg(_image: Qcow1, header: Qcow1Header, tables: List[int]) -> Optional[Producer]:
    """All tables directly behind an L1 table at 4096, before any data."""
    if header.l1_offset != _PAGE or header.has_backing or not _default_shape(header) or not tables:
        return None
    first = _up(_PAGE + 8 * header.l1_entries, _PAGE)
    if tables != [first + number * header.l2_size for number in range(len(tables))]:
        return None
    return Producer(MKIMG, ["L1 table at byte 4096", "all L2 tables follow it"])


def _virtualbox(image: Qcow1, header: Qcow1Header, tables: List[int]) -> Optional[Producer]:
    """The L1 table is rounded up to whole clusters, and the backing file's name has a cluster of its own."""
    if header.l1_offset != HEADER_SIZE or not _default_shape(header):
        return None
    table = 8 * header.l1_entries
    if header.has_backing and header.backing_offset % _PAGE == 0 and header.backing_offset >= HEADER_SIZE + table:
        return Producer(VIRTUALBOX, ["backing file's name in a cluster of its own"])
    behind = _up(HEADER_SIZE + _up(table, _PAGE), _PAGE)
    if tables and min(tables) == behind != _up(HEADER_SIZE + _up(table, SECTOR), _PAGE):
        return Producer(VIRTUALBOX, ["L1 table at byte 48, rounded up to whole clusters"])
    if not tables and image.file_size % _PAGE == 0 and image.file_size != HEADER_SIZE + table:
        return Producer(VIRTUALBOX, ["empty, and a whole number of clusters long"])
    return None


def _qemu(image: Qcow1, header: Qcow1Header, tables: List[int]) -> Optional[Producer]:
    """The name behind the header, the L1 table behind the name."""
    if header.has_backing and header.backing_offset != HEADER_SIZE:
        return None
    end_of_name = HEADER_SIZE + (header.backing_length if header.has_backing else 0)
    if header.l1_offset != _up(end_of_name, 8):
        return None
    end = header.l1_offset + 8 * header.l1_entries
    marks = ["L1 table right after the " + ("name" if header.has_backing else "header")]
    if header.size % SECTOR:
        return Producer(MOL, [*marks, "virtual size of {0} bytes, not a whole number of sectors".format(header.size)])
    if header.has_backing and header.mtime:
        return Producer(QEMU_OLD, [*marks, "the backing file's time in the header (QEMU up to 0.8.2)"])
    if not tables:
        if image.file_size == end != header.l1_offset + _up(8 * header.l1_entries, SECTOR):
            return Producer(QEMU_OLD, [*marks, "the file ends with the L1 table"])
        return Producer(QEMU, marks)
    offsets = _stream_offsets(image)
    if any(offset % SECTOR for offset in offsets):
        return Producer(QEMU_OLD, [*marks, "compressed clusters packed byte to byte"])
    return Producer(QEMU, [*marks, "compressed clusters begin at sectors"] if offsets else marks)


def _stream_offsets(image: Qcow1) -> List[int]:
    quiet = Qcow1(image.fd, image.path, _ignore)
    offsets = []  # type: List[int]
    for start, offset in islice(quiet.l2_tables(), _TABLES):
        offsets.extend(extent.offset for extent in quiet.table_extents(start, quiet.read_l2(start, offset)) if extent.kind == COMPRESSED)
        if len(offsets) >= _STREAMS:
            break
    return offsets


def virtualbox_overwrite(header: Qcow1Header, offset: int, entries: array, orphans: List[Finding]) -> Optional[Finding]:
    """VirtualBox rounds an L1 table up to whole clusters when it writes it: over the first entries of an L2 table right behind it.

    :param offset: byte at which the first L2 table lies, and its ``entries``.
    :param orphans: ranges of the file that nothing refers to.
    """
    cluster = header.cluster_size
    overwritten = header.l1_offset + -(-8 * header.l1_entries // cluster) * cluster - offset
    count = overwritten // 8
    if not 0 < count < len(entries) or any(entries[:count]) or not any(entries[count:]):
        return None
    behind = offset + header.l2_size
    if not any(orphan.offset == behind and orphan.length >= cluster for orphan in orphans):
        return None
    text = (
        "VirtualBox has probably overwritten the first {0} entries of this L2 table: they are zero, and clusters that nothing refers to lie "
        "right after it, at byte {1}; the first {2} bytes of the disk read as zeros"
    ).format(count, behind, count * cluster)
    return Finding("virtualbox-damage", WARNING, 0, count * cluster, offset, text)


def unflagged_compression(image: Qcow1, samples: List[int]) -> Optional[Finding]:
    """QEMU's development trees of 2008-06-05 to 2009-01-08 wrote compressed clusters without saying so in the entry.

    :param samples: bytes in the file at which clusters lie that are said not to be compressed.
    """
    cluster = image.cluster_size
    looked = hits = 0
    for offset in samples if image.header.crypt_method != CRYPT_AES else ():
        data = os.pread(image.fd, cluster, offset)
        if len(data) == cluster and any(data):
            looked += 1
            hits += _is_stream_and_zeros(data)
    if not hits or 2 * hits < looked:
        return None
    text = (
        "{0} of {1} clusters looked at are compressed although their entries do not say so (a bug of QEMU's development trees of 2008); "
        "the guest sees the compressed bytes"
    ).format(hits, looked)
    return Finding("unflagged-compression", WARNING, None, 0, None, text)


def _is_stream_and_zeros(data: bytes) -> bool:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, len(data) + 1)
    except zlib.error:
        return False
    return inflater.eof and len(inflated) == len(data) and not any(inflater.unused_data)
