# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A block device as destination: only one that the operator has named, and that very one when it is written."""

import errno
import os
import stat
from typing import Optional

from .._directories import behind_links, place_of, status_of
from .._errors import ImageChanged, ImageInUse, NoSpace, QcowError, UnsafeImage, UnsupportedImage
from .._host.files import open_source
from .._host.in_use import require_unused
from .._image.detect import HEAD, UNKNOWN, identify, signatures
from .request import Request


def device_at(path: Optional[bytes]) -> Optional[int]:
    """The number (``st_rdev``) of the block device that a path leads to; ``None`` where it leads to something else, or to nothing.

    :raises UnsafeImage: it leads there by a symbolic link that a stranger could have made.
    """
    if path is None:
        return None
    try:
        status = status_of(behind_links(path))
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def require_usable(request: Request, dest: bytes, size: int) -> None:
    """Make sure that ``size`` bytes may be written to a device. Changes nothing.

    :raises QcowError: why not.
    """
    if request.format != "raw":
        raise UnsupportedImage("a block device takes raw results only", dest, hint="Set format=raw. Nothing was changed.")
    real = behind_links(dest)
    fd = open_source(real, block_devices=True)
    try:
        there = os.lseek(fd, 0, os.SEEK_END)
        if there < size:
            raise NoSpace(
                "the device has {0} bytes, the disk needs {1}".format(there, size), dest, hint="Nothing was changed. Choose a larger one."
            )
        require_unused(fd, "the device", dest, "Nothing was changed. Choose another device, or stop what uses it.")
        if not request.overwrite_device:
            _require_blank(fd, dest, there)
    finally:
        os.close(fd)
    if not os.access(real, os.W_OK):
        raise QcowError("the device may not be written by user {0}".format(os.geteuid()), dest, reason="not-writable")


def _require_blank(fd: int, dest: bytes, size: int) -> None:
    found = [mark.name for mark in signatures(lambda length, offset: os.pread(fd, length, offset))]
    kind = identify(os.pread(fd, HEAD, 0), size, lambda length, offset: os.pread(fd, length, offset))
    if kind.format != UNKNOWN:
        found.append(kind.format)
    if found:
        raise UnsafeImage(
            "the device holds something already ({0})".format(", ".join(sorted(set(found)))),
            dest,
            reason="exists",
            hint="Nothing was changed. To overwrite it, set overwrite_device=true.",
        )


def open_exclusively(dest: bytes, number: int) -> int:
    """A descriptor for reading and writing; the kernel keeps others (mounts, LVM, md) from claiming the device meanwhile.

    :param number: see :func:`device_at`, when it was planned for.
    :raises ImageInUse: where one has it already. :raises ImageChanged: where it is another device.
    """
    try:
        with place_of(behind_links(dest)) as (directory, name):
            fd = os.open(name, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ImageInUse("the device is in use (mounted, or part of another device)", dest, hint="Nothing was changed.") from error
        raise QcowError("the device cannot be opened for writing: {0}".format(error.strerror), dest) from error
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode) or status.st_rdev != number:
        os.close(fd)
        raise ImageChanged("is not the device that was planned for", dest, hint="Nothing was written. Run again.")
    return fd
