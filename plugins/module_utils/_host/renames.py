# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Durable renames and removals. Everything that must survive a crash in a certain order is ordered here and nowhere else.

Each operation may be run again after a crash at any of its calls and then finishes what is left to do. Where names alone
cannot tell "not begun" from "done", the caller passes the inode number that its record holds (device numbers are not
compared: they may change at the next boot).

No call here takes a path: each takes a name in a directory that was opened by the rules of :mod:`.._directories`.
"""

import errno
import os
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

from .._directories import CANNOT, open_directory, sync_names
from .._errors import ImageChanged, QcowError, StateError, TargetExists
from .._paths import show
from . import filesystem, linux
from .files import check_name, refused

_CANNOT_LINK = (*CANNOT, errno.EPERM, errno.EMLINK)


class _Place(NamedTuple):
    """A name in an open directory; ``path`` is for messages."""

    directory: int
    name: bytes
    path: bytes

    def status(self) -> Optional[os.stat_result]:
        """Of what has the name; ``None`` where nothing has it."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def inode(self) -> Optional[int]:
        """The inode number of what has the name; ``None`` where nothing has it."""
        there = self.status()
        return None if there is None else there.st_ino

    def require(self, inode: Optional[int]) -> Optional[int]:
        """As :meth:`inode`, of the file that a record has noted, where it has noted one.

        :raises ImageChanged: another file has the name.
        """
        there = self.inode()
        if inode is not None and there not in (None, inode):
            raise ImageChanged(
                "is not the file that was recorded (inode {0}, expected {1}).".format(there, inode),
                path=self.path,
                hint="It was left as it is.",
            )
        return there

    def unlink(self) -> None:
        os.unlink(self.name, dir_fd=self.directory)

    def rename(self, to: "_Place") -> None:
        os.rename(self.name, to.name, src_dir_fd=self.directory, dst_dir_fd=to.directory)

    def link(self, to: "_Place") -> None:
        os.link(self.name, to.name, src_dir_fd=self.directory, dst_dir_fd=to.directory, follow_symlinks=False)

    def renameat2(self, to: "_Place", flags: int) -> None:
        linux.renameat2(self.name, to.name, flags, src_dir_fd=self.directory, dst_dir_fd=to.directory)


@contextmanager
def _places(*paths: bytes) -> Iterator[Tuple[_Place, ...]]:
    """The places of paths; each directory is opened once, so that all of an operation happens in it, whatever becomes of its name."""
    opened: Dict[bytes, int] = {}
    try:
        for path in paths:
            parent = os.path.dirname(path) or b"."
            if parent not in opened:
                opened[parent] = open_directory(parent)
        yield tuple(_Place(opened[os.path.dirname(path) or b"."], os.path.basename(path), path) for path in paths)
    finally:
        for fd in opened.values():
            os.close(fd)


def _sync_all(*places: _Place) -> None:
    for directory in dict.fromkeys(place.directory for place in places):
        sync_names(directory)


def _same(one: _Place, other: _Place) -> bool:
    first, second = one.status(), other.status()
    return first is not None and second is not None and os.path.samestat(first, second)


def _taken(path: bytes) -> TargetExists:
    return TargetExists(
        "the name is taken; it was not overwritten.",
        path=path,
        hint="Find out what has taken it. Choose another name, or run again when this one is free.",
    )


def _move_without_overwriting(source: _Place, dest: _Place) -> None:
    """Give ``source`` the name ``dest`` in one step where the filesystem can, else in two of which either order of crash is harmless."""
    try:
        source.renameat2(dest, linux.RENAME_NOREPLACE)
        return
    except FileExistsError:
        raise _taken(dest.path) from None
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    try:
        source.link(dest)
    except FileExistsError:
        raise _taken(dest.path) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        # Neither call exists here (FAT on an old kernel, some FUSE). What is left has a gap between look and rename.
        if dest.inode() is not None:
            raise _taken(dest.path) from error
        source.rename(dest)
        return
    _sync_all(dest)
    source.unlink()


def _rename_durably(source_path: bytes, dest_path: bytes, inode: Optional[int], *, sync_file: bool = False) -> None:
    check_name(dest_path)
    try:
        with _places(source_path, dest_path) as (source, dest):
            if sync_file:
                _sync_file(source)
            if source.require(inode) is None:
                if dest.inode() is None or inode is None or dest.inode() != inode:
                    raise QcowError(
                        "is gone, and {0} is not the file that it was renamed to.".format(show(dest_path)),
                        path=source_path,
                        reason="missing",
                    )
            elif _same(source, dest):
                source.unlink()  # a crash came between link and unlink
            else:
                _move_without_overwriting(source, dest)
            _sync_all(dest, source)
    except OSError as error:
        raise refused(source_path, "cannot be renamed to {0}".format(show(dest_path)), error) from error


def publish_new(tmp: bytes, dest: bytes, *, inode: Optional[int] = None) -> None:
    """Give a finished temporary file its name. Never overwrites. On return file, new name and the old name's absence are durable.

    Sync the file through the descriptor that wrote it before: only that one is sure to hear of a failed write.

    :param inode: the inode number of ``tmp`` as recorded; lets a second run see that the first had finished.
    :raises TargetExists: ``dest`` is taken. :raises ImageChanged: ``tmp`` is another file than recorded.
    :raises QcowError: reason ``missing`` where neither name holds the file; ``name-too-long``; ``error``.
    """
    _rename_durably(tmp, dest, inode, sync_file=True)


def _sync_file(place: _Place) -> None:
    try:
        fd = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place.directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(place.path, "cannot be opened to be synced", error) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise refused(place.path, "cannot be written to storage", error) from error
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
    try:
        with _places(tmp, dest, backup) as places:
            _sync_file(places[0])
            _replace_keeping(*places, inode=inode)
    except OSError as error:
        raise refused(dest, "cannot be replaced by {0}".format(show(tmp)), error) from error


def _replace_keeping(tmp: _Place, dest: _Place, backup: _Place, *, inode: int) -> None:
    if dest.inode() is None:
        raise QcowError("is gone; there is nothing to replace.", path=dest.path, reason="missing")
    if dest.inode() == inode:
        _finish_exchange(tmp, dest, backup)
    elif tmp.inode() != inode:
        raise StateError(
            "neither it nor {0} is the recorded result (inode {1}).".format(show(dest.path), inode),
            path=tmp.path,
            hint="Nothing was changed.",
        )
    elif _keep_as(dest, backup):
        _sync_all(backup)
        tmp.rename(dest)
    else:
        _exchange(tmp, dest)
        _sync_all(dest, tmp)
        _move_without_overwriting(tmp, backup)
    _sync_all(dest, backup, tmp)


def _finish_exchange(tmp: _Place, dest: _Place, backup: _Place) -> None:
    """``dest`` is the result already; the old file may still carry the temporary name."""
    if tmp.inode() is not None and not _same(tmp, dest):
        if _same(tmp, backup):
            tmp.unlink()
        else:
            _move_without_overwriting(tmp, backup)
    elif backup.inode() is None:
        raise StateError(
            "the old file was expected here and is gone.", path=backup.path, hint="The new file is in place and was not touched."
        )


def _keep_as(dest: _Place, backup: _Place) -> bool:
    """Link the old file to its second name; False where this filesystem or our rights do not allow hard links."""
    try:
        dest.link(backup)
        return True
    except FileExistsError:
        if _same(dest, backup):
            return True
        raise _taken(backup.path) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        if backup.inode() is not None:
            raise _taken(backup.path) from error
        return False


def _exchange(tmp: _Place, dest: _Place) -> None:
    try:
        tmp.renameat2(dest, linux.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        raise irreplaceable(dest.path) from error


def irreplaceable(path: bytes) -> QcowError:
    """The error, reason ``unsupported-filesystem``, of a file that :func:`replace_keeping` cannot replace where it lies."""
    return QcowError(
        "cannot be replaced under its own name: its filesystem ({0}) has neither hard links nor an exchange of names".format(
            filesystem.kind_of(os.path.dirname(path)).name
        ),
        path=path,
        reason="unsupported-filesystem",
        hint="Nothing was changed. Give the result another name or directory with dest, without keep_name.",
    )


def can_replace_keeping(directory: bytes) -> bool:
    """Whether :func:`replace_keeping` works in a directory: tried with two empty files of our own, which are gone afterwards. A kill in between
    leaves hidden empty files that mean nothing.

    :raises QcowError: no files can be created there.
    """
    stem = os.path.join(directory, b".vmimage-qcow.%d.%s" % (os.getpid(), os.urandom(8).hex().encode("ascii")))
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with _places(stem + b".1.tmp", stem + b".2.tmp", stem + b".3.tmp") as places:
            old, new, kept = places
            try:
                for place in (old, new):
                    os.close(os.open(place.name, flags, 0o600, dir_fd=place.directory))
                if not _keep_as(old, kept):
                    _exchange(new, old)
            finally:
                for place in places:
                    if place.inode() is not None:
                        place.unlink()
    except QcowError as error:
        if error.reason != "unsupported-filesystem":
            raise
        return False
    except OSError as error:
        raise refused(directory, "no temporary file can be created in it", error) from error
    return True


def remove_durably(path: bytes, *, inode: Optional[int] = None) -> bool:
    """Remove a name and make its absence durable; no error where it is gone already.

    :param inode: remove only this file. :return: whether there was something to remove.
    :raises ImageChanged: another file has the name. :raises QcowError: where it cannot be removed.
    """
    try:
        with _places(path) as (place,):
            there = place.require(inode)
            if there is not None:
                place.unlink()
            _sync_all(place)
    except (FileNotFoundError, NotADirectoryError):
        return False  # nor is there a directory
    except OSError as error:
        raise refused(path, "cannot be removed", error) from error
    return there is not None
