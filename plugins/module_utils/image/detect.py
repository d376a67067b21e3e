# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a file is, told by its content. Names lie, and so does a ``qemu-img`` that was built without the QCOW v1 driver."""

from typing import Callable, NamedTuple, Optional

HEAD = 4096
"""Bytes of the start of a file that :func:`identify` wants; fewer where the file is shorter."""

QCOW_MAGIC = b"QFI\xfb"
QCOW1_MAGIC = QCOW_MAGIC + b"\x00\x00\x00\x01"
"""Magic and version of QCOW version 1."""

UNKNOWN = "unknown"
"""Raw or unknown: no magic says what it is, and we do not guess."""


class Identity(NamedTuple):
    """A format by QEMU's driver name (where it has one) and the version the file states (where it states one)."""

    format: str
    version: Optional[int]


ReadAt = Callable[[int, int], bytes]
"""Reads up to ``length`` bytes at byte ``offset`` of the file: ``(length, offset) -> bytes``."""

# (format, offset in the first 4096 bytes, magic). QEMU's probes, libmagic and the formats' own specifications.
_MAGICS = (
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("qed", 0, b"QED\x00"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    ("gzip", 0, b"\x1f\x8b\x08"),
    ("xz", 0, b"\xfd7zXZ\x00"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("bzip2", 0, b"BZh"),
    ("zip", 0, b"PK\x03\x04"),
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("squashfs", 0, b"hsqs"),
)

_ISO_OFFSET = 0x8001
_ISO_BLOCK = 2048
_VHD_FOOTER = 512


def is_qcow1(head: bytes) -> bool:
    """Whether a file that starts with ``head`` claims to be QCOW version 1: eight bytes decide."""
    return head.startswith(QCOW1_MAGIC)


def identify(head: bytes, size: int, read_at: Optional[ReadAt] = None) -> Identity:
    """What a file is.

    :param head: its first :data:`HEAD` bytes, or all of them.
    :param size: its length in bytes.
    :param read_at: reads elsewhere in the file; used for formats whose mark is not at the start, and only where the length allows them.
    """
    if head[:4] == QCOW_MAGIC and len(head) >= 8:
        version = int.from_bytes(head[4:8], "big")
        return Identity({1: "qcow", 2: "qcow2", 3: "qcow2"}.get(version, UNKNOWN), version)
    for name, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return Identity(name, None)
    if read_at is not None:
        if size % _ISO_BLOCK == 0 and size > _ISO_OFFSET + 5 and read_at(5, _ISO_OFFSET) == b"CD001":
            return Identity("iso", None)
        if size % _VHD_FOOTER == 0 and size > _VHD_FOOTER and read_at(8, size - _VHD_FOOTER) == b"conectix":
            return Identity("vpc", None)
    return Identity(UNKNOWN, None)
