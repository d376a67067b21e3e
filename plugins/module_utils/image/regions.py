# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest sees through a chain of plainly read images, region by region, read ahead by threads."""

import copy
import hashlib
import heapq
import operator
import os
import queue
import threading
from typing import Any, Callable, Iterator, List, NamedTuple, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import BLOCK, PlainImage

BLOCKS = 16
"""Blocks handed on at a time."""

REGION = BLOCKS * BLOCK

_ZERO_BLOCK = bytes(BLOCK)
_SMALL = 8 << 20  # bytes of an image that is not worth a thread
_MAX_READERS = 4  # for each image
_BUFFERS = 3  # regions in memory for each reader: one read, one waiting, one in use


class Region(NamedTuple):
    """Up to :data:`REGION` bytes of the guest, read. Only the blocks that are listed are; what else the buffer holds means nothing."""

    number: int  # of the region; its first block is ``number * BLOCKS``
    blocks: List[int]  # indexes of the guest's blocks in which something may lie, ascending
    buffer: bytearray
    digests: Tuple[Tuple[int, bytes], ...] = ()  # (block, SHA-256) of those that are not all zeros, where they were asked for

    def position(self, block: int) -> int:
        """Where a block begins in the buffer."""
        return (block - self.number * BLOCKS) * BLOCK


ALL_REGIONS = (1, 0)
EVEN_REGIONS = (2, 0)
ODD_REGIONS = (2, 1)
NO_REGIONS = (1, 1)
"""Which regions get digests: those whose number leaves the second when divided by the first. Two readers of equal disks share the work so."""


def _digests(region: Region, which: Tuple[int, int]) -> Region:
    if region.number % which[0] != which[1]:
        return region
    found = []
    with memoryview(region.buffer) as view:
        for block in region.blocks:
            start = region.position(block)
            if not region.buffer.startswith(_ZERO_BLOCK, start):
                found.append((block, hashlib.sha256(view[start : start + BLOCK]).digest()))
    return region._replace(digests=tuple(found))


def guest_regions(chain: List[PlainImage], buffers: Callable[[], bytearray], turn: int = 0, turns: int = 1) -> Iterator[Region]:
    """The parts of the guest in which any file of a chain may hold something, in order; ``chain[0]`` is the image itself.

    Blocks are zero behind the end of the disk.

    :param buffers: gives a buffer of :data:`REGION` bytes for each.
    :param turn: together with ``turns``: only every so manieth region, so that several readers can share the work.
    """
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
            if wanted and number % turns == turn:
                yield _read(chain, number, wanted, buffers())
            number = block // BLOCKS
            wanted = []
        wanted.append(block)
    if wanted and number % turns == turn:
        yield _read(chain, number, wanted, buffers())


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
    for region in guest_regions(chain, lambda: bytearray(REGION)):
        for block in region.blocks:
            start = region.position(block)
            yield block, region.buffer[start : start + BLOCK]


class Reading:
    """The regions of a chain, read ahead by threads of their own (context manager); each region is good until the next one is asked for.

    A small image is read without threads; one whose clusters must be inflated, decrypted or all hashed by as many as there are processors.

    :param digests: which regions get digests, :data:`ALL_REGIONS` and so on.
    """

    def __init__(self, chain: List[PlainImage], digests: Tuple[int, int] = NO_REGIONS) -> None:
        self._readers = []  # type: List[_Reader]
        self._regions = iter(())  # type: Iterator[Region]
        if chain[0].size <= _SMALL or all(image.held() <= _SMALL for image in chain):
            buffer = bytearray(REGION)
            self._regions = (_digests(region, digests) for region in guest_regions(chain, lambda: buffer))
            return
        laborious = digests == ALL_REGIONS or any(image.laborious() for image in chain)
        turns = min(os.cpu_count() or 1, _MAX_READERS) if laborious else 1
        self._readers = [_Reader([copy.copy(image) for image in chain], digests, turn, turns) for turn in range(turns)]
        self._regions = heapq.merge(*self._readers, key=operator.attrgetter("number")) if turns > 1 else iter(self._readers[0])

    def __enter__(self) -> Iterator[Region]:
        return self._regions

    def __exit__(self, *dummy: Any) -> None:
        for reader in self._readers:
            reader.stop()


class _Reader:
    """One thread that reads regions into a few buffers used in turn."""

    def __init__(self, chain: List[PlainImage], digests: Tuple[int, int], turn: int, turns: int) -> None:
        self._chain = chain
        self._digests = digests
        self._turn = (turn, turns)
        self._free = queue.Queue()  # type: queue.Queue
        self._ready = queue.Queue()  # type: queue.Queue
        for _count in range(_BUFFERS):
            self._free.put(bytearray(REGION))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for region in guest_regions(self._chain, self._buffer, *self._turn):
                self._ready.put(_digests(region, self._digests))
            self._ready.put(None)
        except _Stopped:
            pass
        except BaseException as error:  # told to whoever waits
            self._ready.put(error)

    def _buffer(self) -> bytearray:
        buffer = self._free.get()
        if buffer is None:
            raise _Stopped
        return buffer

    def __iter__(self) -> Iterator[Region]:
        while True:
            region = self._ready.get()
            if region is None:
                return
            if isinstance(region, BaseException):
                raise region
            yield region
            self._free.put(region.buffer)

    def stop(self) -> None:
        """Let the thread end, wherever it is."""
        self._free.put(None)
        self._thread.join()


class _Stopped(Exception):
    """Nobody wants more."""
