# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest sees through a chain of plainly read images, region by region."""

import heapq
from typing import Iterator, List, NamedTuple, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import BLOCK, PlainImage

BLOCKS = 8
"""Blocks handed on at a time."""

REGION = BLOCKS * BLOCK

BATCH = 8
"""Regions in a row that one process reads."""


class Region(NamedTuple):
    """Up to :data:`REGION` bytes of the guest, read. Only the blocks that are listed are; what else the buffer holds means nothing."""

    number: int  # of the region; its first block is ``number * BLOCKS``
    blocks: List[int]  # indexes of the guest's blocks in which something may lie, ascending
    buffer: bytearray

    def position(self, block: int) -> int:
        """Where a block begins in the buffer."""
        return (block - self.number * BLOCKS) * BLOCK


def guest_regions(chain: List[PlainImage], turn: int = 0, turns: int = 1) -> Iterator[Region]:
    """The parts of the guest in which any file of a chain may hold something, in order; ``chain[0]`` is the image itself.

    Blocks are zero behind the end of the disk. A region is good until the next one is asked for.

    :param turn: together with ``turns``: only every so manieth batch of regions, so that several processes can share the work.
    """
    buffer = bytearray(REGION)
    size = chain[0].size
    streams = [image.blocks() for image in chain]
    wanted = []  # type: List[int]
    number = -1
    for block in heapq.merge(*streams) if len(streams) > 1 else streams[0]:
        if block * BLOCK >= size:
            break
        if wanted and block == wanted[-1]:
            continue
        if block // BLOCKS != number:
            if wanted and number // BATCH % turns == turn:
                yield _read(chain, number, wanted, buffer)
            number = block // BLOCKS
            wanted = []
        wanted.append(block)
    if wanted and number // BATCH % turns == turn:
        yield _read(chain, number, wanted, buffer)


def _read(chain: List[PlainImage], number: int, blocks: List[int], buffer: bytearray) -> Region:
    with memoryview(buffer) as whole:
        for block, count in _runs(blocks):
            start, size = (block - number * BLOCKS) * BLOCK, count * BLOCK
            if len(chain) > 1 or not chain[0].covers(block, count):
                buffer[start : start + size] = bytes(size)
            view = whole[start : start + size]
            for image in reversed(chain):
                image.fill(block, view)
                # Behind its end a base shows zeros to its overlay, whatever lies below it.
                end = max(0, image.size - block * BLOCK)
                if end < size:
                    view[end:] = bytes(size - end)
    return Region(number, blocks, buffer)


def _runs(blocks: List[int]) -> Iterator[Tuple[int, int]]:
    """``(first, number)`` of blocks that follow each other."""
    first = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or blocks[place] != blocks[place - 1] + 1:
            yield blocks[first], place - first
            first = place


def guest_blocks(chain: List[PlainImage]) -> Iterator[Tuple[int, bytearray]]:
    """``(index, bytes)`` of the guest's blocks in which any file of a chain may hold something."""
    for region in guest_regions(chain):
        for block in region.blocks:
            start = region.position(block)
            yield block, region.buffer[start : start + BLOCK]
