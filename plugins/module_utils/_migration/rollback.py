# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Undoes a recorded migration: the original gets its name back, what refers to it is pointed back, the result goes.

A result that a guest has written since is never deleted: it is refused, or, where its changes may be lost, kept under another name.
"""

import os
from typing import Any, Dict, List, NamedTuple, Optional

from .._directories import exists
from .._errors import ImageChanged, QcowError, StateError, TargetExists
from .._host.files import FileIdentity, check_name, inode_at
from .._host.in_use import Guard, require_unused
from .._host.renames import remove_durably, replace_keeping, retire
from .._paths import decode_exact, show
from .._verify.compare import fingerprint
from .._verify.qcow_readers import open_reader
from .commit import in_place, temporary_path
from .moved_files import MovedFiles, way_out
from .record import Record, Records, State, named
from .references import References
from .source import Source, open_layer
from .taken_names import described

NOOP = "noop"
ROLL_BACK = "roll-back"

KEPT_SUFFIX = b".rolled-back."
"""Between a changed result's name and its record's, where a rollback keeps it."""


class Reversal(NamedTuple):
    """What a rollback of one record will do."""

    record: Record
    action: str  # NOOP or ROLL_BACK
    reasons: List[str]  # in words
    changed: bool = False  # whether the result was written since the migration
    kept: Optional[bytes] = None  # the name under which it will be kept
    result: Optional[FileIdentity] = None  # of the result, None where it is gone


def plan_rollback(
    record: Record, references: References, *, discard_changes: bool, keep: bool = False, moved: Optional[MovedFiles] = None
) -> Reversal:
    """Look at a record and at what it speaks of, and decide. Changes nothing.

    :param discard_changes: whether the guest may lose what it has written to the result since.
    :param keep: not to delete the result in any case: something that is kept rests on it.
    :param moved: settles which file is which.
    :raises QcowError: where the rollback has to be refused; nothing is changed then.
    """
    if record.state in (State.ROLLED_BACK, State.FAILED):
        return Reversal(
            record, NOOP, ["rolled back before" if record.state == State.ROLLED_BACK else "nothing to undo: the migration failed"]
        )
    if record.state in (State.CLEANED, State.CLEANING):
        raise StateError(
            "the original was deleted by a cleanup ({0}); this migration cannot be rolled back any more".format(record.facts.get("time")),
            record.file("retired") or record.path_of("src"),
            reason="cleaned",
            hint="Nothing was changed. The result {0} holds what the guest sees.".format(show(record.path_of("dest"))),
        )
    if record.state != State.DONE:
        raise StateError(
            "the migration is unfinished ({0})".format(record.state), record.path_of("src"), hint="Run the migration again first."
        )
    moved = moved or MovedFiles()
    _require_original(record, moved)
    _require_backing(record)
    found = references.obstacles(record)
    if found:
        raise StateError("what refers to the image cannot be pointed back: {0}".format("; ".join(found)), record.path_of("dest"))
    if record.facts.get("adopted"):
        return Reversal(record, ROLL_BACK, ["the result was there before the migration and stays"])
    return _with_result(record, discard_changes, keep, moved)


def _require_original(record: Record, moved: MovedFiles) -> None:
    src, retired = record.path_of("src"), record.file("retired")
    where = retired or src
    if retired is not None and not in_place(record) and exists(src):
        raise TargetExists(
            "the name that the original would get back is taken by {0}".format(described(src)),
            src,
            hint="Nothing was changed; the original is kept as {0}. If a guest uses what is there now, leave it so; otherwise give that another "
            "name and run again.".format(show(retired)),
        )
    if inode_at(where) is None:
        raise QcowError("the original is gone", where, reason="missing", hint="Nothing was changed. Restore it from a backup.")
    with Source(where) as source:
        if not moved.is_original(record, source):
            raise ImageChanged(
                "the original is not what it was when it was migrated",
                where,
                hint="Nothing was changed. Compare the two first." + way_out(record, "src", source),
            )
        _require_idle(source)


def _require_backing(record: Record) -> None:
    """What the original rests on must be there, or be able to come back."""
    records = Records(os.path.dirname(os.path.dirname(record.path)))
    for entry in record.facts.get("chain") or ():
        path = decode_exact(entry["path"], entry.get("path_base64"))
        if not exists(path) and not any(other.state == State.DONE for other in records.of_source(path)):
            raise QcowError(
                "its backing file {0} is gone and has no record to bring it back".format(show(path)),
                record.path_of("src"),
                reason="missing",
                hint="Nothing was changed. Restore the backing file first.",
            )


def _require_idle(source: Source) -> None:
    require_unused(source.fd, "the image", source.path, "Nothing was changed. Stop what uses it and run again.")


def _with_result(record: Record, discard_changes: bool, keep: bool, moved: MovedFiles) -> Reversal:
    dest = record.path_of("dest")
    if inode_at(dest) is None:
        return Reversal(record, ROLL_BACK, ["the result is gone already"])
    with Source(dest) as source:
        _require_idle(source)
        what = _changes(record, source, moved)
        if not what and not keep:
            return Reversal(record, ROLL_BACK, ["the result has not changed since it was made"], result=source.identity)
        if what and not discard_changes:
            raise ImageChanged(
                "was written after the migration ({0})".format(what),
                dest,
                hint="Nothing was changed. Convert it back if its changes matter, or set discard_changes=true: it is then kept under another name.",
            )
        kept = dest + KEPT_SUFFIX + record.id.encode("ascii")
        check_name(kept)
        why = "the guest loses later writes: {0}".format(what) if what else "an overlay that is kept needs the result"
        return Reversal(record, ROLL_BACK, [why], bool(what), kept, source.identity)


def _changes(record: Record, source: Source, moved: MovedFiles) -> str:
    """How the result differs from what was published, in words; empty where the guest sees the same bytes.

    Times and inode numbers can be forged or change for good reasons; what counts is what the guest sees, where that can be told.
    """
    was = dict(record.facts.get("result") or {})
    touched = not source.identity.is_recorded(was)
    proof = record.facts.get("fingerprint")
    if proof is None or not _readable_alone(record, source):
        try:
            # Which file it is can be taken on trust, what guests have written to it cannot.
            written = (source.identity.size, source.identity.mtime_ns) != (was.get("size"), was.get("mtime_ns"))
            unchanged = not touched or (moved.is_result(record, source) and not written)
        except StateError as undecided:
            return "it {0}{1}".format(undecided.message, "" if written else "; moved_files=accept takes it for what was made")
        return "" if unchanged else "it is another file, or its size or modification time is another"
    try:
        same = fingerprint([open_reader(record.facts["format"], source.fd, source.path)]) == proof
    except QcowError as error:
        return "it cannot be read: {0}".format(error)
    if not same:
        return "the guest data differs"
    return "it has internal snapshots" if touched and _has_snapshots(record, source) else ""


def _readable_alone(record: Record, source: Source) -> bool:
    try:
        return getattr(open_layer(record.facts["format"], source.fd, source.path), "backing_name", None) is None
    except QcowError:
        return True


def _has_snapshots(record: Record, source: Source) -> bool:
    """The header's count of internal snapshots, bytes 60 to 63 of a qcow2."""
    return record.facts["format"] == "qcow2" and os.pread(source.fd, 4, 60) != bytes(4)


def roll_back(reversal: Reversal, references: References) -> None:
    """Carry out what was planned.

    :raises QcowError: the record then says ``rolling-back``, and the next run goes on from there.
    """
    facts: Dict[str, Any] = {"result_now": None if reversal.result is None else reversal.result._asdict()}
    if reversal.kept is not None:
        facts["rolled_back_to"] = named(reversal.kept)
    reversal.record.note(State.ROLLING_BACK, **facts)
    resume(reversal.record, references)


def resume(record: Record, references: References) -> None:
    """The steps of a rollback; each may be repeated.

    :raises QcowError: what stands in the way; nothing is lost.
    """
    result = record.facts.get("result_now")
    place = _place(record, result)
    if result is None or place is None:
        _restore_names(record)
        references.restore(record)
    else:
        with Source(place) as source:
            with Guard(source.fd, place) as guard:
                _require_idle(source)
                untouched = (source.identity.size, source.identity.mtime_ns) == (result["size"], result["mtime_ns"])
                if not untouched and record.file("rolled_back_to") is None:
                    record.note(State.ROLLING_BACK, rolled_back_to=named(record.path_of("dest") + KEPT_SUFFIX + record.id.encode("ascii")))
                guard.check()
                _restore_names(record)
                references.restore(record)
                guard.check()
                _set_result_aside(record, result["ino"])
    record.note(State.ROLLED_BACK, retired=None)


def _place(record: Record, result: Optional[Dict[str, Any]]) -> Optional[bytes]:
    """The name the result has just now."""
    for path in (record.path_of("dest"), record.file("rolled_back_to"), temporary_path(record), record.file("retired")):
        if path is not None and result is not None and inode_at(path) == result["ino"]:
            return path
    return None


def _restore_names(record: Record) -> None:
    src, retired, inode = record.path_of("src"), record.file("retired"), record.facts["src"]["ino"]
    if retired is None:
        return
    if inode_at(src) == inode and inode_at(retired) is None:
        return  # an earlier attempt came this far
    if in_place(record) and inode_at(src) is not None:
        replace_keeping(retired, src, record.file("rolled_back_to") or temporary_path(record), inode=inode)
    else:
        retire(retired, src, inode=inode)


def _set_result_aside(record: Record, inode: int) -> None:
    """Delete a result that holds nothing new, or see to it that it has the name it is kept under."""
    kept, dest = record.file("rolled_back_to"), record.path_of("dest")
    if record.facts.get("adopted"):
        return
    there = temporary_path(record) if in_place(record) and record.file("retired") is not None else dest
    if kept is None:
        remove_durably(there, inode=inode)
    elif inode_at(there) == inode or inode_at(kept) == inode:
        retire(there, kept, inode=inode)
