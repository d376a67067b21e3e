# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks by which a disk's content can be recognised: partition tables, filesystems, volumes, boot loaders, other containers."""

from typing import Callable, List, NamedTuple, Optional

ReadAt = Callable[[int, int], bytes]
"""Reads up to ``length`` bytes at byte ``offset``: ``(length, offset) -> bytes``; fewer, or none, behind the end."""


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
