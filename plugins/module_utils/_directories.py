# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Directories reached so that nobody but us and root decides where a path leads.

A path is walked one component at a time, each opened below the one before it. A symbolic link is followed only where no stranger could have put
it: anyone who can write in a directory could otherwise have a run of root's read or write wherever the link points. Whoever may write in a
directory on the way can still put another directory there, but only one that they may move anyway.
"""

import errno
import os
import stat
from contextlib import contextmanager
from typing import AnyStr, Callable, Iterator, List, Optional, Tuple

from ._access import Access, access_of, is_stranger
from ._errors import StateError, UnsafeImage
from ._paths import show

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as in the kernel


def can_exchange(directory: int, entry: os.stat_result) -> bool:
    """Whether a stranger could have put an entry of an open directory there, or can put another in its place."""
    status = os.fstat(directory)
    if status.st_mode & stat.S_ISVTX and not is_stranger(status.st_uid):
        return is_stranger(entry.st_uid)  # only its owner can rename it, and nobody can create one in another's name
    return bool(access_of(directory).writers())


def open_directory(path: bytes) -> int:
    """Open a directory, whatever symbolic links of root's or our own lead to it.

    :return: a descriptor (``O_PATH``: for calls that take a directory's descriptor) that the caller closes.
    :raises UnsafeImage: a stranger could have made one of the links.
    :raises OSError: where it cannot be reached.
    """
    return _walk(path)[0]


def real_directory(path: bytes) -> bytes:
    """The path of a directory without symbolic links, resolved by the rules and with the errors of :func:`open_directory`."""
    fd, real = _walk(path)
    os.close(fd)
    return real


def real_path(path: bytes) -> bytes:
    """A path without symbolic links, whoever made them. From the first component on that is no directory or link, the rest is taken as it is written.

    For comparing names; what is opened by it is opened by the rules above.
    """
    rest: List[bytes] = []
    fd, real = _walk(path, rest=rest)
    os.close(fd)
    return os.path.normpath(os.path.join(real, *rest))


def status_of(path: bytes) -> os.stat_result:
    """What ``lstat`` says of a path, reached by the rules and with the errors of :func:`open_directory`."""
    with place_of(path) as (directory, name):
        return os.stat(name or b".", dir_fd=directory, follow_symlinks=False)


def link_at(path: bytes) -> Optional[bytes]:
    """What a symbolic link says; ``None`` for what is no link, is not there, or is reached by a link that may not be followed."""
    try:
        with place_of(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)
    except (OSError, UnsafeImage, ValueError):  # a name from a header may hold a NUL byte
        return None


def behind_links(path: bytes) -> bytes:
    """A path whose last component is no symbolic link: one is followed where no stranger could have put it.

    :raises UnsafeImage: a stranger could. :raises OSError: where it leads nowhere.
    """
    for _link in range(_MOST_LINKS):
        with place_of(path) as (directory, name):
            try:
                path = os.path.join(os.path.dirname(path), target_of(path, directory, name or b".", path))
            except NotADirectoryError:
                return path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def access_on(path: bytes) -> List[Tuple[bytes, Access]]:
    """Every directory on the way to a path, without symbolic links, and who may do what with it; that of the path is the last.

    Resolved by the rules and with the errors of :func:`open_directory`.
    """
    passed: List[Tuple[bytes, Access]] = []
    fd, _real = _walk(path, lambda names, fd: passed.append((b"/" + b"/".join(names), access_of(fd))))
    os.close(fd)
    return passed


def _walk(
    path: bytes, visit: Callable[[List[bytes], int], None] = lambda _names, _fd: None, *, rest: Optional[List[bytes]] = None
) -> Tuple[int, bytes]:
    """Walk a path: the directory where that ends, opened, and its path.

    :param visit: is given each directory on the way. :param rest: if given, no link is judged, and it gets the components that do not lead on.
    """
    if not path.startswith(b"/"):
        path = os.path.join(os.getcwdb(), path)
    pending = _components(path)
    fd, names = os.open(b"/", _FLAGS), []  # type: Tuple[int, List[bytes]]
    links = 0
    try:
        visit(names, fd)
        while pending:
            name = pending.pop()
            try:
                below = os.open(name, _FLAGS, dir_fd=fd)
            except OSError as error:
                links += 1
                try:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
                    link = b"/" + b"/".join([*names, name])
                    target = target_of(path, fd, name, link) if rest is None else os.readlink(name, dir_fd=fd)
                except OSError:
                    if rest is None:
                        raise
                    rest.extend([name] + pending[::-1])
                    break
                pending.extend(_components(target))
                below = os.open(b"/", _FLAGS) if target.startswith(b"/") else os.dup(fd)
                names = [] if target.startswith(b"/") else names
            else:
                names = names[:-1] if name == b".." else [*names, name]
            os.close(fd)
            fd = below
            visit(names, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, b"/" + b"/".join(names)


def _components(path: bytes) -> List[bytes]:
    """The names of a path, the last one first."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


def target_of(path: bytes, directory: int, name: bytes, link: bytes) -> bytes:
    """Where a symbolic link in an open directory leads, if no stranger could have put it there.

    :param path: that is being followed, for messages. :param link: the link's own, likewise.
    :raises UnsafeImage: a stranger could. :raises NotADirectoryError: it is no link.
    """
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if can_exchange(directory, status):
        raise UnsafeImage(
            "is reached through the symbolic link {0}, which users other than root can change; it was not followed".format(show(link)),
            path=path,
            hint="Nothing was changed. Give the path without the link, or let root own the link and the directory that it is in.",
        )
    return os.readlink(name, dir_fd=directory)


@contextmanager
def place_of(path: bytes) -> Iterator[Tuple[int, bytes]]:
    """The directory of a path, opened by :func:`open_directory`, and the last component: for calls that take a directory's descriptor.

    :raises UnsafeImage: see there. :raises OSError: see there; of the call that is made with it.
    """
    directory, name = os.path.split(path)
    fd = open_directory(directory or b".")
    try:
        yield fd, name
    finally:
        os.close(fd)


def is_directory(path: bytes) -> bool:
    """Whether :func:`open_directory` can open it."""
    try:
        os.close(open_directory(path))
        return True
    except (OSError, UnsafeImage):
        return False


def exists(path: AnyStr) -> bool:
    """Whether anything has a name, a symbolic link included.

    What is reached by a link that may not be followed counts as there: whoever opens it is told why it cannot be.
    """
    try:
        status_of(os.fsencode(path))
    except (OSError, ValueError):
        return False
    except UnsafeImage:
        pass
    return True


def remove(path: bytes) -> None:
    """Remove a file.

    :raises UnsafeImage: see :func:`open_directory`. :raises OSError: as the call does.
    """
    with place_of(path) as (directory, name):
        os.unlink(name, dir_fd=directory)


def make_directory(path: bytes, mode: int = 0o700) -> None:
    """Make a directory and what is missing above it, each durable before the next.

    :param mode: of each directory that is made.
    :raises UnsafeImage: see :func:`open_directory`. :raises OSError: where it cannot be made.
    """
    try:
        os.close(open_directory(path))
        return
    except FileNotFoundError:
        pass
    path = path.rstrip(b"/")
    make_directory(os.path.dirname(path) or b".", mode)
    with place_of(path) as (directory, name):
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            pass
        sync_names(directory)
    os.close(open_directory(path))


CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)
"""What a filesystem answers that cannot do what was asked, as opposed to refusing this one request."""


def sync_names(directory: int) -> None:
    """Make the names in an open directory durable.

    :raises OSError: where the storage fails. Filesystems that cannot sync a directory (some network ones) are left at that.
    """
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    finally:
        os.close(fd)


def require_ours(directory: bytes, *inside: bytes) -> None:
    """Make sure that what lies in a directory, and in directories inside it, was put there by root or us. One that does not exist is nobody's.

    :raises StateError: one of them, or a directory above, can be changed by others, or it is a symbolic link.
    """
    for depth in range(len(inside) + 1):
        path = os.path.join(directory, *inside[:depth]).rstrip(b"/") or b"/"
        try:
            problem = _not_ours(path)
        except OSError:
            return
        except UnsafeImage as error:
            problem = str(error.message)
        if problem is not None:
            raise StateError(
                "{0}: what is in it may have been put there by others".format(problem),
                path,
                hint="Nothing was changed. Give it to the user that the runs work as, with mode 0700 (chown, chmod), or choose another state_dir.",
            )


def _not_ours(path: bytes) -> Optional[str]:
    """By whom else than root and us what is in a directory may have been put there, in words."""
    with place_of(path) as (parent, name):
        mode = os.stat(name or b".", dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return "{0} is {1}".format(show(path), "a symbolic link" if stat.S_ISLNK(mode) else "not a directory")
    passed = access_on(path)
    for number, (place, access) in enumerate(passed, 1):
        writers = access.writers()
        if is_stranger(access.uid):
            return "{0} belongs to user {1}".format(show(place), access.uid)
        # In a sticky directory on the way only the next one's owner can exchange it, and that is looked at next.
        if writers and (number == len(passed) or not access.mode & stat.S_ISVTX):
            return "{0} can be written by {1}".format(show(place), writers[0])
    return None
