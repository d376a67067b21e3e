# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records: what was done to an image, written down before and after it happens.

A record is a journal of JSON lines, one a state, appended and synced before the step that the state allows. What an earlier line says holds until
a later one says otherwise; a line that a crash cut off does not count.
"""

import errno
import json
import os
import time
from typing import Any, Dict, Iterator, List, Optional

from .._access import access_of
from .._directories import make_directory, require_ours
from .._errors import QcowError, StateError
from .._host.files import sync_directory
from .._host.renames import remove_durably
from .._paths import decode_exact, encode_exact, show

SCHEMA = 1

TIME = "%Y-%m-%dT%H:%M:%SZ"
"""How records and results state a moment in UTC."""

_SUFFIX = b".jsonl"
_NEW = b".new"
_DOMAIN_JOURNAL = b"domain-journal"


class State:
    """The states of a migration. Each is written down before the step that it allows."""

    PLANNED = "planned"
    """Decided; nothing but the record has been written."""

    COPYING = "copying"
    """A temporary file, or a device, is being filled."""

    VERIFIED = "verified"
    """The temporary file is complete, proven and durable; it may get the result's name."""

    PUBLISHED = "published"
    """The result has its name; what refers to the original may be pointed to it."""

    REPOINTED = "repointed"
    """Nothing refers to the original any more; it may be renamed."""

    RETIRED = "retired"
    """The original has the name under which it is kept."""

    DONE = "done"
    FAILED = "failed"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    CLEANING = "cleaning"
    CLEANED = "cleaned"

    IN_PLACE = (PUBLISHED, REPOINTED, RETIRED, DONE, CLEANING, CLEANED)
    """States in which the result has its name."""

    FINISHED = (DONE, FAILED, ROLLED_BACK, CLEANED)
    """States after which nothing is left to do, but for a temporary file that could not be removed."""


class Record:
    """One migration's journal. ``facts`` holds what its lines say so far."""

    def __init__(self, path: bytes, facts: Dict[str, Any]) -> None:
        self.path = path
        self.facts = facts

    @property
    def id(self) -> str:
        """The record's name."""
        return self.facts["id"]

    @property
    def state(self) -> str:
        """The last state that was reached."""
        return self.facts["state"]

    @property
    def began(self) -> str:
        """When the record was begun, in UTC: its name says so."""
        moment = time.strptime(self.id.split(".")[0], "%Y%m%dT%H%M%S")
        return time.strftime(TIME, moment)

    def file(self, role: str) -> Optional[bytes]:
        """The path recorded as ``src``, ``dest``, ``retired`` or another role; ``None`` where there is none."""
        name = self.facts.get(role)
        return None if not name else decode_exact(name["path"], name.get("path_base64"))

    def path_of(self, role: str) -> bytes:
        """As :meth:`file`, for a role that every record in this state has.

        :raises StateError: where this one has not.
        """
        path = self.file(role)
        if path is None:
            raise StateError(
                "the record lacks its {0}".format(role), self.path, hint="Nothing was changed. Look at the record and the image."
            )
        return path

    @property
    def unfinished(self) -> bool:
        """Whether a run ended before it had brought this migration, rollback or cleanup to its end."""
        return self.state not in State.FINISHED or (self.state == State.FAILED and self.facts.get("temporary") is not None)

    def note(self, state: str, **facts: Any) -> None:
        """Append a state with what is known now, and sync it.

        :raises StateError: where the journal cannot be written.
        """
        line = dict(facts, state=state, time=now())
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _append(fd, line)
            finally:
                os.close(fd)
        except OSError as error:
            raise StateError("the record cannot be written: {0}".format(error.strerror), self.path) from error
        self.facts.update(line)


def named(path: bytes, **facts: Any) -> Dict[str, Any]:
    """A file's name as records and results state it, with further facts."""
    return dict(facts, path=show(path), path_base64=encode_exact(path))


class Records:
    """All records of a host, in one state directory.

    :param state_dir: created when the first record is; readable by its owner only.
    """

    def __init__(self, state_dir: bytes) -> None:
        self.state_dir = state_dir
        self.directory = os.path.join(state_dir, b"records")
        self._loaded: Optional[Dict[bytes, List[Record]]] = None

    def begin(self, src: Dict[str, Any], dest: Dict[str, Any], **facts: Any) -> Record:
        """A new record in the state ``planned``. Those that are there have been read before, and the directory was found to be ours then.

        :raises StateError: where the state directory cannot be written.
        """
        seconds, fraction = divmod(time.time(), 1)
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
        identifier = "{0}.{1:06d}Z-{2}".format(moment, int(fraction * 1000000), os.urandom(4).hex())  # sorts by time
        line = dict(facts, schema=SCHEMA, id=identifier, src=src, dest=dest, state=State.PLANNED, time=now())
        path = os.path.join(self.directory, identifier.encode("ascii") + _SUFFIX)
        try:
            if not os.path.isdir(self.directory):
                require_ours(self.state_dir, b"records")
                make_directory(self.directory)
                require_ours(self.state_dir, b"records")  # what was not there before is looked at now
            _create(path, line)
        except OSError as error:
            raise StateError(
                "no record can be written: {0}".format(error.strerror),
                self.directory,
                hint="Nothing was changed. Run with the rights to write there, or choose another state_dir.",
            ) from error
        record = Record(path, line)
        if self._loaded is not None:
            self._loaded.setdefault(record.file("src") or b"", []).append(record)
        return record

    def of_source(self, src: bytes) -> List[Record]:
        """The records of migrations of the image at ``src``, oldest first."""
        return self._by_source().get(src, [])

    def of_file(self, ino: int, size: int) -> List[Record]:
        """The records of migrations of images whose file had that inode number, on whatever filesystem, or that size in bytes."""
        everything = (record for found in self._by_source().values() for record in found)
        return [record for record in everything if record.facts["src"].get("ino") == ino or record.facts["src"].get("size") == size]

    def _by_source(self) -> Dict[bytes, List[Record]]:
        if self._loaded is None:
            self._loaded = {}
            for record in self.all():
                self._loaded.setdefault(record.file("src") or b"", []).append(record)
        return self._loaded

    def all(self) -> Iterator[Record]:
        """Every record that can be read, oldest first."""
        for name in self._names():
            if name.endswith(_SUFFIX):
                record = _read(os.path.join(self.directory, name))
                if record is not None:
                    yield record

    def newest(self, count: int) -> List[Record]:
        """The last so many records, newest first; fewer where some cannot be read."""
        names = [name for name in self._names() if name.endswith(_SUFFIX)][-count:]
        read = [_read(os.path.join(self.directory, name)) for name in reversed(names)]
        return [record for record in read if record is not None]

    def unfinished(self) -> List[Record]:
        """The records that an interrupted run left behind (or that a running one is at), oldest first."""
        return [record for record in self.all() if record.unfinished]

    def unreadable(self) -> List[bytes]:
        """Journals of which not even the beginning can be read. No run leaves such; storage that fails may."""
        paths = [os.path.join(self.directory, name) for name in self._names() if name.endswith(_SUFFIX)]
        return [path for path in paths if _read(path) is None]

    def sweep(self) -> None:
        """Remove journals whose first line never became durable: nothing had been done for those.

        Only while no other run is at work (see :class:`.lock.Exclusive`).
        """
        for name in self._names():
            if name.endswith(_SUFFIX + _NEW):
                remove_durably(os.path.join(self.directory, name))

    def _names(self) -> List[bytes]:
        require_ours(self.state_dir, b"records")
        try:
            return sorted(os.listdir(self.directory))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return []
            raise StateError("the records cannot be listed: {0}".format(error.strerror), self.directory) from error


class DomainJournal:
    """What was done to running domains and is still to be undone: one file for each in the state directory."""

    def __init__(self, state_dir: bytes) -> None:
        self._state_dir = state_dir
        self._directory = os.path.join(state_dir, _DOMAIN_JOURNAL)

    def _path(self, key: str) -> bytes:
        return os.path.join(self._directory, key.encode("ascii") + b".json")

    def note(self, key: str, **facts: Any) -> None:
        """Write it down, durably, as a whole.

        :param key: of the entry; letters, digits and dashes.
        :raises StateError: where that cannot be done; the domain must not be touched then.
        """
        path = self._path(key)
        require_ours(self._state_dir, _DOMAIN_JOURNAL)
        try:
            make_directory(self._directory)
            fd = os.open(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(dict(facts, key=key), file)
                file.flush()
                os.fsync(fd)
            os.rename(path + b".new", path)
            sync_directory(self._directory)
        except OSError as error:
            raise StateError("cannot be written: {0}".format(error.strerror), path, hint="No domain was changed.") from error

    def clear(self, key: str) -> None:
        """The domain is as it should be."""
        try:
            os.unlink(self._path(key))
            sync_directory(self._directory)
        except OSError:
            pass  # the next run looks at the domain and finds nothing to do

    def entries(self) -> List[Dict[str, Any]]:
        """What is written down. An entry that was cut short was never acted on."""
        found = []
        require_ours(self._state_dir, _DOMAIN_JOURNAL)
        try:
            names = sorted(os.listdir(self._directory))
        except OSError:
            return []
        for name in names:
            try:
                with open(os.path.join(self._directory, name), encoding="ascii") as file:
                    found.append(json.load(file))
            except (OSError, ValueError):
                continue
        return [entry for entry in found if isinstance(entry, dict) and "key" in entry]


def now() -> str:
    """This moment as records and results state it, in UTC."""
    return time.strftime(TIME, time.gmtime())


def _create(path: bytes, line: Dict[str, Any]) -> None:
    """A new journal appears whole, with its first line, or not at all."""
    fresh = path + _NEW
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _append(fd, line)
        os.rename(fresh, path)
        sync_directory(os.path.dirname(path))
    except BaseException:
        for name in (fresh, path):
            try:
                os.unlink(name)
            except OSError:
                pass  # it was never there, or the next run sweeps it
        raise
    finally:
        os.close(fd)


def _append(fd: int, line: Dict[str, Any]) -> None:
    data = (json.dumps(line, sort_keys=True) + "\n").encode("ascii")
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        data = b"\n" + data  # a crash cut the last line off
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    except OSError:
        try:
            os.ftruncate(fd, size)  # what was not durably said was not said
        except OSError:
            pass
        raise


def _read(path: bytes) -> Optional[Record]:
    """A record, or ``None`` where not even its first line can be read."""
    facts: Dict[str, Any] = {}
    try:
        with open(path, "rb") as stream:
            if access_of(stream.fileno()).writers():
                return None  # not written by a run of ours
            for raw in stream:
                try:
                    line = json.loads(raw.decode("utf-8"))
                except ValueError:
                    continue
                if isinstance(line, dict):
                    facts.update(line)
    except OSError as error:
        raise QcowError("the record cannot be read: {0}".format(error.strerror), path, reason="state") from error
    return Record(path, facts) if "id" in facts and "state" in facts else None
