# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How bytes travel from extents into a writer. Decided here, per extent, and nowhere else.

* A long run of stored bytes shares its blocks with the source where the filesystem can do that (XFS, Btrfs, ...). Zeros in it are shared too:
  they take no space that the source does not take already, and finding them would mean reading everything.
* Anything else is read stretch by stretch, in the order in which it lies in the file, by a crew of processes, and written by this one. Units of
  zeros are dropped, and zeros inside a unit stay holes of the file.
* Where the result is compressed, streams of its cluster size are carried over as they are; the rest is deflated by the crew.
* Where a fingerprint is wanted and every byte passes through, the crew hashes what it has read while it is at hand.
"""

import os
import threading
import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from .._fingerprint import Digests, Fingerprint, block_digests
from .._image.extent import COMPRESSED, DATA, STRETCH, Extent, Layer, Share, clip
from .._image.file_io import clone_range, clone_unit, copy_all, forget, start_writeback, write_all
from .crew import Crew, Room
from .segments import Segment, length_of, read_segments, read_streams, segments, stretches

HOLE = 4096
"""Bytes of the smallest hole left in a result's file; the block size of the usual filesystems."""

WRITEBACK = 32 << 20
"""Bytes written after which the kernel is asked to bring them to the disk, or, for a copy that is not to fill its cache, made to."""

_LONG = 256 << 10  # bytes of a run whose blocks are shared; sharing shorter ones takes longer than copying them
_ZEROS = bytes(1 << 21)  # one largest cluster
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


class _Stored(NamedTuple):
    """Whole units that follow each other, as a process of the crew has read them."""

    start: int  # first guest byte
    length: int
    at: int  # of the first byte in memory
    runs: List[Tuple[int, int]]  # (first, last) byte in memory of what is not zeros


class _Shared(NamedTuple):
    """A long run that nobody has read."""

    start: int
    length: int
    fd: int
    offset: int


class _Packed(NamedTuple):
    """One cluster of a compressed result."""

    start: int
    length: int
    at: int
    stored: int  # bytes of its stream in memory; 0 where it is stored as it is, -1 where it is zeros
    carried: int  # guest bytes whose stream was there already


_Part = Union[_Stored, _Shared, _Packed]

_Stretch = Tuple[int, List[_Part], Optional[Digests]]
"""Guest bytes that the extents held, what becomes of them, and the digests of the blocks, where they are known."""


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

    :param extents: in guest order, without overlaps; begun by each process of the crew for itself.
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
        # Here: of all that has come so far; in a process of the crew: whether to go on hashing.
        self.proof = Fingerprint(writer.virtual_size) if hashed else None
        self.flushing = _Background()
        self._unsynced = 0
        self._clone_units: Dict[int, int] = {}  # descriptor: what clone_unit says
        if not writer.compressed:
            self._clone_units = {layer.fd: clone_unit(layer.fd, writer.fd) for layer in layers if layer.held() >= _LONG}

    def run(self, extents: Iterable[Extent]) -> None:
        def produce(turn: int, turns: int, room: Room) -> Iterator[Tuple[int, _Stretch]]:
            return self._produce(extents, Share(turn, turns), room)

        with Crew(produce, STRETCH, sum(layer.held() for layer in self.layers)) as crew:
            for start, (read, parts, digests), memory in crew:
                if digests is None:
                    self.proof = None
                elif self.proof is not None:
                    self.proof.add(digests)
                jobs: List[Tuple[int, int, int]] = []
                for part in parts:
                    if isinstance(part, _Stored):
                        self._place(part, jobs)
                    elif isinstance(part, _Packed):
                        self._place_packed(part, jobs)
                    else:
                        self._share(part)
                self._write(memory, jobs, start + STRETCH)
                self.read += read
                if self.progress is not None:
                    self.progress(read)

    # ---- in the processes of the crew ----

    def _produce(self, extents: Iterable[Extent], share: Share, room: Room) -> Iterator[Tuple[int, _Stretch]]:
        writer, unit = self.writer, self.writer.unit
        for layer in self.layers:
            layer.share = share
        for start, found in stretches(extents, share, keep_zeros=writer.backed):
            read = length_of(found)
            parts: List[_Part] = []
            if any(self._clone_units.values()):
                parts, found = self._apart(found)
            gathered = segments(found, unit, writer.virtual_size)
            # Whole units: the stream of one that the end of the disk cuts may be longer than what is left of it.
            memory = room(-(-sum(segment.length for segment in gathered) // unit) * unit)
            carried, rest = _streams_apart(gathered, writer.cluster_size) if writer.compressed else ([], gathered)
            read_segments(rest, memory)
            if parts or carried:
                self.proof = None
            stored = [] if writer.compressed and self.proof is None else list(self._stored(gathered, memory))
            digests = None if self.proof is None else block_digests(_pieces(stored, memory))
            if writer.compressed:
                parts.extend(self._pack(gathered, carried, memory))
            else:
                parts.extend(stored)
                parts.sort()
            yield start, (read, parts, digests)

    def _apart(self, found: List[Extent]) -> Tuple[List[_Part], List[Extent]]:
        """The long runs of whole units whose blocks can be shared, and all that is left."""
        unit, size = self.writer.unit, self.writer.virtual_size
        shared: List[_Part] = []
        rest: List[Extent] = []
        for extent in found:
            block = self._clone_units.get(extent.layer.fd)
            if extent.kind == DATA and extent.length >= _LONG and block:
                stop = extent.start + extent.length
                first = -(-extent.start // unit) * unit
                last = stop if stop == size else stop // unit * unit
                middle = clip(extent, first, last)
                if middle is not None and middle.length >= _LONG and not middle.offset % block:
                    shared.append(_Shared(first, last - first, extent.layer.fd, middle.offset))
                    rest.extend(piece for piece in (clip(extent, 0, first), clip(extent, last, stop)) if piece is not None)
                    continue
            rest.append(extent)
        return shared, rest

    def _stored(self, gathered: List[Segment], memory: memoryview) -> Iterator[_Stored]:
        base = 0
        for segment in gathered:
            runs = list(nonzero_runs(memory, base, base + segment.length, min(self.writer.unit, HOLE)))
            yield _Stored(segment.start, segment.length, base, runs)
            base += segment.length

    def _pack(self, gathered: List[Segment], carried: List[Tuple[int, Extent]], memory: memoryview) -> Iterator[_Packed]:
        """The clusters of a compressed result; a stream is left where its cluster would lie."""
        cluster = self.writer.cluster_size
        ready: Dict[int, bytes] = {start: stream for start, _extent, stream in read_streams(carried)}
        base = 0
        for segment in gathered:
            for first in range(0, segment.length, cluster):
                guest, at, length = segment.start + first, base + first, min(cluster, segment.length - first)
                stream = ready.get(guest)
                if stream is None and _is_zero(memory, at, at + length):
                    yield _Packed(guest, length, at, -1, 0)
                    continue
                taken_over = 0 if stream is None else length
                if stream is None:
                    stream = deflate(memory[at : at + length], cluster)
                stored = len(stream) if len(stream) < cluster else 0
                memory[at : at + stored] = stream[:stored]
                yield _Packed(guest, length, at, stored, taken_over)
            base += segment.length

    # ---- here ----

    def _place(self, part: _Stored, jobs: List[Tuple[int, int, int]]) -> None:
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

    def _place_packed(self, part: _Packed, jobs: List[Tuple[int, int, int]]) -> None:
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

    def _share(self, part: _Shared) -> None:
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


def _streams_apart(gathered: List[Segment], cluster: int) -> Tuple[List[Tuple[int, Extent]], List[Segment]]:
    """The compressed extents whose streams are whole clusters of the result, by their first guest bytes, and the segments without them."""
    streams: List[Tuple[int, Extent]] = []
    rest = []
    for segment in gathered:
        there = [(e.start, e) for e in segment.extents if e.kind == COMPRESSED and e.length == e.layer.cluster_size == cluster]
        streams.extend(there)
        starts = {start for start, _extent in there}
        rest.append(segment._replace(extents=[e for e in segment.extents if e.start not in starts]) if starts else segment)
    return streams, rest


def _pieces(stored: List[_Stored], memory: memoryview) -> Iterator[Tuple[int, memoryview]]:
    """``(first guest byte, bytes)`` of what is not zeros."""
    for part in stored:
        for first, last in part.runs:
            yield part.start + first - part.at, memory[first:last]


def deflate(data: Any, cluster: int) -> bytes:
    """The raw DEFLATE stream of one cluster as QEMU writes it (4 KiB window), padded with zeros at the end of the disk."""
    compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9)
    return compressor.compress(data) + compressor.compress(bytes(cluster - len(data))) + compressor.flush()


def _is_zero(view: memoryview, start: int, stop: int) -> bool:
    return not view[start] and view[start:stop].tobytes() == _ZEROS[: stop - start]


def nonzero_runs(view: memoryview, begin: int, end: int, unit: int) -> Iterator[Tuple[int, int]]:
    """``(start, stop)`` of the runs of units in ``view[begin:end]`` that hold anything but zeros; the last unit may be short."""
    heads = view[begin:end:unit].tobytes()  # a unit whose first byte is not zero needs no further look
    zeros = _ZEROS[:unit]
    start = begin
    candidate = heads.find(0)
    while candidate >= 0:
        position = begin + candidate * unit
        stop = min(position + unit, end)
        if view[position:stop].tobytes() == (zeros if stop - position == unit else zeros[: stop - position]):
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
