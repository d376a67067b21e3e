# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finds the images to migrate below paths that an operator has named, and tells of every place that could not be looked at."""

import errno
import os
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from .._directories import exists, real_path
from .._host import linux, tree
from .._image.detect import QCOW_MAGIC, is_qcow1
from .._paths import show
from .record import Records, State, named
from .request import is_retired
from .seen_images import SeenImages

WALKERS = 2
"""Processes that walk a tree; only where the first bytes decide what is reported, which is where walking is all the work."""


class Search(NamedTuple):
    """Where to look, and what to leave out; see :func:`.tree.walk`."""

    paths: Tuple[bytes, ...]
    exclude: Tuple[bytes, ...] = ()
    one_filesystem: bool = False
    missing_ok: bool = False  # paths that do not exist are no errors


class Candidates(NamedTuple):
    """What a search has found: the images to migrate, what could not be looked at, and how much was looked at."""

    paths: List[bytes]
    errors: List[Dict[str, Any]]
    files: int
    directories: int


def candidates(search: Search, records: Records, around: SeenImages) -> Candidates:
    """Every QCOW version 1 image that is not a retired original, in the order of the walk.

    :param around: takes in what else the walk has seen that could rest on them, so that no tree is walked twice.
    """
    counts = tree.Counts()
    gone = absent(search.paths, records, missing_ok=search.missing_ok)
    found = [real for real in map(real_path, gone) if _migrated(real, records)]
    errors: List[Dict[str, Any]] = []
    walk = tree.walk(
        [path for path in search.paths if path not in gone],
        prefix=QCOW_MAGIC,
        workers=WALKERS,
        exclude=search.exclude,
        one_filesystem=search.one_filesystem,
        counts=counts,
    )
    for entry in walk:
        if entry.error is not None:
            errors.append(unseen(entry))
            continue
        around.add(entry)
        if is_qcow1(entry.head) and not is_retired(entry.path):
            found.append(entry.path)
    around.links.add(counts.links)
    around.told, around.exclude, around.one_filesystem = search.paths, search.exclude, search.one_filesystem
    around.has_walked(search.paths)
    return Candidates(found, errors, counts.files, counts.directories)


def absent(paths: Iterable[bytes], records: Records, *, missing_ok: bool) -> List[bytes]:
    """Those of the named paths that do not exist, and may: an image that was migrated has lost its name to that."""
    return [path for path in paths if not exists(real_path(path)) and (missing_ok or _migrated(real_path(path), records))]


def _migrated(path: bytes, records: Records) -> bool:
    return any(record.state in State.IN_PLACE and exists(record.file("dest") or b"") for record in records.of_source(path))


def unseen(entry: tree.Found) -> Dict[str, Any]:
    """What results say of something that could not be looked at: its path, and in ``msg`` why and what to do about it."""
    path, why = entry.path, entry.error or ""
    if why == os.strerror(errno.ENOENT) and not exists(path):
        if b"," in path:
            hint = 'Give several paths as a list: ["/first", "/second"].'
        elif any(sign in path for sign in (b"*", b"?", b"[")):
            hint = "Patterns are not expanded: give the directory, and leave out with exclude what is not meant."
        else:
            hint = "Give a path that exists, or set missing_ok."
    elif why == os.strerror(errno.EACCES):
        hint = _hint_for_closed(path)
    else:
        hint = "Leave it out with exclude if it holds no images."
    return named(path, msg="{0}: {1}. {2}".format(show(path), why, hint))


def _hint_for_closed(path: bytes) -> str:
    mount = linux.mount_points().get(real_path(path))
    leave_out = "leave it out (exclude: {0}{1})".format(show(path), "" if mount is None else ", or one_filesystem: true")
    if mount is not None and mount.fstype.startswith("fuse"):
        return "It is a FUSE mount ({0}) of another user, into which not even root may look. If it holds no images, {1}.".format(
            mount.fstype, leave_out
        )
    if os.geteuid() == 0:
        return "Not even root may look there. If it holds no images, {0}.".format(leave_out)
    return "Run with the rights to read it (become), or {0}.".format(leave_out)


def message_of(errors: List[Dict[str, Any]], most: int = 5) -> str:
    """One sentence for all that could not be looked at; all of it is in the results."""
    words = "; ".join(error["msg"] for error in errors[:most])
    return words if len(errors) <= most else "{0} And {1} more, see errors.".format(words, len(errors) - most)
