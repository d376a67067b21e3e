# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run does first: finish or clean up what an interrupted one has left. And what to say about it without doing it.

The record tells which step was allowed last; the names and inode numbers on the filesystem tell whether it was taken.

* Before ``verified`` nothing of the result is to be trusted: it is removed, and the original is as it was.
* From ``verified`` on the result is proven and durable: it is not made again, but brought to its end, provided that the original is still
  what was copied and nobody writes it. Otherwise the result is withdrawn.
"""

import os
from typing import Any, Callable, Dict, List, Optional

from .._directories import exists
from .._errors import ImageChanged, ImageInUse, QcowError, StateError
from .._host.files import identity_at, inode_at
from .._host.in_use import Guard
from .._host.renames import remove_durably, retire
from .._libvirt import api, control, domain_xml, redefine
from .._paths import decode_exact, show
from .commit import abandon, finish, in_place, published, result_unchanged, temporary_path, withdraw, written
from .record import Record, State
from .record_entries import explain
from .references import References
from .results import Recovered
from .rollback import resume
from .running_domains import REDEFINED, SNAPSHOT, STOPPED
from .session import Session
from .source import Source


def recover(session: Session) -> List[Dict[str, Any]]:
    """Finish or clean up every unfinished record, with the session entered: no other run is at work on this host.

    :return: one entry for each record that was looked after, see :class:`.results.Recovered`.
    """
    records = session.records
    records.sweep()
    answers = []
    for path in records.unreadable():
        message = "{0}: this record cannot be read; its storage has failed. Move it away once you have looked at it.".format(show(path))
        answers.append(dict(Recovered(message, None, failed=True)._asdict()))
    return answers + _look_after(records.unfinished(), session)


def _look_after(records: List[Record], session: Session) -> List[Dict[str, Any]]:
    answers: List[Dict[str, Any]] = []
    waiting: List[Record] = []
    for record in records:
        if session.stop.request() is not None:
            break  # what is left stays as it is until the next run
        failed = False
        try:
            session.moved.settle(record)
            words = "; ".join([_recover(record, session.references)] + session.moved.words(record))
        except QcowError as error:
            failed, words = error.reason != "needed", str(error)
            if not failed:
                waiting.append(record)
                continue
        except OSError as error:
            failed, words = True, "{0}: {1}".format(show(record.file("src") or b""), error.strerror or error)
        answers.append(_recovered(record, words, failed))
    if waiting and answers:  # a base waits for its overlays: those come after it, and some were looked after now
        return answers + _look_after(waiting, session)
    session.waiting = {record.id for record in waiting}
    return answers


def recover_waiting(session: Session) -> List[Dict[str, Any]]:
    """Look after the records again that had to wait for what the run has migrated since.

    :return: see :func:`recover`; nothing for those that still wait.
    """
    return (
        _look_after([record for record in session.records.unfinished() if record.id in session.waiting], session) if session.waiting else []
    )


def recover_all(session: Session) -> List[Dict[str, Any]]:
    """Everything that an interrupted run has left: domains on overlays and half-changed definitions first, then records, then domains that are off.

    :return: see :func:`recover`.
    """
    return recover_definitions(session) + recover(session) + restart_domains(session)


def explain_all(session: Session) -> List[Dict[str, Any]]:
    """What :func:`recover_all` would look after; nothing is done."""
    return explain_domains(session) + [_explained(record, session) for record in session.records.unfinished()]


def _explained(record: Record, session: Session) -> Dict[str, Any]:
    try:
        session.moved.settle(record)
    except QcowError as error:
        return _recovered(record, str(error), True)
    return _recovered(record, "; ".join([explain(record)["unfinished"] or ""] + session.moved.words(record)), False)


def _recovered(record: Record, words: str, failed: bool) -> Dict[str, Any]:
    known = explain(record)
    names = {key: known[key] for key in ("record", "src", "src_base64", "dest", "dest_base64", "state")}
    return dict(Recovered(msg=words, failed=failed, **names)._asdict())


def _recover(record: Record, references: References) -> str:
    if record.state == State.ROLLING_BACK:
        resume(record, references)
        return "finished the rollback"
    if record.state == State.CLEANING:
        return _settle_cleaning(record)
    if record.state in (State.PLANNED, State.COPYING, State.FAILED):
        words = "removed the temporary file" if record.state == State.COPYING else "cleaned up"
        abandon(record, record.facts.get("error") or "interrupted")
        return words
    if record.state == State.RETIRED:
        record.note(State.DONE)
        return "finished the record"
    return _complete(record, references)


def _settle_cleaning(record: Record) -> str:
    """The deletion was decided on; whether it happened shows. It is not repeated here: the next cleanup looks at everything again."""
    if inode_at(record.file("retired")) is not None:
        record.note(State.DONE)
        return "the retired original is still there"
    record.note(State.CLEANED)
    return "the retired original is deleted"


def _complete(record: Record, references: References) -> str:
    """A record between ``verified`` and ``retired``."""
    name = _original(record)
    result_in_place = published(record)
    if name is None:
        return _without_original(record, result_in_place)
    if in_place(record) and record.state != State.VERIFIED and not result_in_place and name == record.path_of("src"):
        _discard_given_back(record)
        return "the original already had its name back; removed the result"
    if record.state == State.VERIFIED and not result_in_place and inode_at(temporary_path(record)) != record.facts["result"]["ino"]:
        _require_mounted(record)
        abandon(record, "the result is gone")
        return "the result did not survive; the original is as it was"
    if record.state in (State.PUBLISHED, State.REPOINTED) and inode_at(record.path_of("dest")) is None:
        _require_mounted(record)
        if name != record.path_of("src"):
            retire(name, record.path_of("src"), inode=record.facts["src"]["ino"])
        withdraw(record, references, "the result is gone")
        return "the result was removed by other means; the original has its name and what refers to it"
    try:
        with Source(name) as source:
            _require_unchanged(record, source)
            with Guard(source.fd, name) as guard:
                finish(record, references, source.fd, guard)
    except (ImageChanged, ImageInUse) as error:
        return _turn_back(record, references, error, result_in_place)
    return "put the proven result in place" if not result_in_place else "finished the migration"


def _require_mounted(record: Record) -> None:
    """See that the directory of a missing result is what it was: where its filesystem is only not mounted, guests may have written to the result.

    :raises StateError: it is not, or that cannot be known.
    """
    directory, original = (os.path.dirname(record.path_of(role)) for role in ("dest", "src"))
    there = identity_at(directory)
    if directory != original and (there is None or there.dev != (record.facts.get("result") or {}).get("dev")):
        raise StateError(
            "the result is not there, and its directory is on another filesystem than it was: is that mounted?",
            record.path_of("dest"),
            hint="Nothing was changed. Mount it and run again. If the result is lost, put a copy of it back, or move the record {0} away and look after "
            "what refers to the result.".format(show(record.path)),
        )


def _original(record: Record) -> Optional[bytes]:
    """The name the original has just now."""
    for path in (record.path_of("src"), record.file("retire_to"), temporary_path(record)):
        if path is not None and inode_at(path) == record.facts["src"]["ino"]:
            return path
    return None


def _without_original(record: Record, result_in_place: bool) -> str:
    if result_in_place and inode_at(record.path_of("src")) in (None, record.facts["result"]["ino"]):
        record.note(State.DONE, error="the original is gone", temporary=None)
        return "the original was removed by other means; the verified result is in place"
    if result_in_place:
        record.note(State.FAILED, error="another file has the original's name", temporary=None)
        return "another file has taken the original's name; it and the result were left as they are"
    abandon(record, "the original is gone")
    return "the original was removed or replaced by other means; removed the result"


def _require_unchanged(record: Record, source: Source) -> None:
    """The times of the file's name do not matter here, only those of its content."""
    was = record.facts["src"]
    if (source.identity.size, source.identity.mtime_ns) != (was["size"], was["mtime_ns"]):
        raise ImageChanged("was written after it had been copied", source.path, hint="Run again to convert it as it is now.")


def _turn_back(record: Record, references: References, error: QcowError, result_in_place: bool) -> str:
    """The original is being used or was written since: it is the truth, unless somebody has begun to use the result."""
    if record.state == State.FAILED:
        raise error
    if not published(record):
        abandon(record, str(error))
        return "removed the result: {0}".format(error)
    if in_place(record) or not result_unchanged(record):
        raise StateError(
            "the original and the result have both been used since this migration was interrupted: {0}".format(error),
            record.path_of("src"),
            hint="Neither was touched. Stop what uses them, find out which of them the guest has used last, give the other one another name, and run again.",
        )
    if not written(error):
        raise error
    withdraw(record, references, str(error))
    return "took the result back: {0}".format(error)


def _discard_given_back(record: Record) -> None:
    leftover = temporary_path(record)
    if inode_at(leftover) == record.facts["result"]["ino"]:
        remove_durably(leftover, inode=record.facts["result"]["ino"])
    record.note(State.FAILED, error="a writer opened the original before it was retired", temporary=None)


# ---- domains ----

_SAYS_OF_DOMAINS = {
    STOPPED: "domain {0} will be started again",
    SNAPSHOT: "domain {0} will be put back on its image",
    REDEFINED: "the definition of domain {0} will be put back",
}


def recover_definitions(session: Session) -> List[Dict[str, Any]]:
    """Put domains that a run which died has left on an overlay back on their images, and definitions that it has changed in part. To be done before
    its records are dealt with.

    :return: entries like those of :func:`recover`, one for each image.
    """
    return _recover_domains(session, {SNAPSHOT: _off_the_snapshot, REDEFINED: _same_for_all})


def restart_domains(session: Session) -> List[Dict[str, Any]]:
    """Start domains that a run which died had shut down. To be done when the records have been dealt with."""
    return _recover_domains(session, {STOPPED: _start})


def explain_domains(session: Session) -> List[Dict[str, Any]]:
    """What the next run will do about domains, for check mode."""
    return [
        answer
        for entry in session.journal.entries()
        for answer in _entries(entry, _SAYS_OF_DOMAINS[entry["kind"]].format(entry["domain"]), False)
    ]


Recovery = Callable[[api.Connection, Dict[str, Any]], str]
"""Does what an entry of the journal asks for; returns in words what was done. May be done again."""


def _recover_domains(session: Session, how: Dict[str, Recovery]) -> List[Dict[str, Any]]:
    answers: List[Dict[str, Any]] = []
    for entry in session.journal.entries():
        if entry["kind"] not in how:
            continue
        try:
            connection = api.connect(session.domains.uri, readonly=False)
            try:
                words = how[entry["kind"]](connection, entry)
            finally:
                api.close(connection)
            session.journal.clear(entry["key"])
            answers += _entries(entry, words, False)
        except QcowError as error:
            answers += _entries(entry, "Domain {0} was left by an interrupted run. {1}".format(entry["domain"], error), True)
    return answers


def _entries(entry: Dict[str, Any], words: str, failed: bool) -> List[Dict[str, Any]]:
    return [
        dict(Recovered(words, entry["kind"], failed, src=item["path"], src_base64=item["path_base64"])._asdict()) for item in entry["src"]
    ]


def _off_the_snapshot(connection: api.Connection, entry: Dict[str, Any]) -> str:
    overlays = {item["target"]: decode_exact(item["path"], item["path_base64"]) for item in entry["overlays"]}
    taken = control.Snapshot(
        entry["domain"], entry["uuid"], tuple(control.Overlay(target, b"", path) for target, path in sorted(overlays.items())), None
    )
    if not control.on_overlay(connection, taken):
        _remove_chain_end(connection, entry)
        for path in overlays.values():
            if exists(path):
                remove_durably(path)
        return "domain {0} is on no overlay any more".format(entry["domain"])
    if not api.domain(connection, entry["uuid"]).isActive():
        raise QcowError(
            "It is off now, and what it wrote lately is in {0}, on top of its image.".format(
                ", ".join(show(path) for path in overlays.values())
            ),
            reason="snapshot",
            hint="Do not remove that file. Start the domain (virsh start {0}) and run again: it is then put back on its image.".format(
                entry["domain"]
            ),
        )
    control.commit_back(connection, taken)
    now = api.definition(connection, api.domain(connection, entry["uuid"]))
    redefine.restore(connection, domain_xml.put_back(now, entry["before"]), running=True)
    return "domain {0} had been left on an overlay; it was put back on its image".format(entry["domain"])


def _remove_chain_end(connection: api.Connection, entry: Dict[str, Any]) -> None:
    """It pivoted before the run died: libvirt's end-of-chain mark goes from its definition where there was none before."""
    handle = api.domain(connection, entry["uuid"])
    if handle.isPersistent():
        now = api.definition(connection, handle)
        for target, before in entry["before"].items():
            if "<backingStore" not in before:
                now = domain_xml.without_chain_end(now, target)
        redefine.restore(connection, now, running=True)


def _same_for_all(connection: api.Connection, entry: Dict[str, Any]) -> str:
    """All definitions as they were; or, where a domain has been started meanwhile on what it was changed to, all of them changed."""
    found = [(facts, api.find_definition(connection, facts["uuid"])) for facts in entry["definitions"]]
    there = [(facts, *known) for facts, known in found if known is not None]  # one that was undefined since has nothing to be put back
    forward = any(active and _disks(text, facts) == facts["after"] for facts, text, active in there)
    wanted = "after" if forward else "before"
    for facts, text, active in there:
        if _disks(text, facts) != facts[wanted]:
            redefine.restore(connection, domain_xml.put_back(text, facts[wanted]), running=active)
    return "the definition of domain {0} was {1}".format(entry["domain"], "changed to the end" if forward else "put back")


def _disks(text: str, facts: Dict[str, Any]) -> Dict[str, str]:
    return domain_xml.disk_elements(text, facts["before"])


def _start(connection: api.Connection, entry: Dict[str, Any]) -> str:
    control.start(connection, entry["uuid"])
    return "domain {0} had been shut down for the migration; it runs again".format(entry["domain"])
