# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Space for the whole of a result, taken before a guest needs it."""

import os

from .._image.raw import data_ranges

_ZEROS = bytes(1 << 20)


def preallocate(fd: int, *, full: bool) -> None:
    """Give every hole of a finished file its space.

    :param fd: open for reading and writing. :param full: write zeros there instead of only reserving the space.
    :raises OSError: where the filesystem has not got it.
    """
    size = os.lseek(fd, 0, os.SEEK_END)
    if not full:
        if size:
            os.posix_fallocate(fd, 0, size)
        return
    position = 0
    for start, length in list(data_ranges(fd, size)) + [(size, 0)]:
        while position < start:
            position += os.pwrite(fd, _ZEROS[: min(len(_ZEROS), start - position)], position)
        position = start + length
