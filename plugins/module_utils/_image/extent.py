# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one idea: an image is a list of extents.

Whatever its format, an image answers one question: what does the guest see, from where to where, and where do the bytes lie?
The answer is a stream of :class:`Extent` in guest order. Where the stream is silent, the backing file is asked; where there is none,
the guest reads zeros.
"""

import os
import stat
from array import array
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple

DATA = "data"
"""The guest bytes lie in the layer's file as they are."""

ZERO = "zero"
"""The guest reads zeros here whatever lies below."""

COMPRESSED = "compressed"
"""A raw DEFLATE stream that inflates to one cluster of the layer."""

ENCRYPTED = "encrypted"
"""The guest bytes lie in the layer's file, each 512-byte sector encrypted with the layer's key."""

SCATTERED = "scattered"
"""Whole clusters that follow each other in the guest and lie anywhere in the layer's file: a :class:`Scattered` says where."""

SECTOR = 512
"""Bytes in a sector, the unit in which hypervisors hand out a disk."""


class Extent(NamedTuple):
    """A run of guest bytes that one place in one file answers for."""

    start: int  # first guest byte
    length: int  # guest bytes
    kind: str  # DATA, ZERO, COMPRESSED or ENCRYPTED
    layer: "Layer"  # whose file the bytes lie in
    offset: int  # byte in that file; of a compressed stream its first byte
    stored: int  # bytes in that file; of a compressed stream its whole length
    skip: int  # compressed only: bytes of the inflated cluster before ``start``


class Scattered(Extent):
    """An extent of kind :data:`SCATTERED`: so many clusters do not cost an object each. Its own ``offset`` says nothing."""

    offsets: array  # bytes of the file where the clusters lie


CHUNK = 4 << 20
"""Guest bytes that are handled at a time: a multiple of every cluster size. One and two MiB were measured and were slower."""


class Partition(NamedTuple):
    """One of ``total`` parts of the work on an image: every ``total``-th chunk of the guest, beginning with chunk ``number``."""

    number: int
    total: int

    def touches(self, start: int, length: int) -> bool:
        """Whether any of guest bytes [start, start + length) belongs to it."""
        first, last = start // CHUNK, (start + length - 1) // CHUNK
        return last - first + 1 >= self.total or (self.number - first) % self.total <= last - first


EVERYTHING = Partition(0, 1)


class Layer:
    """One open image file of a backing chain.

    ``fd`` is a read-only descriptor owned by the caller; ``path`` the name it was opened under (for messages and for relative backing
    names); ``virtual_size`` the guest's disk in bytes, exactly as the file states it; ``cluster_size`` the layer's allocation unit in bytes.
    ``partition`` is what of the guest is wanted: a layer need not look at tables of other parts.
    """

    format = "raw"
    partition = EVERYTHING

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path
        self.file_size = os.lseek(fd, 0, os.SEEK_END)
        self.virtual_size = self.file_size
        self.cluster_size = SECTOR
        self._last_stream: Tuple[Tuple[int, ...], bytes] = ((-1, -1), b"")

    def held(self) -> int:
        """Bytes of the file, but for holes; of a block device, all."""
        status = os.fstat(self.fd)
        return 512 * status.st_blocks if stat.S_ISREG(status.st_mode) else self.file_size

    def extents(self) -> Iterator[Extent]:
        """What this layer itself holds, in guest order, without overlaps, never past ``virtual_size``."""
        raise NotImplementedError

    def runs(self) -> Iterator[Extent]:
        """The same for who asks which guest bytes are held, and not where: in as few pieces as that allows; ``offset`` says nothing."""
        return self.extents()

    def bulk_extents(self) -> Iterator[Extent]:
        """The same for who reads everything chunk by chunk: what lies scattered comes as :class:`Scattered`, never in two chunks."""
        return self.extents()

    def inflate(self, extent: Extent, stream: Optional[bytes] = None) -> bytes:
        """The whole cluster (``cluster_size`` bytes) a compressed extent of this layer belongs to.

        A stream that many clusters share is inflated once: gigabytes of such a disk take a few kilobytes of a file.

        :param stream: its stored bytes, where the caller has read them already.
        :raises DamagedImage: where the stream does not yield a cluster.
        """
        place = extent[4:6]
        if place == self._last_stream[0]:
            return self._last_stream[1]
        data = self._cluster_of(extent, os.pread(self.fd, extent.stored, extent.offset) if stream is None else stream)
        if data is None:
            return bytes(self.cluster_size)
        self._last_stream = place, data
        return data

    def _cluster_of(self, extent: Extent, stream: bytes) -> Optional[bytes]:
        """What :meth:`inflate` returns; ``None`` where damage was let pass."""
        raise NotImplementedError

    def decrypt(self, start: int, data: bytes) -> bytes:
        """Plain bytes of whole sectors ``data`` whose first one lies at guest byte ``start``.

        :raises PassphraseError: where the layer has no key.
        """
        raise NotImplementedError


def clip(extent: Extent, start: int, stop: int) -> Optional[Extent]:
    """The part of ``extent`` inside guest bytes [start, stop), or ``None``."""
    first = max(extent.start, start)
    last = min(extent.start + extent.length, stop)
    if first >= last:
        return None
    if first == extent.start and last - first == extent.length:
        return extent
    ahead = first - extent.start
    if extent.kind == COMPRESSED:
        return extent._replace(start=first, length=last - first, skip=extent.skip + ahead)
    if extent.kind == ZERO:
        return extent._replace(start=first, length=last - first)
    return extent._replace(start=first, length=last - first, offset=extent.offset + ahead, stored=last - first)


def overlaid(top: Iterator[Extent], base: Iterator[Extent], size: int) -> Iterator[Extent]:
    """What a guest sees that looks through ``top`` onto ``base``; nothing at or after ``size`` bytes."""
    below = next(base, None)
    position = 0
    above = next(top, None)
    while True:
        border = size if above is None else min(above.start, size)
        while below is not None and below.start < border:
            piece = clip(below, position, border)
            if piece is not None:
                yield piece
            if below.start + below.length > border:
                break
            below = next(base, None)
        if above is None or above.start >= size:
            return
        piece = clip(above, position, size)
        if piece is not None:
            yield piece
            position = piece.start + piece.length
        above = next(top, None)


def thin_extents(layers: List[Layer], unit: int) -> Iterator[Extent]:
    """What an overlay has to hold to show the same over the same backing file: the extents of ``layers[0]``, and where they fill a unit of
    the new overlay only partly, what the guest sees in the rest of it.

    Zeros come as :data:`ZERO` extents where the image itself says so; inside a unit that appears here, gaps are zeros too. The rest of the
    last sector of a disk that is no multiple of 512 bytes belongs to it.

    :param unit: bytes that the new overlay allocates at a time.
    """
    top = layers[0]
    if top.cluster_size % unit == 0 and top.virtual_size % SECTOR == 0:
        return top.extents()
    size = -(-top.virtual_size // SECTOR) * SECTOR
    return _inside(_units(_whole_sectors(top), unit, size), chain_extents(layers))


def _whole_sectors(layer: Layer) -> Iterator[Extent]:
    yield from layer.extents()
    rest = -layer.virtual_size % SECTOR
    if rest:
        yield Extent(layer.virtual_size, rest, ZERO, layer, 0, 0, 0)


def _units(extents: Iterator[Extent], unit: int, size: int) -> Iterator[Extent]:
    """The whole units that extents touch (none behind ``size``), as few runs of :data:`ZERO` as possible."""
    start = stop = 0
    layer = None  # type: Optional[Layer]
    for extent in extents:
        layer = extent.layer
        first = extent.start // unit * unit
        if first > stop:
            if stop > start:
                yield Extent(start, stop - start, ZERO, layer, 0, 0, 0)
            start = first
        stop = min(-(-(extent.start + extent.length) // unit) * unit, size)
    if layer is not None and stop > start:
        yield Extent(start, stop - start, ZERO, layer, 0, 0, 0)


def _inside(runs: Iterator[Extent], whole: Iterator[Extent]) -> Iterator[Extent]:
    """The parts of ``whole`` that lie inside ``runs``; the parts of ``runs`` in which there are none, as they are."""
    below = next(whole, None)
    for run in runs:
        position, stop = run.start, run.start + run.length
        while below is not None and below.start < stop:
            piece = clip(below, position, stop)
            if piece is not None:
                if piece.start > position:
                    yield run._replace(start=position, length=piece.start - position)
                yield piece
                position = piece.start + piece.length
            if below.start + below.length > stop:
                break
            below = next(whole, None)
        if position < stop:
            yield run._replace(start=position, length=stop - position)


def filled(extents: Iterable[Extent], layer: Layer, size: int) -> Iterator[Extent]:
    """The same with :data:`ZERO` extents of ``layer`` where there were none, up to ``size`` bytes."""
    position = 0
    for extent in extents:
        if extent.start > position:
            yield Extent(position, extent.start - position, ZERO, layer, 0, 0, 0)
        yield extent
        position = extent.start + extent.length
    if position < size:
        yield Extent(position, size - position, ZERO, layer, 0, 0, 0)


def chain_extents(layers: List[Layer]) -> Iterator[Extent]:
    """The extents of a whole backing chain, ``layers[0]`` being the image itself and ``layers[-1]`` its lowest base.

    A base that is smaller than its overlay is followed by zeros, a larger one is cut, as QEMU does.
    """
    stream = layers[-1].extents()
    for layer in reversed(layers[:-1]):
        stream = overlaid(layer.extents(), stream, layer.virtual_size)
    return stream
