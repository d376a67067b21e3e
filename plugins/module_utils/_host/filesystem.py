# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the filesystem of a directory can do: known before anything is copied to it, and without a trace."""

import errno
import os
import re
import resource
from typing import NamedTuple, Optional

from .._directories import is_directory, open_directory, place_of
from .._errors import UnsafeImage
from . import linux


class Kind(NamedTuple):
    """What a type of filesystem is known for."""

    name: str  # of the type, as mount names it
    keeps: Optional[bool] = None  # whether a file can be replaced while the old one stays reachable; None: it has to be tried
    folds: bool = False  # names that differ only by case are one name
    windows_names: bool = False
    largest: Optional[int] = None  # bytes that a file can have at most, where that is a matter of the type alone
    holes: bool = True  # a file occupies no more than what was written to it


class Limit(NamedTuple):
    """``size``: bytes that a file can have at most; ``whose`` limit that is, in words; ``ours``: a limit of this process."""

    size: int
    whose: str
    ours: bool


_RENAMING = "bcachefs btrfs ceph ext2 ext3 ext4 f2fs fuse.glusterfs gfs2 jfs nfs nfs4 ocfs2 overlay ramfs reiserfs tmpfs xfs zfs".split()
_FAT = Kind("vfat", folds=True, windows_names=True, largest=(4 << 30) - 1, holes=False)  # exchanges names since Linux 6.0
_KINDS = {
    "vfat": _FAT,
    "msdos": _FAT._replace(name="msdos", keeps=False),
    "exfat": _FAT._replace(name="exfat", keeps=False, largest=None),
    "ntfs": Kind("ntfs", keeps=True, windows_names=True),
    "ntfs3": Kind("ntfs3", keeps=True, windows_names=True),
}
_KINDS.update((name, Kind(name, keeps=True)) for name in _RENAMING)

# What no name on FAT, exFAT and NTFS may hold or end with: some drivers refuse it, some drop it, some store what no other system can read.
_RESERVED = re.compile(rb'[\x00-\x1f"*:<>?|\\]|[. ]\Z')
# Behind a FUSE mount of a block device: offset and bytes of the mark in its first sector.
_MARKS = ((3, b"EXFAT   ", "exfat"), (3, b"NTFS    ", "ntfs"), (82, b"FAT32   ", "vfat"), (54, b"FAT1", "vfat"))
_FLAG_CASEFOLD = 0x40000000  # of a directory on ext4, f2fs or tmpfs


def nearest(directory: bytes) -> bytes:
    """The directory, or what it will be made in where it is yet to be made."""
    while not is_directory(directory) and directory not in (b"", b"/"):
        directory = os.path.dirname(directory)
    return directory or b"."


def kind_of(directory: bytes) -> Kind:
    """What is known of the filesystem that a directory lies on, or will; the name is ``unknown`` where that cannot be found out."""
    try:
        parent = open_directory(nearest(directory))
        try:
            mount = linux.mount_of(parent)
            folds = _is_casefolded(parent)
        finally:
            os.close(parent)
    except (OSError, UnsafeImage):
        return Kind("unknown")
    name = "unknown" if mount is None else _behind_fuse(mount)
    kind = _KINDS.get(name, Kind(name))
    return kind._replace(folds=True) if folds else kind


def _is_casefolded(directory: int) -> bool:
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return bool((linux.get_flags(fd) or 0) & _FLAG_CASEFOLD)
    finally:
        os.close(fd)


def _behind_fuse(mount: linux.Mount) -> str:
    if not mount.fstype.startswith("fuseblk"):
        return mount.fstype
    try:
        with place_of(mount.source) as (directory, name):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_rdev != os.makedev(mount.major, mount.minor):
                return mount.fstype
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            sector = os.pread(fd, 512, 0)
        finally:
            os.close(fd)
    except (OSError, UnsafeImage):
        return mount.fstype
    return next((kind for offset, mark, kind in _MARKS if sector[offset:].startswith(mark)), mount.fstype)


def unstorable(directory: bytes, name: bytes) -> Optional[str]:
    """Why a filesystem cannot store a name, in words; ``None`` where nothing is known to keep it from that."""
    found = _RESERVED.search(name)
    kind = kind_of(directory) if found or not _is_utf8(name) else None  # asked only where it matters: for thousands of names it takes time
    if kind is None or not kind.windows_names:
        return None
    if found is None:
        return None if kind.name != "exfat" else "a name on exfat has to be UTF-8"
    sign = found.group().decode("ascii")
    what = "end with a dot or a space" if sign in ". " else "hold {0}".format(sign if sign.isprintable() else "a control character")
    return "a name on {0} cannot {1}".format(kind.name, what)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


def limit_below(directory: bytes, size: int) -> Optional[Limit]:
    """What keeps a file in a directory from having ``size`` bytes; ``None`` where nothing is known to.

    A file without a name is made that long for a moment: nothing is written to it and nothing is left of it.
    """
    ours = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if ours != resource.RLIM_INFINITY and ours < size:
        return Limit(ours, "this process (ulimit -f)", True)
    directory = nearest(directory)
    kind = kind_of(directory)
    whose = "the filesystem ({0})".format(kind.name)
    try:
        parent = open_directory(directory)
        try:
            fd = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=parent)
        finally:
            os.close(parent)
    except (OSError, UnsafeImage):
        return None if kind.largest is None or size <= kind.largest else Limit(kind.largest, whose, False)
    try:
        if _can_be(fd, size):
            return None
        most, too_much = 0, size
        while too_much - most > 1:
            middle = (most + too_much) // 2
            most, too_much = (middle, too_much) if _can_be(fd, middle) else (most, middle)
        return Limit(most, whose, False)
    finally:
        os.close(fd)


def _can_be(fd: int, size: int) -> bool:
    """Whether a file can be so long; what else the kernel says is not about that."""
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        return error.errno != errno.EFBIG
    return True
