# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest sees through a chain of plainly read images, region by region."""

import heapq
from itertools import chain as joined
from operator import attrgetter
from typing import Iterator, List, NamedTuple, Sequence, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.image.fingerprint import BLOCK
from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import PlainImage

BLOCKS = 8
"""Blocks handed on at a time."""

REGION = BLOCKS * BLOCK

BATCH = 8
"""Regions in a row that one process reads."""


class Region(NamedTuple):
    """Up to :data:`REGION` bytes of the guest, read. Only the blocks that are listed are; what else the buffer holds means nothing."""

    number: int  # of the region; its first block is ``number * BLOCKS``
    blocks: Sequence[int]  # indexes of the guest's blocks in which something may lie, ascending
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
    for number, runs in _by_region(_united(chain), turn, turns):
        yield _read(chain, number, runs, buffer)


def _united(chain: List[PlainImage]) -> Iterator[range]:
    """The blocks of all files of a chain that lie on the disk, each once."""
    position, end = 0, -(-chain[0].size // BLOCK)
    for run in heapq.merge(*(image.blocks() for image in chain), key=attrgetter("start")):
        if run.start >= end:
            return
        if run.stop > position:
            yield range(max(run.start, position), min(run.stop, end))
            position = run.stop


def _by_region(blocks: Iterator[range], turn: int, turns: int) -> Iterator[Tuple[int, List[range]]]:
    """``(number, runs of blocks)`` of the regions that this process is to read."""
    number, runs = -1, []  # type: Tuple[int, List[range]]
    for run in blocks:
        for other in range(run.start // BLOCKS, (run.stop - 1) // BLOCKS + 1):
            if other // BATCH % turns != turn:
                continue
            if other != number:
                if runs:
                    yield number, runs
                number, runs = other, []
            runs.append(range(max(run.start, number * BLOCKS), min(run.stop, (number + 1) * BLOCKS)))
    if runs:
        yield number, runs


def _read(chain: List[PlainImage], number: int, runs: List[range], buffer: bytearray) -> Region:
    with memoryview(buffer) as whole:
        for run in runs:
            start, size = (run.start - number * BLOCKS) * BLOCK, len(run) * BLOCK
            view = whole[start : start + size]
            for image in reversed(chain):
                image.fill(run.start, view, lowest=image is chain[-1])
                # Behind its end a base shows zeros to its overlay, whatever lies below it.
                end = max(0, image.size - run.start * BLOCK)
                if end < size:
                    view[end:] = bytes(size - end)
    return Region(number, runs[0] if len(runs) == 1 else list(joined.from_iterable(runs)), buffer)


def guest_blocks(chain: List[PlainImage]) -> Iterator[Tuple[int, bytearray]]:
    """``(index, bytes)`` of the guest's blocks in which any file of a chain may hold something."""
    for region in guest_regions(chain):
        for block in region.blocks:
            start = region.position(block)
            yield block, region.buffer[start : start + BLOCK]
