# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which text files there are in directories, and what is in them."""

import errno
import os
import stat
from typing import Iterable, Iterator, List, Tuple

from .._directories import behind_links
from .._errors import UnsafeImage
from .._paths import show

MAX_BYTES = 1 << 20
"""Files that people and tools write by hand are smaller; what is larger is data."""

_MOST_NAMED = 10

Unread = List[Tuple[bytes, str]]
"""Files and directories, each with the reason why it could not be searched."""


def text_files(directories: Iterable[bytes], unread: Unread) -> Iterator[bytes]:
    """All files that may hold text.

    :param unread: gets what is there and cannot be listed.
    """

    def failed(error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            unread.append((os.fsencode(error.filename), str(error.strerror)))

    for directory in directories:
        if os.path.isfile(directory):
            yield directory
        for parent, subdirectories, names in os.walk(directory, onerror=failed):
            subdirectories.sort()
            for name in sorted(names):
                yield os.path.join(parent, name)


def text_of(path: bytes, unread: Unread) -> bytes:
    """The content of a text file, else nothing. Links are followed, because units are often links, but none of a stranger's: lines are told.

    :param unread: gets the file where it is there and cannot be searched.
    """
    try:
        target = behind_links(path) if os.path.islink(path) else path
        if not stat.S_ISREG(os.lstat(target).st_mode):
            return b""  # to open some devices is to start them
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except UnsafeImage:
        unread.append((path, "a symbolic link that users other than root can change"))
        return b""
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR):
            unread.append((path, str(error.strerror)))
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        data = b""
        while len(data) <= MAX_BYTES:
            piece = os.read(fd, MAX_BYTES + 1 - len(data))
            if not piece:
                break
            data += piece
    except OSError as error:
        unread.append((path, str(error.strerror)))
        return b""
    finally:
        os.close(fd)
    if b"\0" in data:
        return b""
    if len(data) > MAX_BYTES:
        unread.append((path, "larger than {0} bytes".format(MAX_BYTES)))
        return b""
    return data


def could_not_search(unread: Unread) -> List[str]:
    """A sentence about what was not searched, if anything."""
    names = ["{0} ({1})".format(show(path), why) for path, why in unread[:_MOST_NAMED]]
    if len(unread) > _MOST_NAMED:
        names.append("{0} more".format(len(unread) - _MOST_NAMED))
    return ["These could not be searched for names of images: {0}.".format(", ".join(names))] if names else []
