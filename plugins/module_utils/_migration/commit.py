# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a proven result to the end of a migration, and the way back where that end cannot be reached.

Works from the record alone, so that a run which was interrupted and the run that comes after it take the same steps. The original is
held by a guard from before the copy until after its retirement: renaming neither breaks a lease nor needs one, and a program that was
about to open the original for writing is held at its ``open`` until the guard has looked once more after the rename. Without that last
look it would go on with a file that has lost its name.
"""

import os
from typing import Any, Dict

from .._errors import ImageChanged, ImageInUse, QcowError, StateError
from .._host.files import identity_at, inode_at
from .._host.in_use import WRITER, require_unused
from .._host.renames import publish_new, remove_durably, replace_keeping, retire
from .._paths import show
from .record import Record, State, named, now
from .references import References
from .request import temporary_name
from .source import Source


def finish(record: Record, references: References, source_fd: int, guard: Any, *, hold: bool = False) -> None:
    """Publish, re-point, retire, done: whatever of that is left.

    :param record: in the state ``verified`` or later.
    :param source_fd: the original, open for reading; ``guard`` is on it.
    :param hold: only publish; what rests on the original has still to follow.
    :raises QcowError: the message's hint says what is in place then.
    """
    if record.state == State.VERIFIED:
        _publish(record, source_fd, guard)
    if hold:
        return
    try:
        if record.state == State.PUBLISHED:
            references.repoint(record)
            record.note(State.REPOINTED)
        if record.state == State.REPOINTED and record.file("retire_to") is not None:
            _retire(record, references, source_fd, guard)
        record.note(State.DONE)
    except QcowError as error:
        if record.state != State.FAILED:
            error.hint = "The result is in place as {0}; nothing is lost. Run again to finish.".format(show(record.path_of("dest")))
        raise


def in_place(record: Record) -> bool:
    """Whether the result takes the original's own name."""
    return record.path_of("src") == record.path_of("dest")


def published(record: Record) -> bool:
    """Whether the result has its name already, whatever the record says."""
    result = record.facts.get("result")
    return result is not None and inode_at(record.path_of("dest")) == result["ino"]


def abandon(record: Record, reason: str) -> None:
    """Give up a migration whose result has no name yet: remove it and say so in the record. The original is as it was.

    Where the result cannot even be removed, the record keeps its name and the next run tries again.

    :raises QcowError: it cannot be removed, or the record cannot be written.
    """
    facts: Dict[str, Any] = {"error": reason, "temporary": None}
    try:
        _remove_result(record)
        backup = record.file("retire_to")
        if backup is not None and in_place(record) and inode_at(backup) == record.facts["src"]["ino"] == inode_at(record.path_of("src")):
            remove_durably(backup, inode=record.facts["src"]["ino"])
    except BaseException:
        facts["temporary"] = record.facts.get("temporary") or named(temporary_path(record))
        raise
    finally:
        record.note(State.FAILED, **facts)


def temporary_path(record: Record) -> bytes:
    """Where the unfinished result is, if there is one: its name follows from the record's, so that it is known before it is recorded."""
    return record.file("temporary") or os.path.join(os.path.dirname(record.path_of("dest")) or b".", temporary_name(record.id))


def withdraw(record: Record, references: References, reason: str) -> None:
    """Take back a result that has its name while the original still has its own: the references first, then the name.

    Only for a result that is still what was published. One that was there before the migration stays.

    :raises QcowError: something could not be taken back; the record stays where it was.
    """
    references.restore(record)
    if not record.facts.get("adopted"):
        remove_durably(record.path_of("dest"), inode=record.facts["result"]["ino"])
    record.note(State.FAILED, error=reason, temporary=None)


def _remove_result(record: Record) -> None:
    """Remove the unfinished file, unless the name holds something else (as the original, in the middle of an exchange).

    :raises QcowError: that is so, or it cannot be removed.
    """
    temporary = temporary_path(record)
    if inode_at(temporary) is None:
        return
    with Source(temporary) as source:
        # By content: inode numbers may be others by now, and the name is made of the record's own, so that what has it was made by that run.
        if in_place(record) and source.identify().format == "qcow":
            raise StateError(
                "has the name of an unfinished result, but is a QCOW v1 image: it may be the original",
                temporary,
                hint="It was left as it is. Look at it, move it back or away, and run again.",
            )
        remove_durably(temporary, inode=source.identity.ino)


def _publish(record: Record, source_fd: int, guard: Any) -> None:
    temporary, dest, backup = temporary_path(record), record.path_of("dest"), record.file("retire_to")
    inode = record.facts["result"]["ino"]
    try:
        guard.check()
        if backup is not None and not published(record) and not record.facts.get("domain_access"):
            _require_original_unused(record, source_fd)
        if in_place(record) and backup is not None:
            replace_keeping(temporary, dest, backup, inode=inode)
        else:
            publish_new(temporary, dest, inode=inode)
    except (QcowError, OSError) as error:
        if not published(record):
            raise
        raise QcowError(
            "the result has its name, but that could not be made durable: {0}".format(error),
            dest,
            reason=getattr(error, "reason", "error"),
            hint="Nothing is lost. Look after the storage and run again to finish.",
        ) from error
    record.note(State.PUBLISHED, temporary=None)


def _retire(record: Record, references: References, source_fd: int, guard: Any) -> None:
    src, backup = record.path_of("src"), record.path_of("retire_to")
    inode = record.facts["src"]["ino"]
    if not in_place(record):
        if inode_at(src) == inode:
            _last_look(record, references, source_fd, guard)
        retire(src, backup, inode=inode)
    try:
        guard.check()
    except (ImageInUse, ImageChanged) as error:
        _give_back(record, references, error)
        raise
    record.note(State.RETIRED, retired=record.facts["retire_to"], retired_time=now())


def _last_look(record: Record, references: References, source_fd: int, guard: Any) -> None:
    """Before the original loses its name. A writer makes the original the truth again, and the result out of date."""
    try:
        guard.check()
        _require_original_unused(record, source_fd)
    except (ImageInUse, ImageChanged) as error:
        if written(error) and result_unchanged(record):
            withdraw(record, references, str(error))
            error.hint = "The result was taken back. Stop what writes the original and run again."
        raise


def written(error: QcowError) -> bool:
    """Whether an error means that somebody writes, or has written, the original; a mere reader does not make the result wrong."""
    return isinstance(error, ImageChanged) or any(user["kind"] == WRITER for user in error.details.get("users", []))


def result_unchanged(record: Record) -> bool:
    """Whether the result is still what was published."""
    there = identity_at(record.path_of("dest"))
    return there is not None and there.is_recorded(record.facts["result"])


def _give_back(record: Record, references: References, error: QcowError) -> None:
    """A writer slipped in between the last look and the rename: the original gets its name back before anything else happens."""
    src, backup, dest = record.path_of("src"), record.path_of("retire_to"), record.path_of("dest")
    inode = record.facts["src"]["ino"]
    references.restore(record)
    if in_place(record):
        discarded = temporary_path(record)
        replace_keeping(backup, src, discarded, inode=inode)
        remove_durably(discarded)
    else:
        retire(backup, src, inode=inode)
        if not record.facts.get("adopted"):
            remove_durably(dest, inode=record.facts["result"]["ino"])
    record.note(State.FAILED, error=str(error), temporary=None)


def _require_original_unused(record: Record, source_fd: int) -> None:
    """Refuse to take the name away from an original that anybody has open."""
    require_unused(source_fd, "the original", record.path_of("src"), "It was left in its place. Stop what uses it and run again.")
