# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A base in a format that only qemu-img reads: what it holds is asked first, and only what is needed of it is fetched, into a raw file."""

import os
from array import array
from typing import Iterable, Iterator, Tuple

from .._copy.writers import Qcow2Writer
from .._errors import QcowError, ToolMissing, UnsafeImage
from .._host.files import create_nameless
from .._host.free_space import human
from .._host.image_options import Node
from .._host.qemu_img import QemuImg
from .._image.extent import DATA, SECTOR, Extent, Layer
from .._image.qcow2_header import Qcow2Options
from .._paths import show

Range = Tuple[int, int]
"""``(first guest byte, byte after the last)``."""

_TOLD = ("vmdk", "vdi", "vpc", "qed", "parallels")
"""Formats of which qemu-img tells what they hold; a vhdx is data from its beginning to its end to it (``block/vhdx.c`` has no block status)."""

_UNTOLD = 1 << 40
"""Bytes that are read of such an image, however small its file is: about half a minute of zeros."""


class ForeignBase(Layer):
    """A base that qemu-img reads, as far as planning goes.

    :param size: virtual size in bytes of what rests on it; nothing behind that is looked at.
    :raises ToolMissing: no qemu-img here reads the format. :raises ToolFailed: it cannot be read.
    :raises UnsafeImage: reading it would take far longer than its file's size justifies.
    """

    def __init__(self, fd: int, path: bytes, driver: str, size: int) -> None:
        super().__init__(fd, path)
        self.format = driver
        self._tool = _tool_for(path, driver)
        size = -(-size // SECTOR) * SECTOR
        self.virtual_size = min(int(self._tool.info(path, driver, fd=fd)["virtual-size"]), size)
        self._ranges = array("Q")  # start and stop of each, ascending
        for start, stop in self._tool.data_ranges(path, driver, fd=fd, limit=self.virtual_size):
            if self._ranges and self._ranges[-1] == start:
                self._ranges[-1] = stop
            else:
                self._ranges.extend((start, stop))
        if driver not in _TOLD and self.virtual_size > max(_UNTOLD, 64 * self.file_size):
            raise UnsafeImage(
                "qemu-img cannot tell which of its {0} hold data, and the file has {1}".format(
                    human(self.virtual_size), human(self.file_size)
                ),
                path,
                hint="It was not read and nothing was changed. Convert it to qcow2 by other means first.",
            )

    def ranges(self) -> Iterator[Range]:
        """What holds data."""
        return zip(self._ranges[::2], self._ranges[1::2])

    def extents(self) -> Iterator[Extent]:
        """See :meth:`Layer.extents`."""
        for start, stop in self.ranges():
            yield Extent(start, stop - start, DATA, self, start, stop - start, 0)

    def need(self, wanted: Iterable[Range]) -> int:
        """Bytes on disk that fetching the ranges takes at most.

        The size of the file says nothing: a vmdk may be compressed, and a table may name one place of the file for any number of ranges.
        """
        return sum(stop - start for start, stop in self.ranges()) - sum(stop - start for start, stop in self._hidden(wanted))

    @property
    def _unit(self) -> int:
        """Bytes, a cluster size of qcow2, in which it is decided what is fetched: its table stays below 8 MiB up to 1 TiB."""
        return min(max(1 << 16, 1 << ((self.virtual_size - 1) >> 19).bit_length()), 1 << 21)

    def _hidden(self, wanted: Iterable[Range]) -> Iterator[Range]:
        """What holds data and lies in no unit that is wanted."""
        return _without(self.ranges(), _whole(wanted, self._unit))

    def fetch(self, wanted: Iterable[Range], directory: bytes) -> int:
        """Have qemu-img write the wanted ranges into a sparse raw file without a name; the rest of it is a hole.

        What is not wanted is hidden under zeros: by an overlay, because qemu-img converts whole disks only.

        :param wanted: ascending. :param directory: on whose filesystem the file lies.
        :return: its descriptor, for the caller to close.
        """
        overlay, result = create_nameless(directory), create_nameless(directory)
        try:
            unit = self._unit
            writer = Qcow2Writer(overlay, self.virtual_size, Qcow2Options(unit, backing_name=b"base", backing_format=self.format))
            for start, stop in _whole(self._hidden(wanted), unit):
                writer.place_zeros(start, min(stop, self.virtual_size) - start)
            writer.finish()
            base = Node(self.path, self.format, fd=self.fd)
            self._tool.convert(Node(self.path, "qcow2", base, fd=overlay), result, "raw")
            if Layer(result, self.path).file_size != self.virtual_size:
                raise QcowError("qemu-img did not write {0} bytes".format(self.virtual_size), self.path)
            return result
        except BaseException:
            os.close(result)
            raise
        finally:
            os.close(overlay)


def _whole(ranges: Iterable[Range], unit: int) -> Iterator[Range]:
    """The whole units that ranges touch, as few ranges as possible."""
    first = last = -1
    for start, stop in ranges:
        start, stop = start // unit * unit, -(-stop // unit) * unit
        if start > last:
            if last > first:
                yield first, last
            first = start
        last = max(last, stop)
    if last > first:
        yield first, last


def _without(ranges: Iterator[Range], others: Iterator[Range]) -> Iterator[Range]:
    """What of some ranges none of the others covers; both ascending, and apart among themselves."""
    other = next(others, None)
    for start, stop in ranges:
        while other is not None and other[0] < stop:
            if other[0] > start:
                yield start, other[0]
            start = max(start, other[1])
            if other[1] > stop:
                break
            other = next(others, None)
        if start < stop:
            yield start, stop


def _tool_for(path: bytes, driver: str) -> QemuImg:
    tool = QemuImg.find()
    if tool is None or driver not in tool.formats:
        raise ToolMissing(
            "the base is a {0} image, which only qemu-img reads, and this host has none that does".format(driver),
            path,
            hint="Nothing was changed. Install qemu-img, or convert {0} to qcow2 first.".format(show(os.path.basename(path))),
        )
    return tool
