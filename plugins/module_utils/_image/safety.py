# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Named safety checks of an untrusted QCOW v1 file, all of them made and all of them reported, before anything is followed or believed.

Pure: what a name would lead to is judged, never looked at. What is an error here makes a migration refuse the image; a warning is only told.
"""

from typing import List, Optional

from .._errors import QcowError
from .._paths import show
from .chain import DEVICE, EMPTY, KERNEL, PROTOCOL, classify_backing_name
from .detect import ReadAt, signatures
from .extent import SECTOR
from .findings import ERROR, NOTE, WARNING, Finding
from .qcow1_header import HEADER_SIZE, Qcow1Header, parse_header

MAX_L1_SIZE = 64 << 20
"""Bytes of an L1 table above which its size is worth a word: 16 TiB of disk in the default shape."""

_FRONT = 4096
_PADDING = slice(34, 36)

DAMAGE = frozenset(["l1-in-header", "l1-outside-file"])
"""Kinds of errors that salvage is for."""

AMBIGUOUS = frozenset(["polyglot"])
"""Kinds of errors that leave open whether the file is an image at all."""


def inspect(head: bytes, file_size: int, read_at: Optional[ReadAt] = None) -> List[Finding]:
    """Every safety check there is, on the header and the backing file's name of a file that says it is QCOW v1.

    :param head: the first bytes of the file, 4096 where it has them.
    :param file_size: bytes.
    :param read_at: reads elsewhere in the file; without it only what ``head`` holds is looked at.
    """

    def from_head(length: int, offset: int) -> bytes:
        return head[offset : offset + length]

    reader = read_at or from_head
    found = []  # type: List[Finding]
    try:
        header = parse_header(head)
    except QcowError as error:
        found.append(Finding("header", ERROR, None, 0, 0, error.message))
    else:
        found.extend(_size(header))
        found.extend(_table(header, file_size))
        found.extend(_backing(header, file_size, reader))
        if any(head[_PADDING]):
            found.append(Finding("padding", NOTE, None, 2, 34, "bytes 34 and 35 of the header are not zero; every reader ignores them"))
    found.extend(_polyglot(file_size, reader))
    return found


def _size(header: Qcow1Header) -> List[Finding]:
    rest = header.size % SECTOR
    if not rest:
        return []
    text = (
        "the virtual size of {0} bytes is not a whole number of sectors: QEMU does not show the guest the last {1} bytes; they are kept, and the new disk "
        "is {2} bytes larger"
    ).format(header.size, rest, SECTOR - rest)
    return [Finding("odd-size", WARNING, header.size - rest, rest, 24, text)]


def _table(header: Qcow1Header, file_size: int) -> List[Finding]:
    size = 8 * header.l1_entries
    end = header.l1_offset + size
    found = []
    if header.l1_offset < HEADER_SIZE:
        found.append(Finding("l1-in-header", ERROR, None, size, header.l1_offset, "the L1 table overlaps the header"))
    if end > file_size:
        text = "the L1 table (bytes {0}..{1}) lies outside the file of {2} bytes".format(header.l1_offset, end - 1, file_size)
        found.append(Finding("l1-outside-file", ERROR, None, size, header.l1_offset, text))
    if size > MAX_L1_SIZE:
        text = "a virtual size of {0} bytes takes an L1 table of {1} bytes; QEMU would read it into memory".format(header.size, size)
        found.append(Finding("huge-l1", WARNING, None, size, header.l1_offset, text))
    return found


def _backing(header: Qcow1Header, file_size: int, read_at: ReadAt) -> List[Finding]:
    offset, length = header.backing_offset, header.backing_length
    if not header.has_backing:
        if not offset and not length:
            return []
        text = "the header has {0} of a backing file's name, but not {1}: there is none".format(
            *(("an offset", "a length") if offset else ("a length", "an offset"))
        )
        return [Finding("backing-fields", NOTE, None, length, offset, text)]
    if offset + length > file_size:
        text = "the backing file's name ({0} bytes at {1}) lies outside the file of {2} bytes".format(length, offset, file_size)
        return [Finding("backing-outside-file", ERROR, None, length, offset, text)]
    backing = classify_backing_name(read_at(length, offset))
    found = []
    if backing.kind in (PROTOCOL, DEVICE, KERNEL):
        found.append(Finding("backing-" + backing.kind, ERROR, None, length, offset, "the backing file's name is refused: " + backing.text))
    elif backing.kind == EMPTY:
        found.append(Finding("backing-empty", NOTE, None, length, offset, "the backing file's name is empty: there is none"))
    if backing.climbs:
        found.append(
            Finding("backing-climbs", WARNING, None, length, offset, "the backing file's name leads upwards (..): " + backing.text)
        )
    if backing.tail or b"\0" in read_at(length, offset):
        text = "the backing file's name ends at a NUL byte; what follows is ignored, as QEMU does: {0}".format(show(backing.tail))
        found.append(Finding("backing-nul", NOTE, None, length, offset, text))
    return found


def _polyglot(file_size: int, read_at: ReadAt) -> List[Finding]:
    """Marks of other formats in the container itself. Behind its front they may also be the guest's bytes, stored as they are."""
    found = []
    for mark in signatures(read_at):
        text = "the file also looks like {0} (byte {1})".format(mark.name, mark.offset)
        severity = ERROR if mark.strong and mark.offset < _FRONT else WARNING
        found.append(Finding("polyglot", severity, None, 0, mark.offset, text))
    if file_size > SECTOR and read_at(8, file_size - SECTOR) == b"conectix":
        found.append(Finding("polyglot", WARNING, None, 0, file_size - SECTOR, "the file also ends like a VHD image"))
    return found
