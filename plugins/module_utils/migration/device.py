# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results that go into an existing block device. There is no temporary name there: what a device held is gone with the first byte written.

So everything is asked before: that it is large enough, that nobody uses it, and that it does not begin with something one might want to keep.
"""

import errno
import fcntl
import os
import stat
import struct

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import ImageInUse, NoSpace, QcowError, UnsafeImage, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import open_source
from ansible_collections.vmimage.qcow.plugins.module_utils.host.in_use import find_users
from ansible_collections.vmimage.qcow.plugins.module_utils.image.detect import HEAD, UNKNOWN, identify
from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import RawWriter
from ansible_collections.vmimage.qcow.plugins.module_utils.image.signatures import signatures
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request

_BLKZEROOUT = 0x127F
_ZEROS = bytes(1 << 20)


def is_device(path: bytes) -> bool:
    """Whether a path leads to a block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def require_usable(request: Request, dest: bytes, size: int) -> None:
    """Make sure that ``size`` bytes may be written to a device. Changes nothing.

    :raises QcowError: why not.
    """
    if request.format != "raw":
        raise UnsupportedImage("a block device takes raw results only", dest, hint="Say format=raw. Nothing was changed.")
    real = os.path.realpath(dest)
    fd = open_source(real, block_devices=True)
    try:
        there = os.lseek(fd, 0, os.SEEK_END)
        if there < size:
            raise NoSpace("the device has {0} bytes, the disk needs {1}".format(there, size), dest, hint="Nothing was changed.")
        users = find_users(fd)
        if users:
            raise ImageInUse(
                "the device is in use: {0}".format("; ".join("{0} ({1})".format(use.who, use.how) for use in users)),
                dest,
                hint="Nothing was changed.",
                users=[use._asdict() for use in users],
            )
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
            hint="Nothing was changed. If that may be lost, say overwrite_device.",
        )


def open_exclusively(dest: bytes) -> int:
    """A descriptor for reading and writing; the kernel keeps others (mounts, LVM, md) from claiming the device meanwhile.

    :raises ImageInUse: where one has it already.
    """
    try:
        return os.open(os.path.realpath(dest), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ImageInUse("the device is in use (mounted, or part of another device)", dest, hint="Nothing was changed.") from error
        raise QcowError("the device cannot be opened for writing: {0}".format(error.strerror), dest) from error


class DeviceWriter(RawWriter):
    """Writes a raw image over whatever a device held; zeros are written too."""

    backed = True

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.virtual_size = size

    def place_zeros(self, start: int, length: int) -> None:
        """See ``Qcow2Writer.place_zeros``; by the device itself where it can."""
        try:
            fcntl.ioctl(self.fd, _BLKZEROOUT, struct.pack("QQ", start, length))
        except OSError:
            while length:
                done = os.pwrite(self.fd, _ZEROS[: min(length, len(_ZEROS))], start)
                start, length = start + done, length - done
