# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proof: two streams of guest blocks compared, and one number that stands for what the guest sees.

The fingerprint does not depend on format, cluster size or allocation, and costs what is allocated. It is, in words anybody can re-implement:

    SHA-256 of: the text ``vmimage.qcow fingerprint 1`` and a zero byte; the virtual size in bytes, rounded up to a multiple of 512, as a
    big-endian 64-bit number; then, for each 64 KiB block of the guest that is not all zeros, in ascending order: its index as a big-endian
    64-bit number and the 32 bytes of the SHA-256 of its 65,536 bytes (zeros behind the end of the disk).

The blocks are hashed by the threads that read them: in a verification, each of the two readers hashes half of the regions. Which one does not
matter, as a fingerprint is given only to disks that have been found equal byte for byte.
"""

import hashlib
from typing import Any, Callable, List, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import VerificationFailed
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import SECTOR
from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import BLOCK, PlainImage
from ansible_collections.vmimage.qcow.plugins.module_utils.image.regions import (
    ALL_REGIONS,
    BLOCKS,
    EVEN_REGIONS,
    ODD_REGIONS,
    Reading,
    Region,
)
from ansible_collections.vmimage.qcow.plugins.module_utils.image.transport import forget

_SCHEME = "sha256-64k:"
_PREAMBLE = b"vmimage.qcow fingerprint 1\0"
_ZEROS = bytes(BLOCK)
_FORGET = 64 << 20  # bytes after which the page cache is emptied of them

OnProgress = Callable[[int], None]


class Fingerprint:
    """Takes the guest's blocks in ascending order; see the module's text for what it computes.

    :param size: virtual size in bytes.
    """

    def __init__(self, size: int) -> None:
        self._digest = hashlib.sha256(_PREAMBLE + rounded(size).to_bytes(8, "big"))

    def add(self, region: Optional[Region]) -> None:
        """Take in the blocks of a region that has digests; ``None`` is a region of zeros."""
        for index, digest in region.digests if region is not None else ():
            self._digest.update(index.to_bytes(8, "big") + digest)

    def text(self) -> str:
        """The fingerprint with its scheme: ``sha256-64k:`` and 64 hexadecimal digits."""
        return _SCHEME + self._digest.hexdigest()


def rounded(size: int) -> int:
    """A virtual size in bytes rounded up to whole sectors, which is what hypervisors hand out."""
    return -(-size // SECTOR) * SECTOR


def fingerprint(chain: List[PlainImage], progress: Optional[OnProgress] = None) -> str:
    """The fingerprint of what a guest sees through a backing chain, ``chain[0]`` being the image itself."""
    result = Fingerprint(chain[0].size)
    with Reading(chain, ALL_REGIONS) as regions:
        for region in regions:
            result.add(region)
            if progress is not None:
                progress(BLOCK * len(region.blocks))
    return result.text()


def verify(
    source: List[PlainImage], result: List[PlainImage], path: bytes, progress: Optional[OnProgress] = None, *, uncached: bool = False
) -> str:
    """Prove that two chains show a guest the same bytes.

    :param path: the result's name, for messages.
    :param uncached: leave neither source nor result in the page cache.
    :return: the fingerprint of both.
    :raises VerificationFailed: at the first block that differs, or where the virtual sizes do.
    """
    if rounded(source[0].size) != result[0].size:
        raise VerificationFailed(
            "the result's virtual size is {0} bytes, the source's {1}".format(result[0].size, source[0].size),
            path,
            hint="Nothing was published.",
        )
    proof = Fingerprint(source[0].size)
    files = [image.fd for image in source + result if hasattr(image, "fd")] if uncached else []
    passed = 0
    with Reading(source, EVEN_REGIONS) as ours, Reading(result, ODD_REGIONS) as theirs:
        here, there = next(ours, None), next(theirs, None)
        while here is not None or there is not None:
            number = min(region.number for region in (here, there) if region is not None)
            left = here if here is not None and here.number == number else None
            right = there if there is not None and there.number == number else None
            _compare(left, right, path)
            proof.add(right if number % 2 else left)
            done = BLOCK * len(left.blocks) if left is not None else 0
            if progress is not None:
                progress(done)
            passed += done
            if passed >= _FORGET:
                passed = 0
                _forget_all(files)
            here = here if left is None else next(ours, None)
            there = there if right is None else next(theirs, None)
    _forget_all(files)
    return proof.text()


def _forget_all(files: List[int]) -> None:
    for fd in files:
        forget(fd)


def _compare(left: Optional[Region], right: Optional[Region], path: bytes) -> None:
    """One region of the source and of the result; what one of them does not mention must be zeros in the other."""
    if left is not None and right is not None and left.blocks == right.blocks and len(left.blocks) == BLOCKS:
        if left.buffer == right.buffer:
            return
    blocks = set(left.blocks if left is not None else ()) | set(right.blocks if right is not None else ())
    for block in sorted(blocks):
        if _block(left, block) != _block(right, block):
            _differ(block, path)


def _block(region: Optional[Region], block: int) -> Any:
    if region is None or block not in region.blocks:
        return _ZEROS
    start = region.position(block)
    return region.buffer[start : start + BLOCK]


def _differ(index: int, path: bytes) -> None:
    raise VerificationFailed(
        "the result differs from the source in guest bytes {0}..{1}".format(index * BLOCK, (index + 1) * BLOCK - 1),
        path,
        hint="Nothing was published and the source is untouched. Check the host's memory and storage, then run again.",
        start=index * BLOCK,
        length=BLOCK,
    )
