# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a file, or the disk in it, is by its content: magics of image formats, and marks of partition tables, filesystems and other containers."""

import os
from typing import Callable, List, NamedTuple, Optional

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


def reader_at(fd: int) -> ReadAt:
    """Reads of an open file."""
    return lambda length, offset: os.pread(fd, length, offset)


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


class Signature(NamedTuple):
    """A mark that was found."""

    name: str
    offset: int  # byte at which it lies
    strong: bool  # four bytes or more: no coincidence


# (name, byte at which the mark lies, mark). Sources: libblkid, libmagic and the formats' specifications.
_MARKS = (
    ("mbr", 510, b"\x55\xaa"),
    ("gpt", 512, b"EFI PART"),
    ("gpt", 4096, b"EFI PART"),
    ("apm", 512, b"PM\x00\x00"),
    ("bsd-label", 512, b"\x57\x45\x56\x82"),
    ("ext", 1080, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("reiserfs", 0x10034, b"ReIsEr"),
    ("jfs", 0x8000, b"JFS1"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("ufs", 0x2000 + 1372, b"\x54\x19\x01\x00"),
    ("ufs", 0x10000 + 1372, b"\x19\x01\x54\x19"),
    ("hfs", 1024, b"H+\x00\x04"),
    ("zfs", 0x20000, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("fat", 54, b"FAT1"),
    ("fat", 82, b"FAT32   "),
    ("fat", 3, b"MSDOS5.0"),
    ("fat", 3, b"mkfs.fat"),
    ("fat", 3, b"MSWIN4.1"),
    ("squashfs", 0, b"hsqs"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 4086, b"SWAP-SPACE"),
    ("lvm", 0x218, b"LVM2 001"),
    ("lvm", 512, b"LABELONE"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("md-raid", 4096, b"\xfc\x4e\x2b\xa9"),
    ("iso9660", 0x8001, b"CD001"),
    ("udf", 0x8001, b"BEA01"),
    ("grub", 0x180, b"GRUB "),
    ("lilo", 6, b"LILO"),
    ("isolinux", 0x40, b"isolinux"),
)


def signatures(read_at: ReadAt, start: int = 0) -> List[Signature]:
    """The marks of a disk or partition that begins at byte ``start``."""
    found = []
    for name, offset, mark in _MARKS:
        if read_at(len(mark), start + offset) == mark:
            found.append(Signature(name, start + offset, len(mark) >= 4))
    return found


def looks_random(data: bytes) -> Optional[bool]:
    """Whether 512 bytes could be noise (encrypted or compressed), or certainly are not; ``None`` for anything but 512 bytes.

    In random bytes any value appears twice on average, and one appearing 24 times is a matter of 1 in 10**15; of the 256 values about 222
    appear, and 128 of them or less a matter of far less.
    """
    if len(data) != 512:
        return None
    values = set(data)
    return len(values) > 128 and max(map(data.count, values)) < 24
