# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often each cluster of a qcow2 file is referred to, while the file is being written."""

from array import array
from typing import List, Optional, Tuple

REFCOUNT_BYTES = 2
"""Bytes of one count, in the files we write."""


class Refcounts:
    """16-bit reference counts of the clusters of a file that only grows, kept for the blocks that are not written yet."""

    def __init__(self, cluster_size: int) -> None:
        self.per_block = cluster_size // REFCOUNT_BYTES
        self.table = array("Q")
        self._blocks: dict = {}
        self._kept: List[int] = []

    @property
    def blocks_placed(self) -> int:
        """Blocks that have their place in the file."""
        return len(self.table)

    def blocks_needed(self, clusters: int) -> int:
        """Blocks that count so many clusters."""
        return -(-clusters // self.per_block)

    def complete_blocks(self, clusters: int) -> bool:
        """Whether the first block not placed yet counts only clusters before ``clusters``, so that it can be written for good."""
        return clusters >= (self.blocks_placed + 1) * self.per_block

    def add(self, first: int, last: int) -> None:
        """One more reference to each of the clusters first..last."""
        while first <= last:
            number, index = divmod(first, self.per_block)
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = array("H", bytes(REFCOUNT_BYTES * self.per_block))
            count = min(last - first + 1, self.per_block - index)
            if count > 1 and not any(block[index : index + count]):
                block[index : index + count] = array("H", [1]) * count
            else:
                for position in range(index, index + count):
                    block[position] += 1
            first += count

    def place_block(self, offset: int, *, keep: bool) -> Optional[array]:
        """Note that the next block lies at byte ``offset``; it is returned to be written unless it is kept for later changes."""
        number = self.blocks_placed
        self.table.append(offset)
        if keep:
            self._kept.append(number)
            return None
        return self._blocks.pop(number)

    def unwritten(self) -> List[Tuple[int, array]]:
        """``(offset, block)`` of the blocks that were kept."""
        return [(self.table[number], self._blocks[number]) for number in self._kept]
