# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Extents gathered into windows of the guest, and a window's bytes read in the order in which they lie in their files."""

import os
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import COMPRESSED, DATA, ENCRYPTED, SECTOR, ZERO, Extent, clip
from ansible_collections.vmimage.qcow.plugins.module_utils.image.transport import read_all

WINDOW = 1 << 20
"""Guest bytes handled at a time. Small enough to stay in a core's cache between reading and writing: larger ones were slower."""

FRAGMENTED_WINDOW = 8 << 20
"""The same where the window is full of small extents: the more there are, the better their reads follow the file."""

_FRAGMENTS = 64  # extents in a window that make it a fragmented one

LONG = 256 << 10
"""Bytes of a run that is handled by itself. Sharing the blocks of shorter ones takes longer than copying them."""

_GAP = 4096  # bytes between two streams (a table may lie there) that are read over
_STRETCH = 1 << 20  # bytes of streams read at a time
_FEW = 8  # streams that are not worth a second thread

_ZEROS = bytes(1 << 21)  # one largest cluster
_length_of = itemgetter(1)
_offset_of = itemgetter(4)


class Segment(NamedTuple):
    """Whole units of the result that follow each other, and the extents inside them."""

    start: int  # first guest byte
    length: int  # guest bytes; ends early only at the end of the disk
    extents: List[Extent]


def windows(extents: Iterable[Extent], unit: int, size: int, *, keep_zeros: bool = False, long: int = LONG) -> Iterator[List[Segment]]:
    """Extents gathered into segments of whole units, as many as lie in one window.

    A unit that several extents touch is never split; windows in which nothing lies do not appear. The whole units of a data extent of at
    least ``long`` bytes come as one window with one segment, however long; only such a window is longer than ``FRAGMENTED_WINDOW``.

    :param unit: bytes that the result places by themselves.
    :param size: virtual size of the result in bytes.
    :param keep_zeros: zero extents matter too, because the result has a backing file.
    """
    width = max(WINDOW, unit)
    gathered = _Window(unit, size)
    border = limit = enough = -1
    for extent in extents:
        start, length, kind, _layer, _offset, _stored, _skip = extent
        if kind == ZERO and not keep_zeros:
            continue
        stop = start + length
        if stop <= gathered.stop:  # most extents of a scattered image
            gathered.extents.append(extent)
            continue
        if start >= border:
            if start < limit and start < border + width and gathered.count() >= enough:
                border += width
                enough += _FRAGMENTS
            else:
                if gathered.segments:
                    yield gathered.take()
                border = (start // width + 1) * width
                limit = border - width + FRAGMENTED_WINDOW
                enough = _FRAGMENTS
        if length < long and stop <= border:
            gathered.add(extent, start, stop)
            continue
        for piece, alone in _pieces(extent, unit, size, width, long):
            if piece.start >= border or alone:
                if gathered.segments:
                    yield gathered.take()
                border = (piece.start // width + 1) * width
                limit = border - width + FRAGMENTED_WINDOW
                enough = _FRAGMENTS
            gathered.add(piece, piece.start, piece.start + piece.length)
            if alone:
                yield gathered.take()
                border = limit = piece.start + piece.length
    if gathered.segments:
        yield gathered.take()


def _pieces(extent: Extent, unit: int, size: int, width: int, long: int) -> Iterator[Tuple[Extent, bool]]:
    """An extent's long middle of whole units, which is to be alone in its window, and the rest of it cut at the borders of windows."""
    stop = extent.start + extent.length
    first = -(-extent.start // unit) * unit
    last = stop if stop == size else stop // unit * unit
    middle = clip(extent, first, last) if extent.kind == DATA and last - first >= long else None
    for begin, end in ((extent.start, stop),) if middle is None else ((extent.start, first), (last, stop)):
        if middle is not None and begin == last:
            yield middle, True
        while begin < end:
            border = min((begin // width + 1) * width, end)
            piece = clip(extent, begin, border)
            if piece is not None:
                yield piece, False
            begin = border


class _Window:
    """The segments of one window while they are being gathered."""

    def __init__(self, unit: int, size: int) -> None:
        self.segments: List[Segment] = []
        self.stop = -1  # end of the last segment
        self.extents: List[Extent] = []  # those of the last segment
        self._unit = unit
        self._size = size

    def add(self, extent: Extent, start: int, stop: int) -> None:
        if start <= self.stop:
            self.extents.append(extent)
            if stop <= self.stop:
                return
        else:
            self._close()
            self.extents = [extent]
            self.segments.append(Segment(start // self._unit * self._unit, 0, self.extents))
        self.stop = min(-(-stop // self._unit) * self._unit, self._size)

    def count(self) -> int:
        """Extents in it."""
        return sum(len(segment.extents) for segment in self.segments)

    def _close(self) -> None:
        if self.segments:
            last = self.segments[-1]
            self.segments[-1] = last._replace(length=self.stop - last.start)

    def take(self) -> List[Segment]:
        """What has been gathered; the next window begins."""
        self._close()
        segments = self.segments
        self.segments = []
        self.stop = -1
        return segments


def blank(buffer: bytearray, start: int, stop: int) -> None:
    """Zeros in bytes [start, stop)."""
    while start < stop:
        step = min(stop - start, len(_ZEROS))
        buffer[start : start + step] = _ZEROS[:step]
        start += step


def read_window(segments: List[Segment], buffer: bytearray, helpers: Optional[ThreadPoolExecutor] = None) -> None:
    """Fill ``buffer``, one segment behind the other, with what the guest sees: extents where there are any, zeros elsewhere.

    :param helpers: threads that share the inflating.
    :raises ImageChanged: where a file ends before an extent does.
    :raises QcowError: what inflating and decrypting raise.
    """
    streams: List[Tuple[int, Extent]] = []
    base = 0
    with memoryview(buffer) as view:
        for segment in segments:
            _read_segment(segment, buffer, view, base, streams)
            base += segment.length
        if streams:
            inflate_streams(streams, view, helpers)


def _read_segment(segment: Segment, buffer: bytearray, view: memoryview, base: int, streams: List[Tuple[int, Extent]]) -> None:
    shift = base - segment.start
    extents = segment.extents
    if sum(map(_length_of, extents)) < segment.length:
        position = segment.start
        for extent in extents:
            blank(buffer, position + shift, extent[0] + shift)
            position = extent[0] + extent[1]
        blank(buffer, position + shift, base + segment.length)
    if len(extents) > 1:
        extents = sorted(extents, key=_offset_of)
    for extent in extents:
        start, length, kind, layer, offset, _stored, _skip = extent
        at = start + shift
        if kind == DATA:
            read_all(layer, offset, view[at : at + length])
        elif kind == COMPRESSED:
            streams.append((at, extent))
        elif kind == ENCRYPTED:
            first = start % SECTOR
            whole = bytearray(-(-(first + length) // SECTOR) * SECTOR)
            read_all(layer, offset - first, memoryview(whole))
            view[at : at + length] = layer.decrypt(start - first, bytes(whole))[first : first + length]
        else:
            blank(buffer, at, at + length)


def inflate_streams(streams: List[Tuple[int, Extent]], view: memoryview, helpers: Optional[ThreadPoolExecutor]) -> None:
    """Inflate compressed extents to their places ``(position in view, extent)``."""
    if len(streams) <= _FEW or helpers is None:
        _inflate(streams, view)
        return
    half = len(streams) // 2
    other = helpers.submit(_inflate, streams[half:], view)
    try:
        _inflate(streams[:half], view)
    finally:
        error = other.exception()  # waits: nobody may write into the buffer after we have left
    if error is not None:
        raise error


def _inflate(streams: List[Tuple[int, Extent]], view: memoryview) -> None:
    for at, extent, stream in read_streams(streams):
        _start, length, _kind, layer, _offset, _stored, skip = extent
        data = layer.inflate(extent, stream)
        view[at : at + length] = data if length == len(data) else data[skip : skip + length]


def read_streams(streams: List[Tuple[Any, Extent]]) -> Iterator[Tuple[Any, Extent, bytes]]:
    """The bytes of compressed extents, neighbours in the file read at once; what comes with an extent is handed through."""
    first = 0
    while first < len(streams):
        layer, begin, stored = streams[first][1][3:6]
        end = begin + stored
        last = first + 1
        while last < len(streams):
            other, offset, stored = streams[last][1][3:6]
            if other is not layer or not begin <= offset <= end + _GAP or offset + stored - begin > _STRETCH:
                break
            end = max(end, offset + stored)
            last += 1
        raw = os.pread(layer.fd, end - begin, begin)
        for tag, extent in streams[first:last]:
            at = extent[4] - begin
            yield tag, extent, raw[at : at + extent[5]]
        first = last
