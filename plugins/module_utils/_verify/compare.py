# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proof: what two chains show a guest, read by the second path and compared block by block.

Both are read wherever any file of either may hold something. So what one side calls a hole is never taken for zeros where the other has data.
"""

import heapq
import os
from itertools import groupby
from operator import attrgetter
from typing import Callable, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

from .._errors import VerificationFailed
from .._fingerprint import BLOCK, Digests, Fingerprint, block_digests, rounded
from .._paths import show
from .._workers import OrderedPool, Room
from .reader import Reader, misreported

BLOCKS = 8
"""Blocks handed on at a time."""

REGION = BLOCKS * BLOCK

BATCH = 8
"""Regions in a row that one process reads."""

Chain = List[Reader]
"""An image and all that lies below it; ``chain[0]`` is the image itself."""


class Region(NamedTuple):
    """Up to :data:`BLOCKS` blocks of the guest in which something may lie."""

    number: int  # its first block is ``number * BLOCKS``
    runs: List[range]  # indexes of the guest's blocks, ascending

    def place(self, run: range) -> slice:
        """Where a run lies in a buffer of the region's bytes."""
        start = (run.start - self.number * BLOCKS) * BLOCK
        return slice(start, start + len(run) * BLOCK)


def regions(chains: List[Chain], partition: int = 0, partitions: int = 1) -> Iterator[Region]:
    """The parts of the guest in which any file of any chain may hold something, in order.

    :param partition: together with ``partitions``: only every so manieth batch of regions, so that several processes can share the work.
    """
    number, runs = -1, []  # type: Tuple[int, List[range]]
    for run in _united(chains):
        for other in range(run.start // BLOCKS, (run.stop - 1) // BLOCKS + 1):
            if other // BATCH % partitions != partition:
                continue
            if other != number:
                if runs:
                    yield Region(number, runs)
                number, runs = other, []
            runs.append(range(max(run.start, number * BLOCKS), min(run.stop, (number + 1) * BLOCKS)))
    if runs:
        yield Region(number, runs)


def _united(chains: List[Chain]) -> Iterator[range]:
    """The blocks of all files that lie on the disk, each once."""
    position, end = 0, -(-chains[0][0].size // BLOCK)
    for run in heapq.merge(*(reader.blocks() for chain in chains for reader in chain), key=attrgetter("start")):
        if run.start >= end:
            return
        if run.stop > position:
            yield range(max(run.start, position), min(run.stop, end))
            position = run.stop


def _read(chain: Chain, region: Region, buffer: bytearray) -> None:
    """Fill the region's part of a buffer of :data:`REGION` bytes; behind the end of the disk with zeros. Other bytes in it mean nothing."""
    with memoryview(buffer) as whole:
        for run in region.runs:
            view = whole[region.place(run)]
            for reader in reversed(chain):
                reader.fill(run.start, view, lowest=reader is chain[-1])
                # Behind its end a base shows zeros to its overlay, whatever lies below it.
                end = max(0, reader.size - run.start * BLOCK)
                if end < len(view):
                    view[end:] = bytes(len(view) - end)


def guest_blocks(chain: Chain) -> Iterator[Tuple[int, bytearray]]:
    """``(index, bytes)`` of the guest's blocks in which any file of a chain may hold something."""
    buffer = bytearray(REGION)
    for region in regions([chain]):
        _read(chain, region, buffer)
        for run in region.runs:
            for block in run:
                yield block, buffer[region.place(range(block, block + 1))]


_ZEROS = bytes(BLOCK)
_FORGET = 64 << 20  # bytes after which the page cache is emptied of them

OnProgress = Callable[[int], None]


def fingerprint(chain: Chain, progress: Optional[OnProgress] = None) -> str:
    """The fingerprint of what a guest sees through a backing chain."""
    proof = Fingerprint(chain[0].size)
    _pass([chain], b"", progress, proof, uncached=False)
    return proof.text()


def verify(
    source: Chain,
    result: Chain,
    path: bytes,
    progress: Optional[OnProgress] = None,
    *,
    copied: Optional[str] = None,
    uncached: bool = False,
) -> str:
    """Proves that two chains show a guest the same bytes.

    :param path: the result's name, for messages.
    :param progress: told of guest bytes that have been read on both sides.
    :param copied: the fingerprint of all the bytes that were written into the result, where the copy has made one. A result that is equal to its
        source was made of the source's bytes, so that they need not be hashed again.
    :param uncached: leave neither source nor result in the page cache.
    :return: the fingerprint of both.
    :raises VerificationFailed: at the first block that differs, or where the virtual sizes do.
    :raises DamagedImage: where one of them cannot be read.
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


def _pass(chains: List[Chain], path: bytes, progress: Optional[OnProgress], proof: Optional[Fingerprint], *, uncached: bool) -> None:
    """Read one chain, or two that have to be equal, and take in what the guest sees where a fingerprint is wanted."""
    files = [reader.fd for chain in chains for reader in chain if hasattr(reader, "fd")] if uncached else []
    passed = 0

    def produce(partition: int, partitions: int, room: Room) -> Iterator[Tuple[int, Tuple[int, Digests]]]:
        buffers = [bytearray(REGION) for _chain in chains]
        for batch, together in groupby(regions(chains, partition, partitions), lambda region: region.number // BATCH):
            count, digests = 0, []  # type: Tuple[int, Digests]
            for region in together:
                for chain, buffer in zip(chains, buffers):
                    _read(chain, region, buffer)
                if len(chains) > 1:
                    _compare(chains, region, buffers, path)
                count += BLOCK * sum(map(len, region.runs))
                if proof is not None:
                    digests += block_digests(_held(region, buffers[0]))
            room(0)
            yield batch, (count, digests)

    with OrderedPool(produce, 0, sum(reader.held() for reader in chains[0])) as pieces:
        for _number, (count, digests), _memory in pieces:
            if proof is not None:
                proof.add(digests)
            if progress is not None:
                progress(count)
            passed += count
            if passed >= _FORGET:
                passed = 0
                _forget(files)
    _forget(files)


def _held(region: Region, buffer: bytearray) -> Iterator[Tuple[int, memoryview]]:
    """``(first guest byte, bytes)`` of the blocks of a region that are not all zeros."""
    with memoryview(buffer) as view:
        for run in region.runs:
            for block in run:
                place = region.place(range(block, block + 1))
                if not buffer.startswith(_ZEROS, place.start):
                    yield block * BLOCK, view[place]


def _forget(files: List[int]) -> None:
    """Let the kernel drop files from its page cache, but for what is not on the disk yet."""
    for fd in files:
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # a filesystem without advice


def _compare(chains: List[Chain], region: Region, buffers: List[bytearray], path: bytes) -> None:
    """One region of the source and of the result."""
    left, right = buffers
    if len(region.runs) == 1 and len(region.runs[0]) == BLOCKS and left == right:
        return
    for run in region.runs:
        for block in run:
            place = region.place(range(block, block + 1))
            if left[place] != right[place]:
                _differ(chains, block, path)


def _differ(chains: List[Chain], block: int, path: bytes) -> NoReturn:
    start, stop = block * BLOCK, (block + 1) * BLOCK
    message = "the result differs from the source in guest bytes {0}..{1}".format(start, stop - 1)
    hint = "Nothing was published and the source is untouched. Check the host's memory and storage, then run again."
    untrue = misreported([reader for chain in chains for reader in chain], block)
    if untrue:
        place = untrue[0]
        message += ": the filesystem calls {0} in bytes {1}..{2} of {3} a hole (SEEK_DATA), but they hold data".format(
            place.what, place.start, place.start + place.length - 1, show(place.path)
        )
        hint = (
            "Nothing was published and the source is untouched. Copy the image to another filesystem with a program that does not ask for holes "
            "(dd bs=1M) and migrate it there. Until this filesystem is repaired, cp and qemu-img lose data on it too."
        )
    raise VerificationFailed(message, path, hint=hint, start=start, length=BLOCK)
