# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Foreign qcow2 overlays of a base that moves: their headers are pointed to the new base, recorded first, and back by a rollback.

An overlay's first cluster is written in one call, no further than there is anything in it, after the old and the new one are in the record;
a crash in its middle leaves bytes that the next run completes.
"""

import os
from typing import AbstractSet, Any, Dict, List, NamedTuple, Optional, Set

from .._errors import ImageChanged, QcowError, StateError
from .._host.files import open_source
from .._host.in_use import require_unused
from .._image import qcow2
from .._image.chain import locate
from .._image.qcow2_header import BackingEntry, backing_of, rebased
from .._paths import decode_exact, from_base64, show, to_base64
from .record import Record, Records, State, named
from .references import Updater

WANTED = "dependents"
"""Where a record holds the foreign overlays that its migration is to re-point: ``path``, ``ino``, ``name`` and ``format`` of the new base."""

NEEDED_BY = "needed_by"
"""Where a record holds the QCOW v1 overlays that have to be migrated before its original may lose its name."""

DONE = "repointed_headers"


class Dependent(NamedTuple):
    """A foreign overlay and what its header is to say."""

    path: bytes
    ino: int
    backing: BackingEntry


def as_facts(dependents: List[Dependent]) -> List[Dict[str, Any]]:
    """What the record says of them from the beginning."""
    return [named(item.path, ino=item.ino, name=to_base64(item.backing.name), format=item.backing.format) for item in dependents]


def check(path: bytes, backing: BackingEntry) -> Dependent:
    """Find out, changing nothing, whether an overlay's header can be pointed to ``backing``.

    :raises QcowError: why not.
    """
    fd = open_source(path)
    try:
        _require_unused(fd, path)
        rebased(_first_cluster(fd, path), backing, path)
        if not os.access(path, os.W_OK):
            raise QcowError("the overlay may not be written by user {0}".format(os.geteuid()), path, reason="not-writable")
        return Dependent(path, os.fstat(fd).st_ino, backing)
    finally:
        os.close(fd)


def _require_unused(fd: int, path: bytes) -> None:
    require_unused(fd, "this overlay of the image", path, "Its backing file cannot move. Stop what uses it and run again.")


def _first_cluster(fd: int, path: bytes) -> bytes:
    header = qcow2.parse_header(os.pread(fd, 1 << 16, 0), path)
    return os.pread(fd, 1 << header.cluster_bits, 0)


def repointed(record: Record) -> Set[bytes]:
    """The foreign overlays that a migration has pointed to its result."""
    return {decode_exact(entry["path"], entry["path_base64"]) for entry in record.facts.get(DONE) or ()}


class NeededBases(Updater):
    """The rule that no base loses its name before its own overlays are migrated, and gets it back only after they have."""

    fact = NEEDED_BY

    def repoint(self, record: Record) -> None:
        """See :meth:`Updater.repoint`. Changes nothing."""
        for overlay in self._overlays(record):
            if not any(other.state in State.IN_PLACE for other in _records_beside(record).of_source(overlay)):
                raise StateError(
                    "still the backing file of {0}, which is not migrated".format(show(overlay)), record.file("src"), reason="needed"
                )

    def restore(self, record: Record) -> None:
        """See :meth:`Updater.restore`. There is nothing to do."""

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :meth:`Updater.obstacles`."""
        found = []
        for overlay in self._overlays(record):
            for other in _records_beside(record).of_source(overlay):
                if other.state in State.IN_PLACE and other.facts.get("backing") and other.id not in going_back:
                    found.append("{0} rests on it (record {1}): roll that back first".format(show(other.path_of("dest")), other.id))
        return found

    @staticmethod
    def _overlays(record: Record) -> List[bytes]:
        return [decode_exact(wanted["path"], wanted["path_base64"]) for wanted in record.facts.get(NEEDED_BY) or ()]


def _records_beside(record: Record) -> Records:
    return Records(os.path.dirname(os.path.dirname(record.path)))


class OverlayHeaders(Updater):
    """The headers of foreign overlays."""

    fact = DONE

    def repoint(self, record: Record) -> None:
        """See :meth:`Updater.repoint`."""
        done = list(record.facts.get(DONE) or ())
        known = repointed(record)
        for wanted in record.facts.get(WANTED) or ():
            path = decode_exact(wanted["path"], wanted["path_base64"])
            if path not in known:
                done.append(_entry(path, wanted, record.path_of("src")))
                record.note(record.state, **{DONE: done})
            _write(next(entry for entry in done if decode_exact(entry["path"], entry["path_base64"]) == path), "after", "before")

    def restore(self, record: Record) -> None:
        """See :meth:`Updater.restore`."""
        done = list(record.facts.get(DONE) or ())
        while done:
            _write(done[-1], "before", "after")
            done.pop()
            record.note(record.state, **{DONE: done})

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :meth:`Updater.obstacles`."""
        found = []
        for entry in record.facts.get(DONE) or ():
            path = decode_exact(entry["path"], entry["path_base64"])
            try:
                fd = open_source(path)
                try:
                    _target(fd, path, entry, "before", "after")
                    _require_unused(fd, path)
                finally:
                    os.close(fd)
            except QcowError as error:
                found.append(str(error))
        return found


def _entry(path: bytes, wanted: Dict[str, Any], src: bytes) -> Dict[str, Any]:
    fd = open_source(path)
    try:
        status = os.fstat(fd)
        _require_unused(fd, path)
        before = _first_cluster(fd, path)
        if status.st_ino != wanted["ino"] and (status.st_nlink > 1 or locate(path, backing_of(before, path).name) != src):
            raise ImageChanged(
                "is not the overlay that was planned for",
                path,
                hint="It was left as it is. Give it the backing file {0} with qemu-img rebase -u, and run again.".format(show(src)),
            )
    finally:
        os.close(fd)
    after = rebased(before, BackingEntry(from_base64(wanted["name"]), wanted["format"]), path)
    return named(path, ino=status.st_ino, cluster=len(before), before=to_base64(before.rstrip(b"\0")), after=to_base64(after.rstrip(b"\0")))


def _write(entry: Dict[str, Any], to: str, other: str) -> None:
    """Make the header say what the entry's ``to`` says, whether the last attempt began, ended or was torn in its middle."""
    path = decode_exact(entry["path"], entry["path_base64"])
    fd = open_source(path)
    try:
        target = _target(fd, path, entry, to, other)
        if target is None:
            return
        _require_unused(fd, path)
        # By descriptor: the file that was looked at is the file that is written.
        writer = os.open(b"/proc/self/fd/%d" % fd, os.O_WRONLY | os.O_CLOEXEC)
        try:
            reach = max(len(os.pread(fd, len(target), 0).rstrip(b"\0")), len(target.rstrip(b"\0")))
            if os.pwrite(writer, target[:reach], 0) != reach:
                raise QcowError("the header could not be written in full", path, hint="Run again to complete it.")
            os.fsync(writer)
        finally:
            os.close(writer)
    except OSError as error:
        raise QcowError("the header cannot be written: {0}".format(error.strerror), path) from error
    finally:
        os.close(fd)


def _target(fd: int, path: bytes, entry: Dict[str, Any], to: str, other: str) -> Optional[bytes]:
    """The cluster to write; ``None`` where the header says the right thing already.

    :raises ImageChanged: where the file is another one, or says something else altogether.
    """
    size = entry["cluster"]
    wanted, contrary = from_base64(entry[to]).ljust(size, b"\0"), from_base64(entry[other]).ljust(size, b"\0")
    status, now = os.fstat(fd), os.pread(fd, size, 0)
    if now == wanted:
        return None
    ours = status.st_ino == entry["ino"] or (status.st_nlink == 1 and now == contrary)  # a copy says all that it said
    if ours and now == contrary:
        return wanted
    try:
        says = backing_of(now, path)
    except QcowError:
        says = None  # torn
    if says == backing_of(wanted, path):
        return None
    if not ours:
        raise ImageChanged(
            "is not the overlay that was recorded",
            path,
            hint="It was left as it is. Give it the backing file {0} with qemu-img rebase -u, and run again.".format(
                show(backing_of(wanted, path).name)
            ),
        )
    if says is None:
        return wanted
    if says == backing_of(contrary, path):
        return rebased(now, backing_of(wanted, path), path)  # used since: everything but the backing file stays
    if _torn(now, wanted, contrary):
        return wanted
    raise ImageChanged("the overlay now has another backing file: {0}".format(show(says.name)), path, hint="It was left as it is.")


def _torn(now: bytes, one: bytes, other: bytes) -> bool:
    """Whether every byte is from the one or the other."""
    return all(byte in (first, second) for byte, first, second in zip(now, one, other))
