# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files opened, created and identified so that nobody else decides which: no call takes a path, each takes a name in a directory that was opened by
the rules of :mod:`.._directories`.
"""

import errno
import os
import stat
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, NamedTuple, Optional

from .._directories import CANNOT, open_directory, place_of, real_path, status_of, sync_names
from .._errors import QcowError, TargetExists, UnsafeImage
from .._paths import show
from . import filesystem

_O_NOATIME = getattr(os, "O_NOATIME", 0)


class FileIdentity(NamedTuple):
    """Which file it is (``dev``, ``ino``) and which state of it (``size`` in bytes, times in nanoseconds).

    ``ctime_ns`` also moves when the file is renamed, linked or chmodded: after such a step of our own compare with :meth:`same_content`.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def same_file(self, other: "FileIdentity") -> bool:
        """Whether both name the same inode, whatever happened to it."""
        return (self.dev, self.ino) == (other.dev, other.ino)

    def same_content(self, other: "FileIdentity") -> bool:
        """Whether both are the same inode with the same size and modification time."""
        return self[:4] == other[:4]

    def is_recorded(self, facts: Mapping[str, Any]) -> bool:
        """Whether it is the file that a record has noted, and has not been written since.

        :param facts: ``ino``, ``size`` and ``mtime_ns``. Device numbers change with a restart of the host and do not count.
        """
        return (facts.get("ino"), facts.get("size"), facts.get("mtime_ns")) == (self.ino, self.size, self.mtime_ns)


def identity_at(path: bytes) -> Optional[FileIdentity]:
    """The identity of the file that has a name; ``None`` where nothing has it. A symbolic link is not followed."""
    try:
        status = status_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def inode_at(path: Optional[bytes]) -> Optional[int]:
    """The inode number of what has a name; ``None`` where nothing has it."""
    there = None if path is None else identity_at(path)
    return None if there is None else there.ino


def identity(fd: int) -> FileIdentity:
    """The identity of an open file; for a block device the size is the device's, in bytes."""
    return _identity_of(os.fstat(fd), fd)


def _identity_of(status: os.stat_result, fd: int) -> FileIdentity:
    size = status.st_size
    if stat.S_ISBLK(status.st_mode):
        position = os.lseek(fd, 0, os.SEEK_CUR)
        size = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, position, os.SEEK_SET)
    return FileIdentity(status.st_dev, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)


def refused(path: bytes, what: str, error: OSError) -> QcowError:
    """The error for a call that the kernel has refused; ``what`` is what could not be done."""
    reasons = {
        errno.ENOENT: "missing",
        errno.EACCES: "unreadable",
        errno.EPERM: "unreadable",
        errno.ENOSPC: "no-space",
        errno.EROFS: "read-only",
    }
    return QcowError(
        "{0}: {1}.".format(what, error.strerror or error),
        path=path,
        reason=reasons.get(error.errno or 0, "error"),
        errno=errno.errorcode.get(error.errno or 0),
    )


def open_source(path: bytes, *, block_devices: bool = False) -> int:
    """Open a file for reading in a way that changes nothing: no atime, no waiting, no symbolic link as last component.

    :param block_devices: accept a block device as well as a regular file.
    :return: a descriptor that the caller closes.
    :raises UnsafeImage: for a symbolic link, a FIFO, a socket, a device.
    :raises QcowError: with reason ``missing`` or ``unreadable`` or ``error``.
    """
    try:
        with place_of(path) as (directory, name):
            # Looked at before it is opened: opening some devices already does something.
            _accept_kind(path, os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode, block_devices)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                fd = os.open(name, flags | _O_NOATIME, dir_fd=directory)
            except PermissionError:
                fd = os.open(name, flags, dir_fd=directory)  # O_NOATIME is for the owner and root only
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeImage("is a symbolic link, or is reached through a loop of them; it was not opened.", path=path) from error
        raise refused(path, "cannot be opened for reading", error) from error
    try:
        _accept_kind(path, os.fstat(fd).st_mode, block_devices)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def looked_at(path: bytes) -> Iterator[int]:
    """A file opened to learn what and whose it is (``O_PATH``), which nobody can prevent by a lease; a symbolic link is not followed.

    :raises UnsafeImage: see :func:`.open_directory`. :raises OSError: where it cannot be reached.
    """
    with place_of(path) as (directory, name):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _accept_kind(path: bytes, mode: int, block_devices: bool) -> None:
    if stat.S_ISREG(mode) or (block_devices and stat.S_ISBLK(mode)):
        return
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    kind = next((name for test, name in kinds if test(mode)), "of an unknown kind")
    hint = "If you mean the file that it leads to, give that: {0}.".format(show(real_path(path))) if stat.S_ISLNK(mode) else None
    raise UnsafeImage("is {0}, not a regular file; it was not opened.".format(kind), path=path, hint=hint)


def check_name(path: bytes) -> None:
    """Refuse a name the filesystem could not store, before any work is done for it.

    :raises QcowError: with reason ``name-too-long`` or ``bad-name``.
    """
    name = os.path.basename(path)
    if b"\0" in path or name in (b"", b".", b".."):
        raise QcowError("is not a usable file name.", path=path, reason="bad-name")
    try:
        with place_of(path) as (directory, _name):
            longest = os.fpathconf(directory, "PC_NAME_MAX")
    except (OSError, UnsafeImage, ValueError):
        longest = 255
    if len(name) > longest:
        raise QcowError(
            "the name would be {0} bytes long, the filesystem allows {1}.".format(len(name), longest),
            path=path,
            reason="name-too-long",
            hint="Nothing was changed. Give the image a shorter name, or name the destination yourself.",
        )
    why = filesystem.unstorable(os.path.dirname(path), name)
    if why is not None:
        raise QcowError(
            why,
            path=path,
            reason="bad-name",
            hint="Nothing was changed. Name the destination yourself, or choose one on another filesystem.",
        )
    if len(path) > 4095:
        raise QcowError("the path would be {0} bytes long, the kernel allows 4095.".format(len(path)), path=path, reason="name-too-long")


def sync_directory(path: bytes) -> None:
    """Make the names in a directory durable.

    :raises OSError: where the storage fails. Filesystems that cannot sync a directory (some network ones) are left at that.
    """
    fd = open_directory(path)
    try:
        sync_names(fd)
    finally:
        os.close(fd)


def create_temporary(directory: bytes, name: bytes, mode: int = 0o600) -> int:
    """Create a new empty file, readable by nobody but us unless ``mode`` says otherwise.

    :return: a read-write descriptor that the caller closes.
    :raises TargetExists: where the name is taken, by whatever.
    :raises QcowError: where it cannot be created.
    """
    path = os.path.join(directory, name)
    check_name(path)
    try:
        with place_of(path) as (place, last):
            return os.open(last, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=place)
    except FileExistsError:
        raise TargetExists("the temporary name is taken; nothing was written.", path=path) from None
    except OSError as error:
        raise refused(path, "cannot be created", error) from error


def create_nameless(directory: bytes) -> int:
    """Create a new empty file that has no name, so that nobody can exchange it and nothing is left of it after a crash. (Where the filesystem
    knows no ``O_TMPFILE`` it has one for a moment; a crash in that moment leaves an empty file.)

    :return: a read-write descriptor that the caller closes. :raises QcowError: where it cannot be created.
    """
    fd = -1
    try:
        fd = open_directory(directory)
        try:
            return os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=fd)
        except OSError as error:
            if error.errno not in (*CANNOT, errno.EISDIR, errno.ENOENT):
                raise
        name = b".vmimage-qcow.%d.%s.tmp" % (os.getpid(), os.urandom(8).hex().encode("ascii"))
        made = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        os.unlink(name, dir_fd=fd)
        return made
    except OSError as error:
        raise refused(directory, "no temporary file can be created in it", error) from error
    finally:
        if fd >= 0:
            os.close(fd)
