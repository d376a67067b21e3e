# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may do what with a file, and what else is noted about it: carried from the source to the result."""

import errno
import os
import stat
from typing import Dict, Iterable, List, Optional, Set

from .._paths import show
from . import linux

_ACL = "system.posix_acl_access"
_LABEL = "security.selinux"
# Hashes of the old content would make the new file unreadable where they are enforced; what the old content was allowed is not for the new one.
_OF_THE_CONTENT = ("security.ima", "security.evm", "security.capability")
# libvirt counts here the running domains that use *this inode* and the owner to give back after the last one.
_OF_THE_INODE = "trusted.libvirt.security."
_CARRIED_FLAGS = linux.FLAG_NODUMP | linux.FLAG_NOATIME | linux.FLAG_SYNC
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)


def protection(fd: int) -> List[str]:
    """Which inode flags forbid to rename, link or remove an open file or directory: ``immutable``, ``append-only``."""
    flags = linux.get_flags(fd) or 0
    return [name for bit, name in ((linux.FLAG_IMMUTABLE, "immutable"), (linux.FLAG_APPEND, "append-only")) if flags & bit]


def prepare(fd: int, source_fd: int) -> List[str]:
    """Carry over what only an empty file can take: no copy-on-write (Btrfs, ``chattr +C``). Call it before the first write.

    :return: warnings. A destination without copy-on-write needs no flag and gives none.
    """
    wanted, there = linux.get_flags(source_fd), linux.get_flags(fd)
    if wanted is None or there is None or not wanted & linux.FLAG_NOCOW or there & linux.FLAG_NOCOW:
        return []
    try:
        linux.set_flags(fd, there | linux.FLAG_NOCOW)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return []
        return ["The source is excluded from copy-on-write (chattr +C); the result could not be: {0}.".format(error.strerror)]
    # Btrfs ignores the flag without an error where the file holds data already.
    if not (linux.get_flags(fd) or 0) & linux.FLAG_NOCOW and os.fstat(fd).st_size:
        return ["The source is excluded from copy-on-write (chattr +C); the result could not be, because it was not empty."]
    return []


def carry_over(source_fd: int, dest_fd: int, *, timestamps: bool, below: Iterable[int] = ()) -> List[str]:
    """Give the result the source's owner, group, mode, access list, extended attributes and inode flags. Set-id bits and capabilities belong to
    the old content and are left out.

    At no moment can anybody read the result who could not read the source: it is closed first, changes hands while it is
    closed, and is opened last. Where the group cannot be carried, the group's rights shrink to those of everybody.

    :param below: the backing files whose content is in the result: who cannot read one of them cannot read the result.
    :param timestamps: carry access and modification time too; later writes to the result undo that, so call it last.
    :return: warnings, one sentence each, for everything that could not be carried. Nothing is raised for those.
    :raises OSError: where even the mode cannot be set: the result must not be published then.
    """
    source = os.fstat(source_fd)
    mode = stat.S_IMODE(source.st_mode) & 0o1777
    os.fchmod(dest_fd, mode & 0o600)
    warnings: List[str] = []
    group_carried = _carry_owner(source, dest_fd, warnings)
    names = _names(source_fd)
    narrow = _narrowest(mode, source, _ACL in names, below)
    if narrow != mode:
        warnings.append(
            "Fewer users can read the result than the original, because they cannot read a backing file whose content is in it."
        )
        names.discard(_ACL)
    acl_carried = _carry_xattrs(source_fd, dest_fd, names, group_carried, warnings)
    if not group_carried or not acl_carried:
        # (The group bits of a file with an access list are the list's mask, not what its group may do.)
        narrow = _without_group(narrow)
    os.fchmod(dest_fd, narrow)
    _carry_flags(source_fd, dest_fd, warnings)
    if timestamps:
        try:
            os.utime(dest_fd, ns=(source.st_atime_ns, source.st_mtime_ns))
        except OSError as error:
            warnings.append("Timestamps could not be preserved: {0}.".format(error.strerror))
    return warnings


def _narrowest(mode: int, source: os.stat_result, has_access_list: bool, below: Iterable[int]) -> int:
    """A mode without the rights of those who cannot read some backing file; without an access list, where there is one."""
    for fd in below:
        base = os.fstat(fd)
        if base.st_mode & stat.S_IROTH:
            continue
        mode &= ~stat.S_IRWXO
        if has_access_list or base.st_gid != source.st_gid or not base.st_mode & stat.S_IRGRP:
            mode &= ~stat.S_IRWXG
    return mode


def _without_group(mode: int) -> int:
    """Group rights reduced to what others have anyway; no set-id bits for an owner that is not the source's."""
    return mode & ~0o6070 | (mode & 0o7) << 3 & mode


def _carry_owner(source: os.stat_result, dest_fd: int, warnings: List[str]) -> bool:
    """True where the group is the source's group afterwards."""
    dest = os.fstat(dest_fd)
    if (dest.st_uid, dest.st_gid) == (source.st_uid, source.st_gid):
        return True
    try:
        os.fchown(dest_fd, source.st_uid, source.st_gid)
        return True
    except OSError as error:
        reason = error.strerror
    try:
        os.fchown(dest_fd, -1, source.st_gid)
    except OSError:
        warnings.append("Owner {0} and group {1} could not be preserved: {2}.".format(source.st_uid, source.st_gid, reason))
        return False
    if dest.st_uid != source.st_uid:
        warnings.append("Owner {0} could not be preserved: {1}.".format(source.st_uid, reason))
    return True


def _names(fd: int) -> Set[str]:
    try:
        return set(os.listxattr(fd))
    except OSError:
        return set()


def _carry_xattrs(source_fd: int, dest_fd: int, source: Set[str], group_carried: bool, warnings: List[str]) -> bool:
    """True where the result's access list is the source's afterwards (also where neither has one).

    :param source: the names to carry.
    """
    if _ACL not in source and _ACL in _names(dest_fd):
        # Inherited from the directory's default list: it would let in people whom the source does not.
        os.removexattr(dest_fd, _ACL)
    skipped = {name for name in source if name in _OF_THE_CONTENT or name.startswith(_OF_THE_INODE)}
    failed: Dict[str, List[str]] = {}
    # The label first: it restricts. The access list last: it opens.
    for name in sorted(source - skipped - {_ACL}, key=lambda item: (item != _LABEL, item)):
        failure = _carry_xattr(source_fd, dest_fd, name)
        if failure:
            failed.setdefault(failure, []).append(name)
    acl_failure = None
    if _ACL in source:
        acl_failure = _carry_xattr(source_fd, dest_fd, _ACL) if group_carried else "its group could not be preserved"
        if acl_failure:
            failed.setdefault(acl_failure, []).append(_ACL)
    for failure, names in sorted(failed.items()):
        shown = ", ".join(show(os.fsencode(name)) for name in names)
        warnings.append("Extended attributes could not be preserved ({0}): {1}.".format(failure, shown))
    return not acl_failure


def _carry_xattr(source_fd: int, dest_fd: int, name: str) -> str:
    """Empty where it is carried or was there already, else why not."""
    try:
        value = os.getxattr(source_fd, name)
    except OSError as error:
        return "" if error.errno == errno.ENODATA else error.strerror or str(error)
    try:
        if os.getxattr(dest_fd, name) == value:
            return ""
    except OSError as error:
        if error.errno not in _ABSENT:
            return error.strerror or str(error)
    try:
        os.setxattr(dest_fd, name, value)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _carry_flags(source_fd: int, dest_fd: int, warnings: List[str]) -> None:
    wanted, there = linux.get_flags(source_fd), linux.get_flags(dest_fd)
    if wanted is None or not wanted & _CARRIED_FLAGS:
        return
    if there is not None:
        try:
            if there | wanted & _CARRIED_FLAGS != there:
                linux.set_flags(dest_fd, there | wanted & _CARRIED_FLAGS)
            return
        except OSError:
            pass
    warnings.append("Inode flags (no dump, no atime, synchronous) could not be preserved to this filesystem.")


def set_access(fd: int, uid: Optional[int], gid: Optional[int], mode: Optional[int]) -> bool:
    """Give an open file an owner, a group and permissions, those that are not ``None``; whether anything was different.

    :raises OSError: it cannot be done.
    """
    status = os.fstat(fd)
    other = (status.st_uid if uid is None else uid, status.st_gid if gid is None else gid)
    changed = other != (status.st_uid, status.st_gid)
    if changed:
        os.fchown(fd, *other)  # takes set-id bits away
    if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
        changed = True
    return changed
