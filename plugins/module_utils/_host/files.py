# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Durable file operations. Everything that must survive a crash in a certain order is ordered here and nowhere else.

Each operation may be run again after a crash at any of its calls and then finishes what is left to do. Where names alone
cannot tell "not begun" from "done", the caller passes the inode number that its record holds (device numbers are not
compared: they may change at the next boot).
"""

import errno
import os
import stat
from typing import Any, Mapping, NamedTuple, Optional

from .._errors import ImageChanged, QcowError, StateError, TargetExists, UnsafeImage
from .._paths import show
from . import linux

_O_NOATIME = getattr(os, "O_NOATIME", 0)
# What a filesystem answers that cannot do what was asked, as opposed to refusing this one request.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)
_CANNOT_LINK = _CANNOT + (errno.EPERM, errno.EMLINK)


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
        status = os.lstat(path)
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


def _refused(path: bytes, what: str, error: OSError) -> QcowError:
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
        # Looked at before it is opened: opening some devices already does something.
        _accept_kind(path, os.lstat(path).st_mode, block_devices)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | _O_NOATIME)
        except PermissionError:
            fd = os.open(path, flags)  # O_NOATIME is for the owner and root only
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeImage("is a symbolic link, or is reached through a loop of them; it was not opened.", path=path) from error
        raise _refused(path, "cannot be opened for reading", error) from error
    try:
        _accept_kind(path, os.fstat(fd).st_mode, block_devices)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
    raise UnsafeImage("is {0}, not a regular file; it was not opened.".format(kind), path=path)


def check_name(path: bytes) -> None:
    """Refuse a name the filesystem could not store, before any work is done for it.

    :raises QcowError: with reason ``name-too-long`` or ``bad-name``.
    """
    directory, name = os.path.split(path)
    if b"\0" in path or name in (b"", b".", b".."):
        raise QcowError("is not a usable file name.", path=path, reason="bad-name")
    try:
        longest = os.pathconf(directory or b".", "PC_NAME_MAX")
    except (OSError, ValueError):
        longest = 255
    if len(name) > longest:
        raise QcowError(
            "the name would be {0} bytes long, the filesystem allows {1}.".format(len(name), longest),
            path=path,
            reason="name-too-long",
            hint="Nothing was changed. Give the image a shorter name, or name the destination yourself.",
        )
    if len(path) > 4095:
        raise QcowError("the path would be {0} bytes long, the kernel allows 4095.".format(len(path)), path=path, reason="name-too-long")


def sync_directory(path: bytes) -> None:
    """Make the names in a directory durable.

    :raises OSError: where the storage fails. Filesystems that cannot sync a directory (some network ones) are left at that.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(fd)


def _parent(path: bytes) -> bytes:
    return os.path.dirname(path) or b"."


def _sync_parents(*paths: bytes) -> None:
    done = []
    for path in paths:
        if _parent(path) not in done:
            done.append(_parent(path))
            sync_directory(done[-1])


def create_temporary(directory: bytes, name: bytes, mode: int = 0o600) -> int:
    """Create a new empty file, readable by nobody but us unless ``mode`` says otherwise.

    :return: a read-write descriptor that the caller closes.
    :raises TargetExists: where the name is taken, by whatever.
    :raises QcowError: where it cannot be created.
    """
    path = os.path.join(directory, name)
    check_name(path)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise TargetExists("the temporary name is taken; nothing was written.", path=path) from None
    except OSError as error:
        raise _refused(path, "cannot be created", error) from error


def _same(first: bytes, second: bytes) -> bool:
    one, two = identity_at(first), identity_at(second)
    return one is not None and two is not None and one.same_file(two)


def _taken(path: bytes) -> TargetExists:
    return TargetExists(
        "the name is taken; it was not overwritten.",
        path=path,
        hint="Look at what is there, move it away or choose another name, and run again.",
    )


def _move_without_overwriting(source: bytes, dest: bytes) -> None:
    """Give ``source`` the name ``dest`` in one step where the filesystem can, else in two of which either order of crash is harmless."""
    try:
        linux.renameat2(source, dest, linux.RENAME_NOREPLACE)
        return
    except FileExistsError:
        raise _taken(dest) from None
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    try:
        os.link(source, dest, follow_symlinks=False)
    except FileExistsError:
        raise _taken(dest) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        # Neither call exists here (FAT on an old kernel, some FUSE). What is left has a gap between look and rename.
        if os.path.lexists(dest):
            raise _taken(dest) from error
        os.rename(source, dest)
        return
    _sync_parents(dest)
    os.unlink(source)


def _rename_durably(source: bytes, dest: bytes, inode: Optional[int]) -> None:
    check_name(dest)
    try:
        there = inode_at(source)
        if there is None:
            if inode_at(dest) is None or inode is None or inode_at(dest) != inode:
                raise QcowError(
                    "is gone, and {0} is not the file that it was renamed to.".format(show(dest)), path=source, reason="missing"
                )
        elif inode is not None and there != inode:
            raise ImageChanged(
                "is not the file that was recorded (inode {0}, expected {1}).".format(there, inode),
                path=source,
                hint="It was left as it is.",
            )
        elif _same(source, dest):
            os.unlink(source)  # a crash came between link and unlink
        else:
            _move_without_overwriting(source, dest)
        _sync_parents(dest, source)
    except OSError as error:
        raise _refused(source, "cannot be renamed to {0}".format(show(dest)), error) from error


def publish_new(tmp: bytes, dest: bytes, *, inode: Optional[int] = None) -> None:
    """Give a finished temporary file its name. Never overwrites. On return file, new name and the old name's absence are durable.

    Sync the file through the descriptor that wrote it before: only that one is sure to hear of a failed write.

    :param inode: the inode number of ``tmp`` as recorded; lets a second run see that the first had finished.
    :raises TargetExists: ``dest`` is taken. :raises ImageChanged: ``tmp`` is another file than recorded.
    :raises QcowError: reason ``missing`` where neither name holds the file; ``name-too-long``; ``error``.
    """
    _sync_file(tmp)
    _rename_durably(tmp, dest, inode)


def _sync_file(path: bytes) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(path, "cannot be opened to be synced", error) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise _refused(path, "cannot be written to storage", error) from error
    finally:
        os.close(fd)


def retire(path: bytes, backup: bytes, *, inode: Optional[int] = None) -> None:
    """Rename an original to ``backup`` durably; never overwrites. Parameters and errors as for :func:`publish_new`."""
    _rename_durably(path, backup, inode)


def replace_keeping(tmp: bytes, dest: bytes, backup: bytes, *, inode: int) -> None:
    """The file ``tmp`` takes the name ``dest`` while the old file stays reachable as ``backup``. ``dest`` exists at every instant.

    :param inode: the inode number of the result (``tmp`` before the first run), as recorded.
    :raises TargetExists: ``backup`` is taken by something else. :raises StateError: what lies there fits no step of this operation.
    :raises QcowError: reason ``unsupported-filesystem`` where neither hard links nor exchanging exist; ``missing``; ``error``.
    """
    check_name(backup)
    _sync_file(tmp)
    try:
        if inode_at(dest) is None:
            raise QcowError("is gone; there is nothing to replace.", path=dest, reason="missing")
        if inode_at(dest) == inode:
            _finish_exchange(tmp, dest, backup)
        elif inode_at(tmp) != inode:
            raise StateError(
                "neither it nor {0} is the recorded result (inode {1}).".format(show(dest), inode), path=tmp, hint="Nothing was changed."
            )
        elif _keep_as(dest, backup):
            _sync_parents(backup)
            os.rename(tmp, dest)
        else:
            _exchange(tmp, dest)
            _sync_parents(dest, tmp)
            _move_without_overwriting(tmp, backup)
        _sync_parents(dest, backup, tmp)
    except OSError as error:
        raise _refused(dest, "cannot be replaced by {0}".format(show(tmp)), error) from error


def _finish_exchange(tmp: bytes, dest: bytes, backup: bytes) -> None:
    """``dest`` is the result already; the old file may still carry the temporary name."""
    if inode_at(tmp) is not None and not _same(tmp, dest):
        if _same(tmp, backup):
            os.unlink(tmp)
        else:
            _move_without_overwriting(tmp, backup)
    elif inode_at(backup) is None:
        raise StateError("the old file was expected here and is gone.", path=backup, hint="The new file is in place and was not touched.")


def _keep_as(dest: bytes, backup: bytes) -> bool:
    """Link the old file to its second name; False where this filesystem or our rights do not allow hard links."""
    try:
        os.link(dest, backup, follow_symlinks=False)
        return True
    except FileExistsError:
        if _same(dest, backup):
            return True
        raise _taken(backup) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        if os.path.lexists(backup):
            raise _taken(backup) from error
        return False


def _exchange(tmp: bytes, dest: bytes) -> None:
    try:
        linux.renameat2(tmp, dest, linux.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        raise QcowError(
            "cannot be replaced atomically: the filesystem supports neither hard links nor exchanging names.",
            path=dest,
            reason="unsupported-filesystem",
            hint="Nothing was changed. Choose another name for the result.",
        ) from error


def remove_durably(path: bytes, *, inode: Optional[int] = None) -> bool:
    """Remove a name and make its absence durable; no error where it is gone already.

    :param inode: remove only this file. :return: whether there was something to remove.
    :raises ImageChanged: another file has the name. :raises QcowError: where it cannot be removed.
    """
    try:
        there = inode_at(path)
        if there is not None and inode is not None and there != inode:
            raise ImageChanged(
                "is not the file that was recorded (inode {0}, expected {1}).".format(there, inode), path=path, hint="It was left as it is."
            )
        if there is not None:
            os.unlink(path)
        if os.path.isdir(_parent(path)):
            _sync_parents(path)
    except OSError as error:
        raise _refused(path, "cannot be removed", error) from error
    return there is not None
