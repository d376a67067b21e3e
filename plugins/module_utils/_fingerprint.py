# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One number that stands for what the guest sees.

It does not depend on format, cluster size or allocation, and costs what is allocated. It is, in words anybody can re-implement:

    SHA-256 of: the text ``vmimage.qcow fingerprint 1`` and a zero byte; the virtual size in bytes, rounded up to a multiple of 512, as a
    big-endian 64-bit number; then, for each 64 KiB block of the guest that is not all zeros, in ascending order: its index as a big-endian
    64-bit number and the 32 bytes of the SHA-256 of its 65,536 bytes (zeros behind the end of the disk).
"""

import hashlib
from typing import Iterable, List, Tuple

BLOCK = 1 << 16
"""Bytes of the pieces in which a disk is fingerprinted, and two of them compared; independent of any cluster size."""

_SECTOR = 512
_SCHEME = "sha256-64k:"
_PREAMBLE = b"vmimage.qcow fingerprint 1\0"

Digests = List[Tuple[int, bytes]]
"""``(index, SHA-256)`` of blocks that are not all zeros, ascending."""


class Fingerprint:
    """Takes the guest's blocks in ascending order; see the module's text for what it computes.

    :param size: virtual size in bytes.
    """

    def __init__(self, size: int) -> None:
        self._digest = hashlib.sha256(_PREAMBLE + rounded(size).to_bytes(8, "big"))

    def add(self, digests: Digests) -> None:
        """Take in blocks that are not all zeros."""
        for index, digest in digests:
            self._digest.update(index.to_bytes(8, "big") + digest)

    def text(self) -> str:
        """The fingerprint with its scheme: ``sha256-64k:`` and 64 hexadecimal digits."""
        return _SCHEME + self._digest.hexdigest()


def rounded(size: int) -> int:
    """A virtual size in bytes rounded up to whole sectors, which is what hypervisors hand out."""
    return -(-size // _SECTOR) * _SECTOR


def block_digests(pieces: Iterable[Tuple[int, memoryview]]) -> Digests:
    """The digests of all blocks that hold anything but zeros.

    :param pieces: ``(first guest byte, bytes)`` in guest order; zeros where there is none. No block's part of a piece is all zeros.
    """
    found: Digests = []
    digest = hashlib.sha256
    number, cut = -1, bytearray()  # a block of which more may come
    for guest, piece in pieces:
        done, length = 0, len(piece)
        while done < length:
            index, skip = divmod(guest + done, BLOCK)
            if number not in (index, -1):
                found.append((number, digest(cut).digest()))
                number = -1
            whole = 0 if skip else (length - done) // BLOCK
            if whole:
                found += [(index + i, digest(piece[done + i * BLOCK : done + (i + 1) * BLOCK]).digest()) for i in range(whole)]
                done += whole * BLOCK
                continue
            step = min(BLOCK - skip, length - done)
            if number < 0:
                number, cut = index, bytearray(BLOCK)
            cut[skip : skip + step] = piece[done : done + step]
            done += step
    if number >= 0:
        found.append((number, digest(cut).digest()))
    return found
