# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How bytes travel from extents into a writer. Decided here, per extent, and nowhere else.

* A long run of stored bytes shares its blocks with the source where the filesystem can do that (XFS, Btrfs, ...). Zeros in it are shared too:
  they take no space that the source does not take already, and finding them would mean reading everything.
* Anything else is read window by window, in the order in which it lies in the file, by one thread and written by another. Units of zeros are
  dropped, and zeros inside a unit stay holes of the file.
* Where the result is compressed, streams of its cluster size are carried over as they are; the rest is deflated by as many threads as there are
  processors.
"""

import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import COMPRESSED, DATA, Extent, clip
from ansible_collections.vmimage.qcow.plugins.module_utils.image.gather import (
    FRAGMENTED_WINDOW,
    LONG,
    WINDOW,
    Segment,
    read_streams,
    read_window,
    windows,
)
from ansible_collections.vmimage.qcow.plugins.module_utils.image.transport import (
    clone_range,
    clone_unit,
    expect,
    forget,
    start_writeback,
    write_all,
)

HOLE = 4096
"""Bytes of the smallest hole left in a result's file; the block size of the usual filesystems."""

WRITEBACK = 32 << 20
"""Bytes written after which the kernel is asked to bring them to the disk, or, for a copy that is not to fill its cache, made to."""

_ZEROS = bytes(1 << 21)  # one largest cluster
_JOINED = 1 << 20  # bytes of small pieces written at a time

OnProgress = Callable[[int], None]
"""Told of the guest bytes that have been dealt with since the last call; may sleep to limit the rate, may raise to stop."""


class Copied(NamedTuple):
    """What a copy amounted to, in bytes."""

    read: int  # guest bytes that the extents held
    written: int  # guest bytes that were placed in the result
    carried: int  # of those, guest bytes whose compressed streams were taken over as they are
    shared: int = 0  # of those, guest bytes whose blocks the result shares with its source


def copy_extents(extents: Iterable[Extent], writer: Any, progress: Optional[OnProgress] = None, *, uncached: bool = False) -> Copied:
    """Copy a stream of extents into a writer and finish it. Nothing is synced.

    :param extents: in guest order, without overlaps.
    :param writer: a ``RawWriter`` or ``Qcow2Writer`` on an empty file.
    :param uncached: leave neither source nor result in the page cache, so that what others need stays there.
    :raises QcowError: what reading the extents raises.
    :raises OSError: what writing raises.
    """
    job = _Copy(writer, progress, uncached)
    try:
        job.run(extents)
    finally:
        job.close()
    writer.finish()
    return Copied(job.read, job.written, job.carried, job.shared)


class _Copy:
    def __init__(self, writer: Any, progress: Optional[OnProgress], uncached: bool) -> None:
        self.writer = writer
        self.progress = progress
        self.uncached = uncached
        self.read = self.written = self.carried = self.shared = 0
        self._clone_units: Dict[int, int] = {}  # descriptor: what clone_unit says
        self._sources: Set[int] = set()  # descriptors read from
        self._buffers = [bytearray(), bytearray()]
        self._pending: List[Optional[Future]] = [None, None]
        self._flushing: Optional[Future] = None
        self._turn = 0
        self._unsynced = 0
        # Threads start when they get their first work: a small image never pays for them.
        self._write_thread = ThreadPoolExecutor(1)
        self._helpers = ThreadPoolExecutor(os.cpu_count() or 1)

    def run(self, extents: Iterable[Extent]) -> None:
        writer = self.writer
        long = (1 << 62) if writer.compressed else LONG
        for segments in windows(extents, writer.unit, writer.virtual_size, keep_zeros=writer.backed, long=long):
            first = segments[0]
            if first.length >= long and first.extents[0].kind == DATA and first.extents[0].length == first.length:
                self._long(first)
            else:
                self._window(segments)
        self._settle()

    def close(self) -> None:
        for pool in (self._write_thread, self._helpers):
            pool.shutdown()

    def _long(self, segment: Segment) -> None:
        """A run of whole units that lie together in the file."""
        extent = segment.extents[0]
        fd = extent.layer.fd
        unit = self._clone_units.get(fd)
        if unit is None:
            self._settle()
            unit = self._clone_units[fd] = clone_unit(fd, self.writer.fd)
        if unit and not extent.offset % unit:
            self._share(segment, extent, unit)
            return
        width = max(WINDOW, self.writer.unit)
        for start in range(segment.start, segment.start + segment.length, width):
            length = min(width, segment.start + segment.length - start)
            piece = clip(extent, start, start + length)
            if piece is not None:
                expect(fd, piece.offset + length, 4 * WINDOW)
                self._window([Segment(start, length, [piece])])

    def _share(self, segment: Segment, extent: Extent, unit: int) -> None:
        source = extent.offset
        for offset, length in self.writer.place(segment.start, segment.length):
            whole = 0 if offset % unit or source % unit else length // unit * unit
            if whole and not clone_range(extent.layer.fd, source, whole, self.writer.fd, offset):
                whole = 0
            self.shared += whole
            self._copy_range(extent, source + whole, length - whole, offset + whole)
            source += length
        self.read += segment.length
        self.written += segment.length
        if self.progress is not None:
            self.progress(segment.length)

    def _copy_range(self, extent: Extent, source: int, length: int, offset: int) -> None:
        """The rest of a run that could not be shared after all."""
        while length:
            piece = extent._replace(offset=source, stored=min(length, WINDOW), length=min(length, WINDOW), start=0)
            buffer = bytearray(piece.length)
            read_window([Segment(0, piece.length, [piece])], buffer)
            write_all(self.writer.fd, buffer, offset)
            source, offset, length = source + piece.length, offset + piece.length, length - piece.length

    def _window(self, segments: List[Segment]) -> None:
        self._wait(self._turn)
        size = sum(segment.length for segment in segments)
        buffer = self._buffers[self._turn]
        if len(buffer) < size:
            steps = [
                step for step in (WINDOW >> 4, WINDOW, FRAGMENTED_WINDOW) if step >= size
            ]  # a small image never pays for a large buffer
            buffer = self._buffers[self._turn] = bytearray(steps[0] if steps else size)
        done = sum(extent.length for segment in segments for extent in segment.extents)
        if self.uncached:
            self._sources.update(segment.extents[0].layer.fd for segment in segments)
        place = self._place_streams if self.writer.compressed else self._place
        jobs = place(segments, buffer)
        self.read += done
        if jobs and size <= WINDOW >> 2:
            for turn in (0, 1):
                self._wait(turn)
            self._write(buffer, jobs, segments)  # done before a thread has woken up
        elif jobs:
            self._pending[self._turn] = self._write_thread.submit(self._write, buffer, jobs, segments)
            self._turn = 1 - self._turn
        if self.progress is not None:
            self.progress(done)

    def _wait(self, turn: int) -> None:
        pending, self._pending[turn] = self._pending[turn], None
        if pending is not None:
            pending.result()

    def _settle(self) -> None:
        for turn in (0, 1):
            self._wait(turn)
        if self._flushing is not None:
            self._flushing.result()

    def _place(self, segments: List[Segment], buffer: bytearray) -> List[Tuple[Any, int]]:
        """Read segments and find places for the units that are not all zeros: ``((start, stop) in the buffer, offset in the result)``."""
        read_window(segments, buffer, self._helpers)
        writer, unit = self.writer, self.writer.unit
        jobs: List[Tuple[Any, int]] = []
        base = 0
        for segment in segments:
            shift = base - segment.start
            runs = list(nonzero_runs(buffer, base, base + segment.length, min(unit, HOLE)))
            position = base
            for start, stop in _whole_units(runs, base, base + segment.length, unit):
                if writer.backed and start > position:
                    writer.place_zeros(position - shift, start - position)
                position = stop
                self.written += stop - start
                for offset, length in writer.place(start - shift, stop - start):
                    # Inside a unit of the result, what is zero stays a hole of the file.
                    end = start + length
                    while runs and runs[0][0] < end:
                        first, last = runs[0]
                        jobs.append(((first, min(last, end)), offset + first - start))
                        if last > end:
                            runs[0] = (end, last)
                            break
                        del runs[0]
                    start = end
            base += segment.length
            if writer.backed and position < base:
                writer.place_zeros(position - shift, base - position)
        return jobs

    def _place_streams(self, segments: List[Segment], buffer: bytearray) -> List[Tuple[Any, int]]:
        """The same for compressed results: ``(bytes, offset in the result)``."""
        cluster, writer = self.writer.cluster_size, self.writer
        kept: List[Tuple[int, Extent]] = []
        rest = []
        for segment in segments:
            carried = [(e.start, e) for e in segment.extents if e.kind == COMPRESSED and e.length == e.layer.cluster_size == cluster]
            kept.extend(carried)
            starts = {start for start, _extent in carried}
            rest.append(segment._replace(extents=[e for e in segment.extents if e.start not in starts]) if starts else segment)
        ready: Dict[int, Any] = {start: stream for start, _extent, stream in read_streams(kept)}
        self.carried += sum(extent.length for _start, extent in kept)
        read_window(rest, buffer, self._helpers)
        pieces = []
        base = 0
        for segment in segments:
            for start in range(0, segment.length, cluster):
                pieces.append((segment.start + start, base + start, base + min(start + cluster, segment.length)))
            base += segment.length
        raw = [piece for piece in pieces if piece[0] not in ready and not _is_zero(buffer, piece[1], piece[2])]
        for (guest, first, last), stream in zip(raw, self._deflate_all([buffer[first:last] for _guest, first, last in raw], cluster)):
            ready[guest] = stream if len(stream) < cluster else buffer[first:last]
        jobs: List[Tuple[Any, int]] = []
        for guest, first, last in pieces:
            found = ready.get(guest)
            if found is None:
                if writer.backed:
                    writer.place_zeros(guest, last - first)
                continue
            self.written += last - first
            if len(found) < cluster and not isinstance(found, bytearray):
                jobs.append((found, writer.place_stream(guest, len(found))))
            else:
                jobs.extend((found, offset) for offset, _length in writer.place(guest, last - first))
        return jobs

    def _deflate_all(self, pieces: List[bytearray], cluster: int) -> Iterable[bytes]:
        if len(pieces) < 2:
            return [deflate(piece, cluster) for piece in pieces]
        step = max(1, WINDOW // 8 // cluster)
        batches = [pieces[first : first + step] for first in range(0, len(pieces), step)]
        return [
            stream
            for streams in self._helpers.map(lambda batch: [deflate(piece, cluster) for piece in batch], batches)
            for stream in streams
        ]

    def _write(self, buffer: bytearray, jobs: List[Tuple[Any, int]], segments: List[Segment]) -> None:
        """Runs in the writing thread."""
        fd = self.writer.fd
        written = 0
        with memoryview(buffer) as view:
            for data, offset in _joined(jobs):
                piece = view[data[0] : data[1]] if isinstance(data, tuple) else data
                write_all(fd, piece, offset)
                written += len(piece)
        self._unsynced += written
        if self._unsynced >= WRITEBACK:
            end = os.lseek(fd, 0, os.SEEK_END) if self.writer.format != "raw" else segments[-1].start + segments[-1].length
            if self._flushing is not None:
                self._flushing.result()  # an error of the disk is told once only: to us
            self._flushing = self._helpers.submit(self._flush, max(0, end - self._unsynced), self._unsynced)
            self._unsynced = 0

    def _flush(self, offset: int, length: int) -> None:
        """Runs in a helper thread, beside the writing."""
        if not self.uncached:
            start_writeback(self.writer.fd, offset, length)
            return
        os.fdatasync(self.writer.fd)
        for fd in [self.writer.fd, *self._sources]:
            forget(fd)


def _joined(jobs: List[Tuple[Any, int]]) -> Iterator[Tuple[Any, int]]:
    """Small pieces that follow each other in the result, as one."""
    parts: List[bytes] = []
    begin = end = 0
    for data, offset in jobs:
        if parts and (offset != end or isinstance(data, tuple) or end - begin > _JOINED):
            yield b"".join(parts), begin
            parts = []
        if isinstance(data, tuple):
            yield data, offset
            continue
        if not parts:
            begin = offset
        parts.append(data)
        end = offset + len(data)
    if parts:
        yield b"".join(parts), begin


def deflate(data: Any, cluster: int) -> bytes:
    """The raw DEFLATE stream of one cluster as QEMU writes it (4 KiB window), padded with zeros at the end of the disk."""
    compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9)
    return compressor.compress(data) + compressor.compress(bytes(cluster - len(data))) + compressor.flush()


def _is_zero(buffer: bytearray, start: int, stop: int) -> bool:
    # Compares in place, and stops at the first byte that differs.
    return buffer.startswith(_ZEROS[: stop - start], start)


def nonzero_runs(buffer: bytearray, begin: int, end: int, unit: int) -> Iterator[Tuple[int, int]]:
    """``(start, stop)`` of the runs of units in ``buffer[begin:end]`` that hold anything but zeros; the last unit may be short."""
    heads = buffer[begin:end:unit]  # a unit whose first byte is not zero needs no further look
    zeros = _ZEROS[:unit]
    start = begin
    candidate = heads.find(0)
    while candidate >= 0:
        position = begin + candidate * unit
        stop = min(position + unit, end)
        if buffer.startswith(zeros if stop - position == unit else zeros[: stop - position], position):
            if start < position:
                yield start, position
            start = stop
        candidate = heads.find(0, candidate + 1)
    if start < end:
        yield start, end


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
