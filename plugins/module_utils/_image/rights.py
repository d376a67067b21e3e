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
from typing import List, Optional, Set, Tuple

from .._access import READ, SEARCH, Access, Stranger, access_of, is_stranger
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
    there, way = _way_to(fd, path)
    return next((writer for writer in writers if not _may_read(writer, writer.groups(), there, way)), None)


def owner_unable_to_read(overlay: int, base: int, path: bytes) -> Optional[Stranger]:
    """The owner of an open overlay, if that is a stranger who could not have read an open base by its path; ``None`` otherwise.

    A user whom the host does not know may be in any group: the directory service may be down.

    :param path: of the base, without symbolic links.
    """
    owner = Stranger(os.fstat(overlay).st_uid, None)
    if not is_stranger(owner.uid):
        return None
    there, way = _way_to(base, path)
    possible = [owner.groups()]
    if not owner.is_known():
        possible.append({gid for access in [there] + way for gid in [access.gid, *access.groups]})
    return None if any(_may_read(owner, groups, there, way) for groups in possible) else owner


def _way_to(fd: int, path: bytes) -> Tuple[Access, List[Access]]:
    return access_of(fd), [access for _place, access in access_on(os.path.dirname(path) or b".")]


def _may_read(who: Stranger, groups: Set[Optional[int]], there: Access, way: List[Access]) -> bool:
    return there.allows(who, groups, READ) and all(directory.allows(who, groups, SEARCH) for directory in way)
