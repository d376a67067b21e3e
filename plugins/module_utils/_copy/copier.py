# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How bytes travel from extents into a writer. Decided here, per extent, and nowhere else.

* A long run of stored bytes shares its blocks with the source where the filesystem can do that (XFS, Btrfs, ...). Zeros in it are shared too:
  they take no space that the source does not take already, and finding them would mean reading everything.
* Anything else is read in chunks, each in the order in which it lies in the file, by a pool of workers, and written by this process. Units of
  zeros are dropped, and zeros inside a unit stay holes of the file.
* Where the result is compressed, streams of its cluster size are carried over as they are; the rest is deflated by the workers.
* Where a fingerprint is wanted and every byte passes through, the workers hash what they have read while it is at hand.
"""

import os
import threading
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .._fingerprint import Fingerprint
from .._image.extent import CHUNK, Extent, Layer, Partition
from .._image.file_io import clone_range, clone_unit, copy_all, forget, start_writeback, write_all
from .._workers import OrderedPool, Room
from .chunks import LONG, Chunk, ChunkReader, Packed, Shared, Stored

WRITEBACK = 32 << 20
"""Bytes written after which the kernel is asked to bring them to the disk, or, for a copy that is not to fill its cache, made to."""

_SHORT = 64 << 10  # bytes of a piece that is written together with its neighbours
_JOINED = 1 << 20  # bytes that are written together

OnProgress = Callable[[int], None]
"""Told of the guest bytes that have been dealt with since the last call; may sleep to limit the rate, may raise to stop."""


class Copied(NamedTuple):
    """What a copy amounted to, in bytes."""

    read: int  # guest bytes that the extents held
    written: int  # guest bytes that were placed in the result
    carried: int  # of those, guest bytes whose compressed streams were taken over as they are
    shared: int = 0  # of those, guest bytes whose blocks the result shares with its source
    fingerprint: Optional[str] = None  # of what was written, where that was wanted and all of it passed through memory


def copy_extents(
    extents: Iterable[Extent],
    layers: Sequence[Layer],
    writer: Any,
    progress: Optional[OnProgress] = None,
    *,
    hashed: bool = False,
    uncached: bool = False,
) -> Copied:
    """Copy a stream of extents into a writer and finish it. Nothing is synced.

    :param extents: in guest order, without overlaps; begun by each worker for itself.
    :param layers: all whose files they lie in.
    :param writer: a ``RawWriter`` or ``Qcow2Writer`` on an empty file.
    :param hashed: the extents are all that the guest sees: make its fingerprint, if that needs no further reading.
    :param uncached: leave neither source nor result in the page cache, so that what others need stays there.
    :raises QcowError: what reading the extents raises.
    :raises OSError: what writing raises.
    """
    job = _Copy(layers, writer, progress, hashed, uncached)
    try:
        job.run(extents)
    finally:
        job.flushing.join()
    writer.finish()
    return Copied(job.read, job.written, job.carried, job.shared, None if job.proof is None else job.proof.text())


class _Copy:
    def __init__(self, layers: Sequence[Layer], writer: Any, progress: Optional[OnProgress], hashed: bool, uncached: bool) -> None:
        self.layers = layers
        self.writer = writer
        self.progress = progress
        self.uncached = uncached
        self.read = self.written = self.carried = self.shared = 0
        self.proof = Fingerprint(writer.virtual_size) if hashed else None
        self.flushing = _Background()
        self._unsynced = 0
        self._clone_units: Dict[int, int] = {}  # descriptor: what clone_unit says
        if not writer.compressed:
            self._clone_units = {layer.fd: clone_unit(layer.fd, writer.fd) for layer in layers if layer.held() >= LONG}

    def run(self, extents: Iterable[Extent]) -> None:
        maker = ChunkReader(self.layers, self.writer, self._clone_units, self.proof is not None)

        def produce(partition: int, partitions: int, room: Room) -> Iterator[Tuple[int, Chunk]]:
            return maker.make(extents, Partition(partition, partitions), room)

        with OrderedPool(produce, CHUNK, sum(layer.held() for layer in self.layers)) as chunks:
            for start, (read, parts, digests), memory in chunks:
                if digests is None:
                    self.proof = None
                elif self.proof is not None:
                    self.proof.add(digests)
                jobs: List[Tuple[int, int, int]] = []
                for part in parts:
                    if isinstance(part, Stored):
                        self._place(part, jobs)
                    elif isinstance(part, Packed):
                        self._place_packed(part, jobs)
                    else:
                        self._share(part)
                self._write(memory, jobs, start + CHUNK)
                self.read += read
                if self.progress is not None:
                    self.progress(read)

    def _place(self, part: Stored, jobs: List[Tuple[int, int, int]]) -> None:
        """Find places for the units that are not all zeros: ``(first, last byte in memory, offset in the result)``."""
        writer, runs = self.writer, part.runs
        base, shift = part.at, part.at - part.start
        end = position = base
        stop_all = base + part.length
        place = 0
        for start, stop in _whole_units(runs, base, stop_all, writer.unit):
            if writer.backed and start > position:
                writer.place_zeros(position - shift, start - position)
            position = stop
            self.written += stop - start
            for offset, length in writer.place(start - shift, stop - start):
                # Inside a unit of the result, what is zero stays a hole of the file.
                end = start + length
                while place < len(runs) and runs[place][0] < end:
                    first, last = runs[place]
                    jobs.append((first, min(last, end), offset + first - start))
                    if last > end:
                        runs[place] = (end, last)
                        break
                    place += 1
                start = end
        if writer.backed and position < stop_all:
            writer.place_zeros(position - shift, stop_all - position)

    def _place_packed(self, part: Packed, jobs: List[Tuple[int, int, int]]) -> None:
        writer = self.writer
        if part.stored < 0:
            if writer.backed:
                writer.place_zeros(part.start, part.length)
            return
        self.written += part.length
        self.carried += part.carried
        if part.stored:
            jobs.append((part.at, part.at + part.stored, writer.place_stream(part.start, part.stored)))
        else:
            jobs.extend((part.at, part.at + part.length, offset) for offset, _length in writer.place(part.start, part.length))

    def _share(self, part: Shared) -> None:
        unit, source = self._clone_units[part.fd], part.offset
        layer = next(layer for layer in self.layers if layer.fd == part.fd)
        for offset, length in self.writer.place(part.start, part.length):
            whole = 0 if offset % unit or source % unit else length // unit * unit
            if whole and not clone_range(part.fd, source, whole, self.writer.fd, offset):
                whole = 0
            self.shared += whole
            copy_all(layer, source + whole, length - whole, self.writer.fd, offset + whole)
            source += length
        self.written += part.length

    def _write(self, memory: memoryview, jobs: List[Tuple[int, int, int]], stop: int) -> None:
        fd = self.writer.fd
        for piece, offset in _joined(jobs, memory):
            write_all(fd, piece, offset)
            self._unsynced += len(piece)
        if self._unsynced >= WRITEBACK:
            end = os.lseek(fd, 0, os.SEEK_END) if self.writer.format != "raw" else stop
            self.flushing.start(self._flush, max(0, end - self._unsynced), self._unsynced)
            self._unsynced = 0

    def _flush(self, offset: int, length: int) -> None:
        """Runs beside the writing."""
        if not self.uncached:
            start_writeback(self.writer.fd, offset, length)
            return
        os.fdatasync(self.writer.fd)
        for fd in [self.writer.fd] + [layer.fd for layer in self.layers]:
            forget(fd)


class _Background:
    """One call at a time in a thread of its own. What it raises is raised by the next call, as a disk tells of an error only once."""

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[OSError] = None

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Begin a call, once the one before has ended."""
        self.join()
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., None], arguments: Tuple[Any, ...]) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self._error = error

    def join(self) -> None:
        """Wait for the call that is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def _joined(jobs: List[Tuple[int, int, int]], memory: memoryview) -> Iterator[Tuple[Any, int]]:
    """What is to be written: ``(bytes, offset)``. Short pieces that follow each other in the result come as one."""
    parts: List[memoryview] = []
    begin = end = 0
    for first, last, offset in jobs:
        if parts and (offset != end or end - begin >= _JOINED):
            yield b"".join(parts) if len(parts) > 1 else parts[0], begin
            parts = []
        if not parts:
            if last - first >= _SHORT:
                yield memory[first:last], offset
                continue
            begin = offset
        parts.append(memory[first:last])
        end = offset + last - first
    if parts:
        yield b"".join(parts) if len(parts) > 1 else parts[0], begin


def _whole_units(runs: List[Tuple[int, int]], base: int, end: int, unit: int) -> Iterator[Tuple[int, int]]:
    """The runs widened to whole units counted from ``base``, those that touch joined."""
    current = None
    for first, last in list(runs):
        first = base + (first - base) // unit * unit
        last = min(base - (base - last) // unit * unit, end)
        if current is not None and first <= current[1]:
            current = (current[0], max(last, current[1]))
            continue
        if current is not None:
            yield current
        current = (first, last)
    if current is not None:
        yield current
