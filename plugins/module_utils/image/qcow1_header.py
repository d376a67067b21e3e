# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of QCOW version 1 and the backing file name it points to. Layout and limits are those of QEMU's ``block/qcow.c``."""

import os
import struct
from typing import NamedTuple, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import DamagedImage, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.image.detect import QCOW_MAGIC

HEADER_SIZE = 48
"""Bytes of the header; writers may put an extension behind it."""

MAX_BACKING_NAME = 1023
"""Bytes; QEMU refuses longer names (``block/qcow.c``)."""

CLUSTER_BITS = range(9, 17)
L2_BITS = range(6, 14)

CRYPT_NONE = 0
CRYPT_AES = 1

_HEADER = struct.Struct(">IIQIIQBBHIQ")


class Header(NamedTuple):
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


def parse_header(head: bytes, path: Optional[bytes] = None) -> Header:
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
    header = Header(backing_offset, backing_length, mtime, size, cluster_bits, l2_bits, crypt_method, l1_offset)
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


def read_backing_name(fd: int, header: Header, path: Optional[bytes] = None) -> Optional[bytes]:
    """The name of the backing file as stored, cut at the first NUL as QEMU does; ``None`` where there is none.

    :raises DamagedImage: where the name lies outside the file.
    """
    if not header.has_backing:
        return None
    name = os.pread(fd, header.backing_length, header.backing_offset) if header.backing_offset < 1 << 63 else b""
    if len(name) < header.backing_length:
        raise DamagedImage(
            "the backing file name ({0} bytes at {1}) lies outside the file".format(header.backing_length, header.backing_offset),
            path,
            hint="The file was not changed. Restore it from a backup.",
        )
    return name.split(b"\0")[0] or None
