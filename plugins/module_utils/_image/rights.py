# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who can write an image, and whether they could read its backing file themselves.

Whoever can write an overlay decides which file it names as its backing file, and gets to see what that holds, by the guest or by the result of a
migration. So a backing file is followed only where everybody who can write the overlay could have read it: by owner, group, mode and POSIX ACL of the
file, and with the right to search every directory on the way.
"""

import os
import stat
from typing import List, Optional

from .._access import READ, SEARCH, Stranger, access_of, is_stranger
from .._directories import access_on


def writers_of(fd: int, path: bytes) -> List[Stranger]:
    """The strangers who can write an open image, or who can write in the directory that it is in.

    :param path: where it was opened; its directory's owner counts, because libvirt gives the images of running domains other owners.
    :raises OSError: where that cannot be found out.
    """
    found = access_of(fd).writers()
    directory = access_on(os.path.dirname(path) or b".")[-1][1]
    if not directory.mode & stat.S_ISVTX or is_stranger(directory.uid):
        found += directory.writers()
    return list(dict.fromkeys(found))


def unable_to_read(writers: List[Stranger], fd: int, path: bytes) -> Optional[Stranger]:
    """The first of some writers who could not have read an open file by its path; ``None`` where all could.

    :param path: the file's, without symbolic links.
    """
    if not writers:
        return None
    there, way = access_of(fd), [access for _place, access in access_on(os.path.dirname(path) or b".")]
    for writer in writers:
        groups = writer.groups()
        if not there.allows(writer, groups, READ) or not all(directory.allows(writer, groups, SEARCH) for directory in way):
            return writer
    return None
