# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest sees through a chain of plainly read images, region by region, read ahead by threads."""

import copy
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

    def position(self, block: int) -> int:
        """Where a block begins in the buffer."""
        return (block - self.number * BLOCKS) * BLOCK


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
        for block in blocks:
            start = (block - number * BLOCKS) * BLOCK
            if len(chain) > 1 or not chain[0].covers(block):
                buffer[start : start + BLOCK] = _ZERO_BLOCK
            view = whole[start : start + BLOCK]
            for image in reversed(chain):
                image.fill(block, view)
                # Behind its end a base shows zeros to its overlay, whatever lies below it.
                end = max(0, image.size - block * BLOCK)
                if end < BLOCK:
                    view[end:] = bytes(BLOCK - end)
    return Region(number, blocks, buffer)


def guest_blocks(chain: List[PlainImage]) -> Iterator[Tuple[int, bytearray]]:
    """``(index, bytes)`` of the guest's blocks in which any file of a chain may hold something."""
    for region in guest_regions(chain, lambda: bytearray(REGION)):
        for block in region.blocks:
            start = region.position(block)
            yield block, region.buffer[start : start + BLOCK]


class Reading:
    """The regions of a chain, read ahead by threads of their own (context manager); each region is good until the next one is asked for.

    A small image is read without threads; one whose clusters must be inflated or decrypted by as many as there are processors.
    """

    def __init__(self, chain: List[PlainImage]) -> None:
        self._readers = []  # type: List[_Reader]
        if chain[0].size <= _SMALL or all(image.held() <= _SMALL for image in chain):
            buffer = bytearray(REGION)
            self._regions = guest_regions(chain, lambda: buffer)
            return
        turns = min(os.cpu_count() or 1, _MAX_READERS) if any(image.laborious() for image in chain) else 1
        self._readers = [_Reader([copy.copy(image) for image in chain], turn, turns) for turn in range(turns)]
        self._regions = heapq.merge(*self._readers, key=operator.attrgetter("number")) if turns > 1 else iter(self._readers[0])

    def __enter__(self) -> Iterator[Region]:
        return self._regions

    def __exit__(self, *dummy: Any) -> None:
        for reader in self._readers:
            reader.stop()


class _Reader:
    """One thread that reads regions into a few buffers used in turn."""

    def __init__(self, chain: List[PlainImage], turn: int, turns: int) -> None:
        self._chain = chain
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
                self._ready.put(region)
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
