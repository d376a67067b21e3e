# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who can write an image, and whether they could read a file themselves.

Whoever can write an overlay decides which file it names as its backing file, and gets to see what that holds, by the guest or by the result of a
migration. So a backing file is followed only where everybody who can write the overlay could have read it: by owner, group, mode and POSIX ACL of the
file, and with the right to search every directory on the way.
"""

import os
import pwd
import stat
import struct
from typing import Dict, List, NamedTuple, Optional, Set

from .._directories import directories_on, is_stranger

_ACCESS_LIST = "system.posix_acl_access"
# <linux/posix_acl_xattr.h>: a version, then for each entry its tag, its permissions and an id, little-endian.
_VERSION = 2
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_READ, _WRITE, _SEARCH = 4, 2, 1


class Writer(NamedTuple):
    """Somebody who can write an image: a user, a group (``uid`` is ``None``) or everybody (``gid`` is, too)."""

    uid: Optional[int]
    gid: Optional[int]

    def __str__(self) -> str:
        if self.uid is not None:
            return "user {0}".format(self.uid)
        return "everybody" if self.gid is None else "group {0}".format(self.gid)


class _Rights(NamedTuple):
    """Owner, group and mode of a file or directory, and the entries of its access list for single users and groups, already masked."""

    status: os.stat_result
    group: int  # what the file's group may do
    users: Dict[int, int]
    groups: Dict[int, int]


def writers_of(fd: int, path: bytes) -> List[Writer]:
    """Everybody but root and us who can write an open image, or own the directory that it is in.

    :param path: where it was opened; its directory's owner counts, because libvirt gives the images of running domains other owners.
    :raises OSError: where that cannot be found out.
    """
    directory = directories_on(os.path.dirname(path) or b".")[-1]
    found = _writers(_rights(os.fstat(fd), fd))
    if not directory.st_mode & stat.S_ISVTX or is_stranger(directory.st_uid):
        found += _writers(_rights(directory, None))
    return list(dict.fromkeys(found))


def unable_to_read(writers: List[Writer], fd: int, path: bytes) -> Optional[Writer]:
    """The first of some writers who could not have read an open file by its path; ``None`` where all could.

    :param path: the file's, without symbolic links.
    """
    if not writers:
        return None
    way = [_rights(status, None) for status in directories_on(os.path.dirname(path) or b".")]
    there = _rights(os.fstat(fd), fd)
    for writer in writers:
        if not _may(writer, there, _READ) or not all(_may(writer, directory, _SEARCH) for directory in way):
            return writer
    return None


def _writers(rights: _Rights) -> List[Writer]:
    mode, ours = rights.status.st_mode, (0, os.getegid())
    found = [Writer(rights.status.st_uid, None)] if is_stranger(rights.status.st_uid) else []
    found += [Writer(uid, None) for uid, bits in rights.users.items() if bits & _WRITE and is_stranger(uid)]
    groups = dict(rights.groups)
    groups[rights.status.st_gid] = groups.get(rights.status.st_gid, 0) | rights.group
    found += [Writer(None, gid) for gid, bits in groups.items() if bits & _WRITE and gid not in ours]
    return found + ([Writer(None, None)] if mode & stat.S_IWOTH else [])


def _may(writer: Writer, rights: _Rights, wanted: int) -> bool:
    """Whether somebody has a right, by ``acl(5)``: the owner, else a user's entry, else any fitting group, else everybody's."""
    status = rights.status
    if writer.uid is not None and writer.uid == status.st_uid:
        return True  # who owns a file can give themselves any right
    if writer.uid in rights.users:
        return bool(rights.users[writer.uid] & wanted)
    member_of = {writer.gid} if writer.uid is None else _groups_of(writer.uid)
    fitting = [rights.group] if status.st_gid in member_of else []
    fitting += [bits for gid, bits in rights.groups.items() if gid in member_of]
    return any(bits & wanted for bits in fitting) if fitting else bool(status.st_mode & wanted)


def _groups_of(uid: int) -> Set[Optional[int]]:
    """The groups that a user is in; none for a user whom the host does not know."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return set()
    return set(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _rights(status: os.stat_result, fd: Optional[int]) -> _Rights:
    """:param fd: the open file, for its access list. That of a directory is not looked at: fewer are found able to search it."""
    entries = [] if fd is None else _access_list(fd)
    mask = next((bits for tag, bits, _id in entries if tag == _MASK), 7)
    group = next((bits & mask for tag, bits, _id in entries if tag == _GROUP_OBJ), status.st_mode >> 3 & 7)
    users = {number: bits & mask for tag, bits, number in entries if tag == _USER}
    groups = {number: bits & mask for tag, bits, number in entries if tag == _GROUP}
    return _Rights(status, group, users, groups)


def _access_list(fd: int) -> List[tuple]:
    try:
        value = os.getxattr(fd, _ACCESS_LIST)
    except OSError:
        return []  # none, or a filesystem without
    if len(value) < 4 or struct.unpack_from("<I", value)[0] != _VERSION:
        return []
    return [struct.unpack_from("<HHI", value, offset) for offset in range(4, len(value) - 7, 8)]
