# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may do what with a file or directory: by its owner, group, mode and POSIX ACL.

A stranger is everybody but root and the user that we work as.
"""

import errno
import os
import pwd
import stat
import struct
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

READ, WRITE, SEARCH = 4, 2, 1

_ACCESS_LIST = "system.posix_acl_access"
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)
# <linux/posix_acl_xattr.h>: a version, then for each entry its tag, its permissions and an id, little-endian.
_VERSION = 2
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


class Stranger(NamedTuple):
    """A user, a group (``uid`` is ``None``), or everybody (``gid`` is, too)."""

    uid: Optional[int]
    gid: Optional[int]

    def __str__(self) -> str:
        if self.uid is not None:
            return "user {0}".format(self.uid)
        return "everybody" if self.gid is None else "group {0}".format(self.gid)

    def is_known(self) -> bool:
        """Whether the host knows what groups this is in."""
        return self.uid is None or user_name(self.uid) is not None

    def groups(self) -> Set[Optional[int]]:
        """The groups that this is, or that the user is in; none of a user whom the host does not know."""
        if self.uid is None:
            return {self.gid}
        try:
            entry = pwd.getpwuid(self.uid)
        except KeyError:
            return set()
        return set(os.getgrouplist(entry.pw_name, entry.pw_gid))


def user_name(uid: int) -> Optional[str]:
    """A user's name; ``None`` where the host does not know it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def is_stranger(uid: Optional[int]) -> bool:
    """Whether a user is neither root nor the one that we work as."""
    return uid not in (0, os.geteuid())


class Access(NamedTuple):
    """What is known of an open file or directory. The entries of its access list for single users and groups are masked already."""

    uid: int
    gid: int
    mode: int
    group: int  # what its group may do
    users: Dict[int, int]
    groups: Dict[int, int]

    def writers(self) -> List[Stranger]:
        """The strangers who may write it; its owner can give themselves that right."""
        found = [Stranger(self.uid, None)] if is_stranger(self.uid) else []
        found += [Stranger(uid, None) for uid, bits in self.users.items() if bits & WRITE and is_stranger(uid)]
        groups = dict(self.groups)
        groups[self.gid] = groups.get(self.gid, 0) | self.group
        found += [Stranger(None, gid) for gid, bits in groups.items() if bits & WRITE and gid not in (0, os.getegid())]
        return found + ([Stranger(None, None)] if self.mode & stat.S_IWOTH else [])

    def allows(self, who: Stranger, groups: Set[Optional[int]], right: int) -> bool:
        """Whether somebody has a right, by ``acl(5)``: the owner, else a user's entry, else any fitting group, else everybody's.

        :param groups: see :meth:`Stranger.groups`.
        """
        if who.uid is not None and who.uid == self.uid:
            return True  # who owns a file can give themselves any right
        if who.uid in self.users:
            return bool(self.users[who.uid] & right)
        fitting = [self.group] if self.gid in groups else []
        fitting += [bits for gid, bits in self.groups.items() if gid in groups]
        return any(bits & right for bits in fitting) if fitting else bool(self.mode & right)


def access_of(fd: int) -> Access:
    """Who may do what with an open file or directory, be it opened with ``O_PATH``.

    :raises OSError: where that cannot be found out.
    """
    status = os.fstat(fd)
    # The entries of an access list show in the mode's group bits, which are their mask: without any there is nothing to read.
    entries = _access_list(fd) if status.st_mode & stat.S_IRWXG else []
    mask = next((bits for tag, bits, _id in entries if tag == _MASK), 7)
    return Access(
        status.st_uid,
        status.st_gid,
        status.st_mode,
        next((bits & mask for tag, bits, _id in entries if tag == _GROUP_OBJ), status.st_mode >> 3 & 7),
        {number: bits & mask for tag, bits, number in entries if tag == _USER},
        {number: bits & mask for tag, bits, number in entries if tag == _GROUP},
    )


def _access_list(fd: int) -> List[Tuple[int, int, int]]:
    try:
        value = os.getxattr(b"/proc/self/fd/%d" % fd, _ACCESS_LIST)  # by that name also what was opened with O_PATH
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return []
    if struct.unpack_from("<I", value)[0] != _VERSION:
        raise OSError(errno.EOPNOTSUPP, "an access list of an unknown version")
    return [struct.unpack_from("<HHI", value, offset) for offset in range(4, len(value) - 7, 8)]
