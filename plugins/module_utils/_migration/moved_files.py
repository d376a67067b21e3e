# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which file a record speaks of, where inode numbers and times cannot tell.

A copy to a larger disk, and every mount of FAT and of some FUSE filesystems, gives the same files other inode numbers. A file is the recorded one if
its inode number, size and time are; else if it shows a guest the recorded bytes, at the price of reading it; else if the operator says so. What was
settled is written down, so that everything that comes later goes by inode number again.
"""

import os
from contextlib import ExitStack
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from .._access import Stranger, access_of
from .._directories import behind_links, exists
from .._errors import QcowError, StateError
from .._fingerprint import rounded
from .._host.files import FileIdentity, identity_at
from .._image.chain import NATIVE, locate, reference_of
from .._image.detect import UNKNOWN, reader_at
from .._image.extent import SECTOR
from .._image.findings import DAMAGED
from .._image.qcow1_check import STRUCTURE, check
from .._paths import decode_exact, show
from .._verify.compare import fingerprint
from .._verify.qcow_readers import open_reader
from .._verify.reader import Reader
from .commit import in_place, temporary_path
from .record import Record, Records, State
from .source import Source, open_layer

AUTO = "auto"
COMPARE = "compare"
ACCEPT = "accept"
CHOICES = (AUTO, COMPARE, ACCEPT)

CHEAP = 1 << 30
"""Bytes on disk up to which a file is read without being asked to."""

_NOBODY = 0
"""The inode number of no file: noted for a file that is not there while another one has its number."""


class MovedFiles:
    """Settles which file is which. Notes what it finds in records: in memory only, unless :attr:`writes`.

    :param how: with a file that has the recorded size but another inode number or time: ``auto``, ``compare`` or ``accept``.
    """

    def __init__(self, how: str = AUTO) -> None:
        self._how = how
        self.writes = False
        self._words: Dict[str, List[str]] = {}
        self._records: Dict[bytes, Records] = {}  # read once: what later ones say does not matter here

    def words(self, record: Record) -> List[str]:
        """What was settled for a record, in words."""
        return self._words.get(record.id, [])

    def is_original(self, record: Record, source: Source) -> bool:
        """Whether an open file is the recorded original, and holds what it held.

        :raises StateError: reason ``moved``, where that takes an option to find out; its message names it.
        """
        was = record.facts["src"]
        if source.identity.is_recorded(was):
            return True
        if source.identity.size != was["size"] or source.identify().format != "qcow" or not self._names_its_base(record, source):
            return False
        # One that goes back into use may be written by nobody who cannot write the result that goes.
        beside = ("dest", "rolled_back_to", "temporary") if record.state in (State.DONE, State.ROLLING_BACK) else ()
        return self._settle(record, "src", source, "qcow", beside, "the original")

    def is_result(self, record: Record, source: Source, role: str = "result") -> bool:
        """Whether an open file is the recorded result, and no guest has written to it.

        :param role: ``result``, or ``result_now`` for the one that a rollback began with.
        :raises StateError: see :meth:`is_original`.
        """
        was, format_name = record.facts.get(role) or {}, record.facts["format"]
        if source.identity.is_recorded(was):
            return True
        found = source.identify().format
        if found == "qcow" and source.identity.size == record.facts["src"]["size"]:
            return False
        if format_name != "raw" and (found != format_name or not self._names_its_base(record, source)):
            return False
        if source.identity.size != was.get("size") and (self._how != ACCEPT or format_name == "raw"):
            return False
        beside = ("src",) if record.state == State.VERIFIED else ()  # later it has the result's name already
        return self._settle(record, role, source, format_name, beside, "the result")

    def settle(self, record: Record) -> None:
        """See to it that an unfinished record can be looked after by inode numbers: find its original and its result by the names they may have.

        :raises StateError: see :meth:`is_original`; or a file is none of both and has the place of one.
        """
        if record.state not in (State.VERIFIED, State.PUBLISHED, State.REPOINTED, State.ROLLING_BACK):
            return
        role = "result_now" if record.state == State.ROLLING_BACK else "result"
        with ExitStack() as stack:
            files = list(_files(record, stack))
            original = self._original_among(record, files)
            others = [file for file in files if file is not original]
            result = self._result_among(record, others, role) if record.facts.get(role) else None  # it may have been gone before a rollback
            taken = [file.identity.ino for file in (original, result) if file is not None]
            for name, file in (("src", original), (role, result)):
                if file is None and record.facts.get(name) and record.facts[name]["ino"] in taken:
                    self._note(record, {name: dict(record.facts[name], ino=_NOBODY)})

    def _original_among(self, record: Record, files: List[Source]) -> Optional[Source]:
        was = record.facts["src"]
        images = [file for file in files if file.identify().format == "qcow"]
        known = [file for file in images if file.identity.is_recorded(was)] or [file for file in images if file.identity.ino == was["ino"]]
        for file in known:
            try:
                if self._how != ACCEPT:  # with its own inode number and another time it was written, if its content does not say otherwise
                    self.is_original(record, file)
            except StateError:
                pass
            return file
        return next((file for file in images if self.is_original(record, file)), None)

    def _result_among(self, record: Record, files: List[Source], role: str) -> Optional[Source]:
        was, dest = record.facts[role], record.path_of("dest")
        known = [file for file in files if file.identity.is_recorded(was)]
        known = known or [file for file in files if file.identity.ino == was["ino"] and file.identify().format != "qcow"]
        if known:
            return known[0]
        for file in files:
            if file.path in (dest, record.file("rolled_back_to"), record.file("retired"), temporary_path(record)) and self.is_result(
                record, file, role
            ):
                return file
        there = next((file for file in files if file.path == dest and (record.state != State.VERIFIED or in_place(record))), None)
        if there is None or there.identify().format == "qcow":
            return None
        raise StateError(
            "has the result's name, but neither its inode number nor its content",
            dest,
            reason="moved",
            hint="It was left as it is. If guests have written to the result, and it was moved since, set moved_files=accept; otherwise move it away.",
        )

    def _settle(self, record: Record, role: str, source: Source, format_name: str, beside: Sequence[str], what: str) -> bool:
        now, was = source.identity, record.facts[role]
        moved = now.ino != was["ino"]
        if self._how == ACCEPT:
            words = "{0} is accepted as the recorded one, unread (moved_files)"
        else:
            if moved and beside:
                _require_no_new_writers(record, source, beside)
            if not self._shows_the_same(record, source, format_name):
                return False
            words = "{0} is recognized by its content: its inode number is another" if moved else "{0} is recognized by its content"
        facts = dict(was, ino=now.ino, dev=now.dev)
        if self._how != ACCEPT or role == "src":
            facts.update(mtime_ns=now.mtime_ns, ctime_ns=now.ctime_ns)
        self._note(record, {role: facts})
        self._words.setdefault(record.id, []).append(words.format(what))
        return True

    def _note(self, record: Record, facts: Dict[str, Any]) -> None:
        if self.writes:
            record.note(record.state, **facts)
        else:
            record.facts.update(facts)

    def _shows_the_same(self, record: Record, source: Source, format_name: str) -> bool:
        proof = self._known(record, "fingerprint")
        if proof is None:
            raise _undecided(source, "the record has no fingerprint", "")
        if record.facts.get("lost"):
            raise _undecided(source, "parts of the original could not be read when it was migrated", "")
        with ExitStack() as stack:
            try:
                files = [(format_name, source)]
                if format_name != "raw" and _reference(source) is not None:
                    files += [self._base(record, entry, stack) for entry in self._known(record, "chain") or ()]
                need = sum(os.fstat(file.fd).st_blocks * SECTOR for _format, file in files)
                if self._how == AUTO and need > CHEAP:
                    raise _undecided(
                        source, "to compare it with the record, {0} bytes have to be read".format(need), "moved_files=compare does that; "
                    )
                for name, file in files:
                    if (
                        name == "qcow" and check(file.fd, file.path, STRUCTURE).verdict == DAMAGED
                    ):  # nor may its tables make us read without end
                        raise _undecided(source, "{0} is damaged".format(show(file.path)), "")
                chain = [_reader(name, file) for name, file in files]
                size = (record.facts.get("before") or {}).get("virtual_size")
                if size is not None and rounded(chain[0].size) != rounded(size):
                    return False  # nor is more read than that: a header may claim anything
                return fingerprint(chain) == proof
            except StateError:
                raise
            except (QcowError, OSError) as error:
                raise _undecided(source, "it cannot be compared with the record: {0}".format(error), "") from error

    def _names_its_base(self, record: Record, source: Source) -> bool:
        """Whether the header names the backing file that it named, or none as before: it is no part of what is compared."""
        try:
            reference = _reference(source)
            if source.identify().format != "qcow":
                backing = record.facts.get("backing")
                return (None if reference is None else reference.name) == (None if backing is None else _path(backing))
            chain = self._known(record, "chain")
            if reference is None or not chain:
                return reference is None and not chain
            return locate(record.path_of("src"), reference.name) == _path(chain[0])
        except QcowError:
            return False

    def _known(self, record: Record, fact: str) -> Any:
        """A fact about the original; one that was kept, and retired by a later run, may have it in its earlier record only."""
        was = record.facts["src"]
        found = record.facts.get(fact)
        for other in reversed(self._beside(record).of_source(record.path_of("src"))) if found is None else ():
            then = other.facts["src"]
            if found is None and (then.get("size"), then.get("mtime_ns")) == (was["size"], was["mtime_ns"]):
                found = other.facts.get(fact)
        return found

    def _beside(self, record: Record) -> Records:
        state_dir = os.path.dirname(os.path.dirname(record.path))
        return self._records.setdefault(state_dir, Records(state_dir))

    def _base(self, record: Record, entry: Dict[str, Any], stack: ExitStack) -> Tuple[str, Source]:
        """A backing file under the name that it has now, or what took its place: what both show is the same."""
        path = _path(entry)
        names = [path]
        for other in reversed(self._beside(record).of_source(path)):
            names += [name for name in (other.file("retired"), other.file("dest")) if name is not None]
        for name in names:
            if exists(name):
                file = stack.enter_context(Source(behind_links(name)))  # a link of a stranger's may lead to anybody's file
                found = file.identify().format
                found = "raw" if found == UNKNOWN else found
                if found not in NATIVE:
                    raise QcowError("its backing file {0} is of a format that is not read here".format(show(name)))
                return found, file
        raise QcowError("its backing file {0} is gone".format(show(path)))


def way_out(record: Record, role: str, source: Source) -> str:
    """The end of a message about a file that is not the recorded one: what to do if it is, though moved."""
    return " If it is the recorded file all the same, set moved_files=accept." if source.identity.size == record.facts[role]["size"] else ""


def _undecided(source: Source, why: str, more: str) -> StateError:
    return StateError(
        "has another inode number or time than recorded (was it copied, or its filesystem mounted again?), and {0}".format(why.rstrip(".")),
        source.path,
        reason="moved",
        hint="Nothing was changed. {0}moved_files=accept takes it for the recorded file, unread.".format(more),
    )


def _require_no_new_writers(record: Record, source: Source, beside: Sequence[str]) -> None:
    """Who copies somebody's file may own the copy. Who could write an original could write its result, and the other way round.

    :param beside: roles of names under which the other one is; the first that is there counts.
    """
    allowed: Set[Stranger] = set()
    for path in (temporary_path(record) if role == "temporary" else record.file(role) for role in beside):
        there = None if path is None else identity_at(path)
        if path is not None and there is not None and not there.same_file(source.identity):
            try:
                with Source(path) as other:
                    allowed.update(access_of(other.fd).writers())
            except QcowError:
                pass  # a device, or nothing of ours
            break
    for stranger in access_of(source.fd).writers():
        if stranger not in allowed:
            raise _undecided(source, "{0} can write it, but could not write the file that it belongs to".format(stranger), "")


def _files(record: Record, stack: ExitStack) -> Iterator[Source]:
    """The regular files under all names that the original and the result of an unfinished record may have, each once."""
    seen: List[FileIdentity] = []
    names = [record.file(role) for role in ("src", "retire_to", "retired", "dest", "rolled_back_to")] + [temporary_path(record)]
    for name in dict.fromkeys(name for name in names if name is not None):
        try:
            file = stack.enter_context(Source(name))
        except QcowError:
            continue  # nothing there, or nothing of ours
        if not any(file.identity.same_file(other) for other in seen):
            seen.append(file.identity)
            yield file


def _reference(source: Source) -> Any:
    return reference_of(reader_at(source.fd), source.identify().format, source.path)


def _path(entry: Dict[str, Any]) -> bytes:
    return decode_exact(entry["path"], entry.get("path_base64"))


def _reader(format_name: str, file: Source) -> Reader:
    open_layer(format_name, file.fd, file.path)  # looks at the header as a whole
    return open_reader(format_name, file.fd, file.path)
