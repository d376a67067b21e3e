# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Extents gathered into stretches of the guest, and a stretch's bytes read in the order in which they lie in their files."""

import os
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Iterable, Iterator, List, NamedTuple, Tuple

from .._image.extent import COMPRESSED, DATA, ENCRYPTED, EVERYTHING, SCATTERED, SECTOR, STRETCH, ZERO, Extent, Share, clip
from .._image.file_io import PIECE, expect, read_all, read_into

_GAP = 4096  # bytes between two streams (a table may lie there) that are read over

_ZEROS = bytes(1 << 21)  # one largest cluster
_get_length = itemgetter(1)
_get_offset = itemgetter(4)


class Segment(NamedTuple):
    """Whole units of the result that follow each other, and the extents inside them."""

    start: int  # first guest byte
    length: int  # guest bytes; ends early only at the end of the disk
    extents: List[Extent]


def length_of(extents: List[Extent]) -> int:
    """Guest bytes that extents hold together."""
    return sum(map(_get_length, extents))


def stretches(extents: Iterable[Extent], share: Share = EVERYTHING, *, keep_zeros: bool = False) -> Iterator[Tuple[int, List[Extent]]]:
    """``(first guest byte, extents)`` of the stretches in which something lies; extents that reach beyond are cut.

    :param share: the stretches that are wanted.
    :param keep_zeros: zero extents matter too, because the result has a backing file.
    """
    found: List[Extent] = []
    border = 0  # end of the stretch that is being gathered
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
                    yield border - STRETCH, found
                    found = []
                number = position // STRETCH
                border = (number + 1) * STRETCH
                wanted = number % share.turns == share.turn
            end = min(stop, border)
            piece = clip(extent, position, end) if wanted else None
            if piece is not None:
                found.append(piece)
            position = end
    if found:
        yield border - STRETCH, found


def segments(extents: List[Extent], unit: int, size: int) -> List[Segment]:
    """The extents of a stretch gathered into segments: a unit that several extents touch is never split.

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
                expect(layer.fd, offset + length, STRETCH)
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
