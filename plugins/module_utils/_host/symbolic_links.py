# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Symbolic links that walks have met, the files that they lead to, and how one is made to lead elsewhere."""

import errno
import os
import pwd
import stat
from typing import Dict, Iterable, List, NamedTuple, Optional, Set

from .._access import WRITE, Stranger, access_of, is_stranger
from .._directories import CANNOT, link_at, place_of, sync_names
from .._paths import show
from . import linux
from .files import refused
from .places import Places


class SymbolicLink(NamedTuple):
    """A link whose target is a file itself, and not another link to it. ``target`` is what it says."""

    path: bytes
    target: bytes


class SymbolicLinks:
    """The links that walks have met. One may lead to a file by others, met or not: the last one of them is the one that names it."""

    def __init__(self) -> None:
        self._met: Set[bytes] = set()

    def add(self, paths: Iterable[bytes]) -> None:
        """Take in links that were met."""
        self._met.update(paths)

    def add_named(self, path: bytes) -> None:
        """Take in a name that something gives to a file, if it is a link."""
        if link_at(path) is not None:
            self._met.add(path)

    def to(self, files: Iterable[bytes]) -> Dict[bytes, List[SymbolicLink]]:
        """The links to each of these files that has any, by their paths without symbolic links."""
        if not self._met:
            return {}
        files = list(files)
        places = Places({os.path.dirname(path) for path in (*files, *self._met)})
        keys = {entry.key: path for path in files for entry in places.entries(path)[:1]}
        found: Dict[bytes, Dict[bytes, bytes]] = {}
        for met in self._met:
            entries = places.entries(met)
            path = keys.get(entries[-1].key) if len(entries) > 1 else None
            target = link_at(entries[-2].path) if path is not None else None
            if path is not None and target is not None:
                found.setdefault(path, {})[entries[-2].path] = target
        return {path: [SymbolicLink(*item) for item in sorted(links.items())] for path, links in found.items()}


def replace_link(path: bytes, before: bytes, after: bytes, temporary: bytes) -> bool:
    """Make a symbolic link that says ``before`` say ``after``, durably; it keeps its owner. The link exists at every instant. What somebody puts in its
    place meanwhile is not lost where the filesystem can exchange names. May run again after a crash.

    :param temporary: a name beside it that nobody else uses.
    :return: whether the link says ``after`` now; it is left as it is where it says anything else than ``before``, or is gone.
    :raises QcowError: where it cannot be replaced, or reached.
    """
    try:
        with place_of(path) as (directory, name):
            if _says(directory, temporary) in (before, after):
                os.unlink(temporary, dir_fd=directory)  # a crash left it
            says = _says(directory, name)
            if says == before != after:
                _make(directory, temporary, after, os.stat(name, dir_fd=directory, follow_symlinks=False))
                says = _put(directory, temporary, name, before, after)
                sync_names(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False  # nor is there a directory
    except OSError as error:
        raise refused(path, "cannot be pointed to {0}".format(show(after)), error) from error
    return says == after


def _says(directory: int, name: bytes) -> Optional[bytes]:
    """What a symbolic link says; ``None`` where the name has none."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return None


def _make(directory: int, name: bytes, target: bytes, like: os.stat_result) -> None:
    """Make a link with the owner of another one. One of root's would be trusted where a stranger's is not, and a stranger could move it there: in a
    directory of theirs it is made by them, elsewhere it is given to them.
    """
    if not is_stranger(like.st_uid):
        os.symlink(target, name, dir_fd=directory)
        return
    if access_of(directory).writers():
        _symlink_as(like.st_uid, like.st_gid, target, name, directory)
        return
    os.symlink(target, name, dir_fd=directory)
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chown(b"/proc/self/fd/%d" % fd, like.st_uid, like.st_gid, dir_fd=directory)  # a full path: the directory does not count
    finally:
        os.close(fd)


def can_be_replaced(directory: int, status: os.stat_result) -> bool:
    """Whether :func:`replace_link` has the right to replace a link in an open directory, by what ``lstat`` says of it."""
    if not os.access(b"/proc/self/fd/%d" % directory, os.W_OK):
        return False
    access, owner = access_of(directory), Stranger(status.st_uid, None)
    return not is_stranger(status.st_uid) or not access.writers() or access.allows(owner, owner.groups(), WRITE)


def _symlink_as(uid: int, gid: int, target: bytes, name: bytes, directory: int) -> None:
    """Make a link with the rights of a user: in a process of its own, so that nothing of this one's rights and ties changes.

    :raises OSError: as the call does.
    """
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            try:
                groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
            except KeyError:
                groups = [gid]
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.symlink(target, name, dir_fd=directory)
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    code = os.waitpid(pid, 0)[1] >> 8
    if code:
        raise OSError(code, os.strerror(code))


def _put(directory: int, fresh: bytes, name: bytes, before: bytes, after: bytes) -> Optional[bytes]:
    """What the link says when it has been replaced by a fresh one, or has turned out to be something else by now."""
    try:
        linux.renameat2(fresh, name, linux.RENAME_EXCHANGE, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        os.unlink(fresh, dir_fd=directory)  # the link went meanwhile
        return None
    except OSError as error:
        if error.errno not in CANNOT:
            os.unlink(fresh, dir_fd=directory)
            raise
        now = _says(directory, name)
        if now != before:
            os.unlink(fresh, dir_fd=directory)
            return now
        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
        return after
    says: Optional[bytes] = after
    if _says(directory, fresh) != before:
        linux.renameat2(fresh, name, linux.RENAME_EXCHANGE, src_dir_fd=directory, dst_dir_fd=directory)
        says = _says(directory, name)
    os.unlink(fresh, dir_fd=directory)
    return says
