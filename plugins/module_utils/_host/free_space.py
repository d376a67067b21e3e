# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a whole plan fits, asked before its first byte is written."""

import os
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from .._directories import open_directory
from .._errors import UnsafeImage
from .._paths import show
from . import attributes, linux

_ST_RDONLY = 1
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class Demand(NamedTuple):
    """What one step of a plan will add below a directory: ``bytes`` of space, ``inodes`` new files; ``purpose`` for messages."""

    directory: bytes
    bytes: int
    inodes: int
    purpose: str


class Problem(NamedTuple):
    """Why a plan cannot be carried out. ``reason``: ``no-space``, ``no-inodes``, ``read-only``, ``not-writable``, ``protected``, ``missing``.

    ``directory`` is where; ``missing_bytes`` and ``missing_inodes`` are how much too little there is, 0 where that is not the matter.
    """

    reason: str
    directory: bytes
    message: str
    missing_bytes: int = 0
    missing_inodes: int = 0

    def __str__(self) -> str:
        return self.message


class Filesystem(NamedTuple):
    """``free`` and ``total`` in bytes as we may use them; ``free_inodes`` is ``None`` where inodes are made as needed (Btrfs)."""

    key: Tuple[int, int]
    fstype: str
    free: int
    total: int
    free_inodes: Optional[int]
    read_only: bool


def human(size: int) -> str:
    """A number of bytes for people: ``1536`` is ``1.5 KiB``."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return "{0} bytes".format(size) if unit == 0 else "{0:.1f} {1}".format(value, _UNITS[unit])


def filesystem(directory: bytes) -> Filesystem:
    """The filesystem a directory lies on; Btrfs subvolumes and bind mounts of one filesystem have the same ``key``.

    :raises OSError: where the directory cannot be looked at.
    """
    fd = open_directory(directory)
    try:
        usage, mount, device = os.fstatvfs(fd), linux.mount_of(fd), os.fstat(fd).st_dev
    finally:
        os.close(fd)
    key = (os.major(device), os.minor(device)) if mount is None else (mount.major, mount.minor)
    fstype = "unknown" if mount is None else mount.fstype
    # What only root may fill (f_bfree) is a reserve that others rely on: not ours, root or not.
    free_inodes = usage.f_favail if usage.f_files else None
    return Filesystem(
        key, fstype, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize, free_inodes, bool(usage.f_flag & _ST_RDONLY)
    )


def filesystem_type(path: bytes) -> str:
    """The type of filesystem an existing directory lies on, as mount names it; ``unknown`` where /proc is missing."""
    return filesystem(path).fstype


def problems(
    demands: Iterable[Demand], *, reserve_bytes: int = 0, reserve_percent: float = 0.0, known: Optional[Dict[bytes, Filesystem]] = None
) -> List[Problem]:
    """Everything that stands in the way of a plan, all at once; an empty list where it fits. Nothing is written to find out.

    Demands on one filesystem are added up. User quotas are not seen, nor what others write meanwhile: keep a reserve.

    :param reserve_bytes: stay free on each filesystem. :param reserve_percent: the same in percent of its size; the larger counts.
    :param known: what is known of directories; gets what is found out.
    """
    found: List[Problem] = []
    known = {} if known is None else known
    filesystems: Dict[Tuple[int, int], Filesystem] = {}
    asked: Dict[Tuple[int, int], List[Demand]] = {}
    purposes: Dict[bytes, List[Demand]] = {}
    for demand in demands:
        purposes.setdefault(demand.directory, []).append(demand)
    for directory, wishes in purposes.items():
        try:
            if directory not in known:
                known[directory] = filesystem(directory)
            there, closed = known[directory], _closed(directory, wishes)
        except OSError as error:
            reason = "missing" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else "not-writable"
            found.append(Problem(reason, directory, "{0} (for {1}): {2}.".format(show(directory), _for(wishes), error.strerror)))
            continue
        except UnsafeImage as error:
            found.append(Problem(error.reason, directory, str(error)))
            continue
        filesystems.setdefault(there.key, there)
        asked.setdefault(there.key, []).extend(wishes)
        found.extend([_read_only(directory, wishes)] if there.read_only else closed)
    for key, wishes in asked.items():
        found.extend(_too_full(filesystems[key], wishes, reserve_bytes, reserve_percent))
    return found


def _for(demands: List[Demand]) -> str:
    names: List[str] = []
    for demand in demands:
        if demand.purpose not in names:
            names.append(demand.purpose)
    return ", ".join(names[:3]) + (" and {0} more".format(len(names) - 3) if len(names) > 3 else "")


def _read_only(directory: bytes, demands: List[Demand]) -> Problem:
    return Problem("read-only", directory, "{0} (for {1}): the filesystem is mounted read-only.".format(show(directory), _for(demands)))


def _closed(directory: bytes, demands: List[Demand]) -> List[Problem]:
    """What keeps us from creating files in a directory, whatever space there is."""
    place = "{0} (for {1})".format(show(directory), _for(demands))
    parent = open_directory(directory)
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        flags = attributes.protection(fd)
        os.close(fd)
        writable = os.access(b".", os.W_OK | os.X_OK, dir_fd=parent, effective_ids=os.access in os.supports_effective_ids)
    finally:
        os.close(parent)
    if flags:  # asked first: the kernel says of an immutable directory that nobody has the right
        return [Problem("protected", directory, "{0}: the directory is {1} (see lsattr).".format(place, " and ".join(flags)))]
    if not writable:
        return [Problem("not-writable", directory, "{0}: no right to create files here as user {1}.".format(place, os.geteuid()))]
    return []


def _too_full(there: Filesystem, demands: List[Demand], reserve_bytes: int, reserve_percent: float) -> List[Problem]:
    directory = demands[0].directory
    found = []
    need = sum(demand.bytes for demand in demands)
    reserve = max(reserve_bytes, int(there.total * reserve_percent / 100))
    if need + reserve > there.free:
        text = "The filesystem of {0} has {1} free; the plan needs {2} there (for {3}){4}. {5} are missing."
        kept = " and is to keep {0} free".format(human(reserve)) if reserve else ""
        missing = need + reserve - there.free
        message = text.format(show(directory), human(there.free), human(need), _for(demands), kept, human(missing))
        found.append(Problem("no-space", directory, message, missing))
    inodes = sum(demand.inodes for demand in demands)
    if there.free_inodes is not None and inodes > there.free_inodes:
        text = "The filesystem of {0} can take {1} more files; the plan creates {2} there."
        found.append(
            Problem("no-inodes", directory, text.format(show(directory), there.free_inodes, inodes), 0, inodes - there.free_inodes)
        )
    return found
