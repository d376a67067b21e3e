# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proof: what two chains show a guest, read by the second path and compared block by block."""

import heapq
from itertools import chain as joined
from itertools import groupby
from operator import attrgetter
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .._copy.crew import Crew, Room
from .._errors import VerificationFailed
from .._image.file_io import forget
from .._image.fingerprint import BLOCK, Digests, Fingerprint, block_digests, rounded
from .reader import PlainImage

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


_ZEROS = bytes(BLOCK)
_FORGET = 64 << 20  # bytes after which the page cache is emptied of them

OnProgress = Callable[[int], None]


def fingerprint(chain: List[PlainImage], progress: Optional[OnProgress] = None) -> str:
    """The fingerprint of what a guest sees through a backing chain, ``chain[0]`` being the image itself."""
    proof = Fingerprint(chain[0].size)
    _pass([chain], b"", progress, proof, uncached=False)
    return proof.text()


def verify(
    source: List[PlainImage],
    result: List[PlainImage],
    path: bytes,
    progress: Optional[OnProgress] = None,
    *,
    copied: Optional[str] = None,
    uncached: bool = False,
) -> str:
    """Proves that two chains show a guest the same bytes.

    :param path: the result's name, for messages.
    :param copied: the fingerprint of all the bytes that were written into the result, where the copy has made one. A result that is equal to its
        source was made of the source's bytes, so that they need not be hashed again.
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
    if copied is not None:
        _pass([source, result], path, progress, None, uncached=uncached)
        return copied
    proof = Fingerprint(source[0].size)
    _pass([source, result], path, progress, proof, uncached=uncached)
    return proof.text()


def _pass(
    sides: List[List[PlainImage]], path: bytes, progress: Optional[OnProgress], proof: Optional[Fingerprint], *, uncached: bool
) -> None:
    """Read one side, or two that have to be equal, and take in what the guest sees where a fingerprint is wanted."""
    files = [image.fd for side in sides for image in side if hasattr(image, "fd")] if uncached else []
    passed = 0

    def produce(turn: int, turns: int, room: Room) -> Iterator[Tuple[int, Tuple[int, Digests]]]:
        regions = _aligned([guest_regions(side, turn, turns) for side in sides])
        for batch, together in groupby(regions, lambda numbered: numbered[0] // BATCH):
            count, digests = 0, []  # type: Tuple[int, Digests]
            for _number, found in together:
                if len(found) > 1:
                    _compare(found[0], found[1], path)
                if found[0] is not None:
                    count += BLOCK * len(found[0].blocks)
                    if proof is not None:
                        digests += block_digests(_held(found[0]))
            room(0)
            yield batch, (count, digests)

    with Crew(produce, 0, sum(image.held() for image in sides[0])) as crew:
        for _number, (count, digests), _memory in crew:
            if proof is not None:
                proof.add(digests)
            if progress is not None:
                progress(count)
            passed += count
            if passed >= _FORGET:
                passed = 0
                _forget_all(files)
    _forget_all(files)


def _aligned(streams: List[Iterator[Region]]) -> Iterator[Tuple[int, List[Optional[Region]]]]:
    """``(number, regions)``: what each stream has under that number, ``None`` where it has none."""
    heads = [next(stream, None) for stream in streams]
    while True:
        numbers = [head.number for head in heads if head is not None]
        if not numbers:
            return
        number = min(numbers)
        yield number, [head if head is not None and head.number == number else None for head in heads]
        heads = [next(stream, None) if head is not None and head.number == number else head for head, stream in zip(heads, streams)]


def _held(region: Region) -> Iterator[Tuple[int, memoryview]]:
    """The blocks of a region that are not all zeros."""
    with memoryview(region.buffer) as view:
        for block in region.blocks:
            start = region.position(block)
            if not region.buffer.startswith(_ZEROS, start):
                yield block * BLOCK, view[start : start + BLOCK]


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
