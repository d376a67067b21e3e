# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chunks of the guest, made by the workers: extents gathered, read in the order in which they lie in their files, searched for zeros, deflated and
hashed while they are at hand.
"""

import os
import zlib
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from .._fingerprint import Digests, block_digests
from .._image.extent import CHUNK, COMPRESSED, DATA, ENCRYPTED, EVERYTHING, SCATTERED, SECTOR, ZERO, Extent, Layer, Partition, clip
from .._image.file_io import PIECE, expect, read_all, read_into
from .._workers import Room

HOLE = 4096
"""Bytes of the smallest hole left in a result's file; the block size of the usual filesystems."""

LONG = 256 << 10
"""Bytes of a run whose blocks are shared; sharing shorter ones takes longer than copying them."""

_GAP = 4096  # bytes between two streams (a table may lie there) that are read over

_ZEROS = bytes(1 << 21)  # one largest cluster
_get_length = itemgetter(1)
_get_offset = itemgetter(4)


class Segment(NamedTuple):
    """Whole units of the result that follow each other, and the extents inside them."""

    start: int  # first guest byte
    length: int  # guest bytes; ends early only at the end of the disk
    extents: List[Extent]


class Stored(NamedTuple):
    """Whole units that follow each other, as a worker has read them."""

    start: int  # first guest byte
    length: int
    at: int  # of the first byte in memory
    runs: List[Tuple[int, int]]  # (first, last) byte in memory of what is not zeros


class Shared(NamedTuple):
    """A long run that nobody has read."""

    start: int
    length: int
    fd: int
    offset: int


class Packed(NamedTuple):
    """One cluster of a compressed result."""

    start: int
    length: int
    at: int
    stored: int  # bytes of its stream in memory; 0 where it is stored as it is, -1 where it is zeros
    carried: int  # guest bytes whose stream was there already


Part = Union[Stored, Shared, Packed]

Chunk = Tuple[int, List[Part], Optional[Digests]]
"""Guest bytes that the extents held, what becomes of them, and the digests of the blocks, where they are known."""


class ChunkReader:
    """What the workers do for a copy: every chunk of their partition read, and told as parts to be placed.

    :param writer: of the result; only its properties are of interest here.
    :param clone_units: by descriptor the bytes in whose multiples blocks can be shared with the result; 0 where they cannot.
    :param hashed: digests are wanted as long as all bytes pass through memory.
    """

    def __init__(self, layers: Sequence[Layer], writer: Any, clone_units: Dict[int, int], hashed: bool) -> None:
        self._layers = layers
        self._writer = writer
        self._clone_units = clone_units
        self._hashed = hashed

    def make(self, extents: Iterable[Extent], partition: Partition, room: Room) -> Iterator[Tuple[int, Chunk]]:
        """``(first guest byte, chunk)`` of each chunk of a partition in which something lies; its bytes are in the memory that ``room`` gives.

        :raises QcowError: what reading the extents raises.
        """
        writer, unit = self._writer, self._writer.unit
        for layer in self._layers:
            layer.partition = partition
        for start, found in chunked(extents, partition, keep_zeros=writer.backed):
            read = length_of(found)
            parts: List[Part] = []
            if any(self._clone_units.values()):
                parts, found = self._apart(found)
            gathered = segments(found, unit, writer.virtual_size)
            # Whole units: the stream of one that the end of the disk cuts may be longer than what is left of it.
            memory = room(-(-sum(segment.length for segment in gathered) // unit) * unit)
            carried, rest = _streams_apart(gathered, writer.cluster_size) if writer.compressed else ([], gathered)
            read_segments(rest, memory)
            if parts or carried:
                self._hashed = False
            stored = [] if writer.compressed and not self._hashed else list(self._stored(gathered, memory))
            digests = None if not self._hashed else block_digests(_pieces(stored, memory))
            if writer.compressed:
                parts.extend(self._pack(gathered, carried, memory))
            else:
                parts.extend(stored)
                parts.sort()
            yield start, (read, parts, digests)

    def _apart(self, found: List[Extent]) -> Tuple[List[Part], List[Extent]]:
        """The long runs of whole units whose blocks can be shared, and all that is left."""
        unit, size = self._writer.unit, self._writer.virtual_size
        shared: List[Part] = []
        rest: List[Extent] = []
        for extent in found:
            block = self._clone_units.get(extent.layer.fd)
            if extent.kind == DATA and extent.length >= LONG and block:
                stop = extent.start + extent.length
                first = -(-extent.start // unit) * unit
                last = stop if stop == size else stop // unit * unit
                middle = clip(extent, first, last)
                if middle is not None and middle.length >= LONG and not middle.offset % block:
                    shared.append(Shared(first, last - first, extent.layer.fd, middle.offset))
                    rest.extend(piece for piece in (clip(extent, 0, first), clip(extent, last, stop)) if piece is not None)
                    continue
            rest.append(extent)
        return shared, rest

    def _stored(self, gathered: List[Segment], memory: memoryview) -> Iterator[Stored]:
        base = 0
        for segment in gathered:
            runs = list(nonzero_runs(memory, base, base + segment.length, min(self._writer.unit, HOLE)))
            yield Stored(segment.start, segment.length, base, runs)
            base += segment.length

    def _pack(self, gathered: List[Segment], carried: List[Tuple[int, Extent]], memory: memoryview) -> Iterator[Packed]:
        """The clusters of a compressed result; a stream is left where its cluster would lie."""
        cluster = self._writer.cluster_size
        ready: Dict[int, bytes] = {start: stream for start, _extent, stream in read_streams(carried)}
        base = 0
        for segment in gathered:
            for first in range(0, segment.length, cluster):
                guest, at, length = segment.start + first, base + first, min(cluster, segment.length - first)
                stream = ready.get(guest)
                if stream is None and _is_zero(memory, at, at + length):
                    yield Packed(guest, length, at, -1, 0)
                    continue
                taken_over = 0 if stream is None else length
                if stream is None:
                    stream = deflate(memory[at : at + length], cluster)
                stored = len(stream) if len(stream) < cluster else 0
                memory[at : at + stored] = stream[:stored]
                yield Packed(guest, length, at, stored, taken_over)
            base += segment.length


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


def _pieces(stored: List[Stored], memory: memoryview) -> Iterator[Tuple[int, memoryview]]:
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


def length_of(extents: List[Extent]) -> int:
    """Guest bytes that extents hold together."""
    return sum(map(_get_length, extents))


def chunked(
    extents: Iterable[Extent], partition: Partition = EVERYTHING, *, keep_zeros: bool = False
) -> Iterator[Tuple[int, List[Extent]]]:
    """``(first guest byte, extents)`` of the chunks in which something lies; extents that reach beyond are cut.

    :param partition: the chunks that are wanted.
    :param keep_zeros: zero extents matter too, because the result has a backing file.
    """
    found: List[Extent] = []
    border = 0  # end of the chunk that is being gathered
    wanted = True
    for extent in extents:
        position = extent[0]
        stop = position + extent[1]
        if extent[2] == ZERO and not keep_zeros:
            continue
        if position < border and stop <= border:  # most extents of a scattered image
            if wanted:
                found.append(extent)
            continue
        while position < stop:
            if position >= border:
                if found:
                    yield border - CHUNK, found
                    found = []
                number = position // CHUNK
                border = (number + 1) * CHUNK
                wanted = number % partition.total == partition.number
            end = min(stop, border)
            piece = clip(extent, position, end) if wanted else None
            if piece is not None:
                found.append(piece)
            position = end
    if found:
        yield border - CHUNK, found


def segments(extents: List[Extent], unit: int, size: int) -> List[Segment]:
    """The extents of a chunk gathered into segments: a unit that several extents touch is never split.

    :param unit: bytes that the result places by themselves. :param size: virtual size of the result in bytes.
    """
    if not extents:
        return []
    begin, end = extents[0][0], extents[-1][0] + extents[-1][1]
    if length_of(extents) == end - begin:  # no gaps: one segment, without a look at each
        first = begin // unit * unit
        return [Segment(first, min(-(-end // unit) * unit, size) - first, extents)]
    gathered: List[Segment] = []
    first = stop = -1
    inside: List[Extent] = []
    for extent in extents:
        end = extent[0] + extent[1]
        if end > stop:
            if extent[0] > stop:
                if inside:
                    gathered.append(Segment(first, stop - first, inside))
                first = extent[0] // unit * unit
                inside = []
            stop = min(-(-end // unit) * unit, size)
        inside.append(extent)
    if inside:
        gathered.append(Segment(first, stop - first, inside))
    return gathered


def blank(view: memoryview, start: int, stop: int) -> None:
    """Zeros in bytes [start, stop)."""
    while start < stop:
        step = min(stop - start, len(_ZEROS))
        view[start : start + step] = _ZEROS[:step]
        start += step


def read_segments(gathered: List[Segment], view: memoryview) -> None:
    """Fill ``view``, one segment behind the other, with what the guest sees: extents where there are any, zeros elsewhere.

    :raises ImageChanged: where a file ends before an extent does.
    :raises QcowError: what inflating and decrypting raise.
    """
    streams: List[Tuple[int, Extent]] = []
    base = 0
    for segment in gathered:
        _read_segment(segment, view, base, streams)
        base += segment.length
    for at, extent, stream in read_streams(streams):
        _start, length, _kind, layer, _offset, _stored, skip = extent
        data = layer.inflate(extent, stream)
        view[at : at + length] = data if length == len(data) else data[skip : skip + length]


def _read_segment(segment: Segment, view: memoryview, base: int, streams: List[Tuple[int, Extent]]) -> None:
    shift = base - segment.start
    extents = segment.extents
    if length_of(extents) < segment.length:
        position = segment.start
        for extent in extents:
            blank(view, position + shift, extent[0] + shift)
            position = extent[0] + extent[1]
        blank(view, position + shift, base + segment.length)
    scattered = [extent for extent in extents if extent[2] == SCATTERED]
    if scattered:
        _read_scattered(scattered, view, shift)
        extents = [extent for extent in extents if extent[2] != SCATTERED]
    if len(extents) > 1:
        extents = sorted(extents, key=_get_offset)
    for extent in extents:
        start, length, kind, layer, offset, _stored, _skip = extent
        at = start + shift
        if kind == DATA:
            if length >= PIECE:
                expect(layer.fd, offset + length, CHUNK)
            piece = view[at : at + length]
            if read_into(layer.fd, piece, offset) != length:
                read_all(layer, offset, piece)
        elif kind == COMPRESSED:
            streams.append((at, extent))
        elif kind == ENCRYPTED:
            first = start % SECTOR
            whole = bytearray(-(-(first + length) // SECTOR) * SECTOR)
            read_all(layer, offset - first, memoryview(whole))
            view[at : at + length] = layer.decrypt(start - first, bytes(whole))[first : first + length]
        else:
            blank(view, at, at + length)


def _read_scattered(extents: List[Any], view: memoryview, shift: int) -> None:
    """The clusters of scattered extents of one layer in the order of its file; not a line of Python runs for each, as long as all goes well."""
    layer = extents[0].layer
    cluster = layer.cluster_size
    offsets = list(chain.from_iterable(extent.offsets for extent in extents))
    places = list(chain.from_iterable(range(at, at + length, cluster) for at, length in ((e.start + shift, e.length) for e in extents)))
    order = sorted(range(len(offsets)), key=offsets.__getitem__)
    offsets, places = [list(map(column.__getitem__, order)) for column in (offsets, places)]
    pieces = map(view.__getitem__, map(slice, places, map(cluster.__add__, places)))
    if sum(map(read_into, repeat(layer.fd), pieces, offsets)) < cluster * len(order):
        for offset, at in zip(offsets, places):
            read_all(layer, offset, view[at : at + cluster])


def read_streams(streams: List[Tuple[Any, Extent]]) -> Iterator[Tuple[Any, Extent, bytes]]:
    """The bytes of compressed extents, neighbours in the file read at once; what comes with an extent is handed through."""
    first = 0
    while first < len(streams):
        layer, begin, stored = streams[first][1][3:6]
        end = begin + stored
        last = first + 1
        while last < len(streams):
            other, offset, stored = streams[last][1][3:6]
            if other is not layer or not begin <= offset <= end + _GAP or offset + stored - begin > PIECE:
                break
            end = max(end, offset + stored)
            last += 1
        raw = os.pread(layer.fd, end - begin, begin)
        for tag, extent in streams[first:last]:
            at = extent[4] - begin
            yield tag, extent, raw[at : at + extent[5]]
        first = last
