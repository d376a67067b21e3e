# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proof: two streams of guest blocks compared, and one number that stands for what the guest sees.

The fingerprint does not depend on format, cluster size or allocation, and costs what is allocated. It is, in words anybody can re-implement:

    SHA-256 of: the text ``vmimage.qcow fingerprint 1`` and a zero byte; the virtual size in bytes, rounded up to a multiple of 512, as a
    big-endian 64-bit number; then, for each 64 KiB block of the guest that is not all zeros, in ascending order: its index as a big-endian
    64-bit number and its 65,536 bytes (zeros behind the end of the disk).
"""

import hashlib
from typing import Callable, Iterator, List, Optional, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import VerificationFailed
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import SECTOR
from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import BLOCK, PlainImage, guest_blocks

_SCHEME = "sha256-64k:"
_PREAMBLE = b"vmimage.qcow fingerprint 1\0"
_ZEROS = bytes(BLOCK)

OnProgress = Callable[[int], None]


class Fingerprint:
    """Takes the guest's blocks in ascending order; see the module's text for what it computes.

    :param size: virtual size in bytes.
    """

    def __init__(self, size: int) -> None:
        self._digest = hashlib.sha256(_PREAMBLE + rounded(size).to_bytes(8, "big"))

    def add(self, index: int, block: bytes) -> None:
        """Take the block at ``index`` in; must not be all zeros."""
        self._digest.update(index.to_bytes(8, "big"))
        self._digest.update(block)

    def text(self) -> str:
        """The fingerprint with its scheme: ``sha256-64k:`` and 64 hexadecimal digits."""
        return _SCHEME + self._digest.hexdigest()


def rounded(size: int) -> int:
    """A virtual size in bytes rounded up to whole sectors, which is what hypervisors hand out."""
    return -(-size // SECTOR) * SECTOR


def fingerprint(chain: List[PlainImage], progress: Optional[OnProgress] = None) -> str:
    """The fingerprint of what a guest sees through a backing chain, ``chain[0]`` being the image itself."""
    result = Fingerprint(chain[0].size)
    for index, block in _written(chain, progress):
        result.add(index, block)
    return result.text()


def verify(source: List[PlainImage], result: List[PlainImage], path: bytes, progress: Optional[OnProgress] = None) -> str:
    """Prove that two chains show a guest the same bytes.

    :param path: the result's name, for messages.
    :return: the fingerprint of both.
    :raises VerificationFailed: at the first block that differs, or where the virtual sizes do.
    """
    if rounded(source[0].size) != result[0].size:
        raise VerificationFailed(
            "the result's virtual size is {0} bytes, the source's {1}".format(result[0].size, source[0].size), path, hint="Nothing was published."
        )
    proof = Fingerprint(source[0].size)
    written = _written(result, None)
    there = next(written, None)
    for index, block in _written(source, progress):
        if there is None or there[0] != index or there[1] != block:
            _differ(index if there is None else min(index, there[0]), path)
        proof.add(index, block)
        there = next(written, None)
    if there is not None:
        _differ(there[0], path)
    return proof.text()


def _differ(index: int, path: bytes) -> None:
    raise VerificationFailed(
        "the result differs from the source in guest bytes {0}..{1}".format(index * BLOCK, (index + 1) * BLOCK - 1),
        path,
        hint="Nothing was published and the source is untouched. Check the host's memory and storage, then run again.",
        start=index * BLOCK,
        length=BLOCK,
    )


def _written(chain: List[PlainImage], progress: Optional[OnProgress]) -> Iterator[Tuple[int, bytearray]]:
    """The guest's blocks that are not all zeros."""
    for index, block in guest_blocks(chain):
        if progress is not None:
            progress(BLOCK)
        if block != _ZEROS:
            yield index, block
