# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How bytes travel from extents into a writer. Decided here, per extent, and nowhere else.

The guest is walked in windows. A window's extents are read in the order in which they lie in their files, zero clusters are dropped, and what
remains is written in guest order, while the next window is being read.
"""

import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import ImageChanged
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import COMPRESSED, DATA, ENCRYPTED, SECTOR, ZERO, Extent, clip

WINDOW = 4 << 20
"""Guest bytes handled at a time; two windows are in memory."""

HOLE = 4096
"""Bytes of the smallest hole left in a result's file; the block size of the usual filesystems."""

_ZEROS = bytes(1 << 21)  # one largest cluster

OnProgress = Callable[[int], None]
"""Told of the guest bytes that have been dealt with since the last call; may sleep to limit the rate, may raise to stop."""


class Copied(NamedTuple):
    """What a copy amounted to, in bytes."""

    read: int  # guest bytes that the extents held
    written: int  # guest bytes that were placed in the result
    carried: int  # of those, guest bytes whose compressed streams were taken over as they are


class Segment(NamedTuple):
    """Whole clusters of the result that follow each other, and the extents inside them."""

    start: int  # first guest byte
    length: int  # guest bytes; ends early only at the end of the disk
    extents: List[Extent]


def copy_extents(extents: Iterable[Extent], writer: Any, progress: Optional[OnProgress] = None) -> Copied:
    """Copy a stream of extents into a writer and finish it. Nothing is synced.

    :param extents: in guest order, without overlaps.
    :param writer: a ``RawWriter`` or ``Qcow2Writer`` on an empty file.
    :raises QcowError: what reading the extents raises.
    :raises OSError: what writing raises.
    """
    job = _Copy(writer, progress)
    with ThreadPoolExecutor(1) as pool:
        job.run(windows(extents, writer.unit, writer.virtual_size, keep_zeros=writer.backed), pool)
    writer.finish()
    return Copied(job.read, job.written, job.carried)


def windows(extents: Iterable[Extent], cluster: int, size: int, *, keep_zeros: bool = False) -> Iterator[List[Segment]]:
    """Extents gathered into segments of whole clusters, as many as lie in one window.

    A cluster that several extents touch is never split; windows in which nothing lies do not appear.

    :param cluster: bytes in a cluster of the result.
    :param size: virtual size of the result in bytes.
    :param keep_zeros: zero extents matter too, because the result has a backing file.
    """
    width = max(WINDOW, cluster)
    gathered = []  # type: List[Segment]
    border = -1
    for whole in extents:
        if whole.kind == ZERO and not keep_zeros:
            continue
        extent = whole  # type: Optional[Extent]
        while extent is not None:
            if extent.start >= border:
                if gathered:
                    yield gathered
                gathered = []
                border = (extent.start // width + 1) * width
            piece = clip(extent, extent.start, border)
            if piece is not None:
                _gather(gathered, piece, cluster, size)
            extent = clip(extent, border, extent.start + extent.length)
    if gathered:
        yield gathered


def _gather(segments: List[Segment], extent: Extent, cluster: int, size: int) -> None:
    start = extent.start // cluster * cluster
    stop = min(-(-(extent.start + extent.length) // cluster) * cluster, size)
    if segments:
        last = segments[-1]
        end = last.start + last.length
        if start <= end:
            last.extents.append(extent)
            segments[-1] = last._replace(length=max(stop, end) - last.start)
            return
    segments.append(Segment(start, stop - start, [extent]))


class _Copy:
    def __init__(self, writer: Any, progress: Optional[OnProgress]) -> None:
        self.writer = writer
        self.progress = progress
        self.read = self.written = self.carried = 0
        self._buffers = [bytearray(max(WINDOW, writer.cluster_size)) for _turn in range(2)]
        self._pending: List[Optional[Future]] = [None, None]

    def run(self, batches: Iterator[List[Segment]], pool: ThreadPoolExecutor) -> None:
        turn = 0
        try:
            for segments in batches:
                self._wait(turn)
                used = 0
                jobs = []
                done = 0
                for segment in segments:
                    done += sum(extent.length for extent in segment.extents)
                    view = memoryview(self._buffers[turn])[used : used + segment.length]
                    used += segment.length
                    jobs.extend(self._place(segment, view))
                self.read += done
                if jobs:
                    self._pending[turn] = pool.submit(self._write, jobs)
                    turn = 1 - turn
                if self.progress is not None:
                    self.progress(done)
        finally:
            for turn in (0, 1):
                self._wait(turn)

    def _wait(self, turn: int) -> None:
        pending, self._pending[turn] = self._pending[turn], None
        if pending is not None:
            pending.result()

    def _place(self, segment: Segment, view: memoryview) -> Iterator[Tuple[Any, int]]:
        """Read a segment and find places for the clusters that are not all zeros: ``(bytes, offset in the result)``."""
        if self.writer.compressed:
            yield from self._place_streams(segment, view)
            return
        read_segment(segment, view)
        unit = self.writer.unit
        position = 0
        for start, length in nonzero_runs(view, unit):
            if self.writer.backed and start > position:
                self.writer.place_zeros(segment.start + position, start - position)
            position = start + length
            self.written += length
            for offset, piece in self.writer.place(segment.start + start, length):
                # Inside a cluster of the result, what is zero stays a hole of the file.
                for inner, size in nonzero_runs(view[start : start + piece], HOLE):
                    yield view[start + inner : start + inner + size], offset + inner
                start += piece
        if self.writer.backed and position < segment.length:
            self.writer.place_zeros(segment.start + position, segment.length - position)

    def _place_streams(self, segment: Segment, view: memoryview) -> Iterator[Tuple[Any, int]]:
        """The same for compressed results: streams of the same cluster size are carried over, everything else is deflated."""
        cluster = self.writer.cluster_size
        streams = {e.start: e for e in segment.extents if e.kind == COMPRESSED and e.length == e.layer.cluster_size == cluster}
        rest = [extent for extent in segment.extents if extent.start not in streams]
        read_segment(segment._replace(extents=rest), view)
        for start in range(0, segment.length, cluster):
            guest = segment.start + start
            carried = streams.get(guest)
            piece = view[start : start + cluster]
            if carried is not None:
                stream = os.pread(carried.layer.fd, carried.stored, carried.offset)
                self.carried += len(piece)
            elif piece == _ZEROS[: len(piece)]:
                if self.writer.backed:
                    self.writer.place_zeros(guest, len(piece))
                continue
            else:
                stream = deflate(piece, cluster)
            self.written += len(piece)
            if len(stream) < cluster:
                yield stream, self.writer.place_stream(guest, len(stream))
            else:
                for offset, _length in self.writer.place(guest, len(piece)):
                    yield piece, offset

    def _write(self, jobs: List[Tuple[Any, int]]) -> None:
        for view, offset in jobs:
            write_all(self.writer.fd, memoryview(view), offset)


def deflate(data: Any, cluster: int) -> bytes:
    """The raw DEFLATE stream of one cluster as QEMU writes it (4 KiB window), padded with zeros at the end of the disk."""
    compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9)
    return compressor.compress(data) + compressor.compress(bytes(cluster - len(data))) + compressor.flush()


def nonzero_runs(view: memoryview, cluster: int) -> Iterator[Tuple[int, int]]:
    """``(start, length)`` in bytes of the runs of clusters in ``view`` that hold anything but zeros; the last cluster may be short."""
    start = -1
    size = len(view)
    for position in range(0, size, cluster):
        piece = view[position : position + cluster]
        if piece == _ZEROS[: len(piece)]:
            if start >= 0:
                yield start, position - start
                start = -1
        elif start < 0:
            start = position
    if start >= 0:
        yield start, size - start


def read_segment(segment: Segment, view: memoryview) -> None:
    """Fill ``view`` (as long as the segment) with what the guest sees there: extents where there are any, zeros elsewhere."""
    position = segment.start
    for extent in segment.extents:
        if extent.start > position:
            _blank(view[position - segment.start : extent.start - segment.start])
        position = extent.start + extent.length
    end = segment.start + segment.length
    if position < end:
        _blank(view[position - segment.start :])
    in_file_order = segment.extents if len(segment.extents) == 1 else sorted(segment.extents, key=_place_in_file)
    for extent in in_file_order:
        begin = extent.start - segment.start
        read_extent(extent, view[begin : begin + extent.length])


def _place_in_file(extent: Extent) -> Tuple[int, int]:
    return extent.layer.fd, extent.offset


def _blank(view: memoryview) -> None:
    for position in range(0, len(view), len(_ZEROS)):
        piece = view[position : position + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]


def read_extent(extent: Extent, view: memoryview) -> None:
    """Fill ``view`` (``extent.length`` bytes) with the guest bytes of one extent.

    :raises ImageChanged: where the file ends before the extent does.
    """
    layer = extent.layer
    if extent.kind == DATA:
        read_all(layer, extent.offset, view)
    elif extent.kind == COMPRESSED:
        view[:] = layer.inflate(extent)[extent.skip : extent.skip + extent.length]
    elif extent.kind == ENCRYPTED:
        first = extent.start % SECTOR
        whole = bytearray(-(-(first + extent.length) // SECTOR) * SECTOR)
        read_all(layer, extent.offset - first, memoryview(whole))
        view[:] = layer.decrypt(extent.start - first, bytes(whole))[first : first + extent.length]
    else:
        _blank(view)


if hasattr(os, "preadv"):

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

else:  # Python 3.6

    def _read_into(fd: int, view: memoryview, offset: int) -> int:
        data = os.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)


def read_all(layer: Any, offset: int, view: memoryview) -> None:
    """Fill ``view`` from byte ``offset`` of a layer's file.

    :raises ImageChanged: where the file has become shorter than it was when it was opened.
    """
    done = _read_into(layer.fd, view, offset)
    while done < len(view):
        count = _read_into(layer.fd, view[done:], offset + done)
        if not count:
            raise ImageChanged("the file ends at byte {0} while it is being read".format(offset + done), layer.path, hint="Nothing was published.")
        done += count


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Write the whole of ``view`` at byte ``offset``."""
    done = os.pwrite(fd, view, offset)
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
