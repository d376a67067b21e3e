# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes after migrations, for many records in one call: rolling back, and deleting the originals."""

import os
import time
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from .._directories import exists, is_directory, real_path
from .._errors import QcowError, StateError, reason_of
from .._libvirt.inventory import DEFAULT_URI
from .._paths import decode_exact, encode_exact, show
from .._signals import Interrupted
from . import cleanup, drawn, leftovers, rollback
from .domain_references import FOLLOW
from .link_references import LEFT, links_of
from .moved_files import AUTO
from .new_dependents import NewDependents
from .record import Record, Records, State
from .record_entries import explain
from .results import Undone
from .session import Session
from .stop import REASON, Stopped, StopRequest

_ROLES = ("src", "dest", "retired", "retire_to")


def select(
    records: Records, paths: Sequence[bytes] = (), identifiers: Sequence[str] = (), *, missing_ok: bool = False
) -> Tuple[List[Record], List[StateError]]:
    """The records of what ``paths`` (images, results, retired originals, or directories above them) and ``identifiers`` name.

    :return: the records, newest first, without those of migrations that failed; and an error for each identifier that is none, and for each
        path that names neither a record nor a directory (it was mistyped, or the records are elsewhere) unless ``missing_ok``.
    """
    everything = list(records.all())
    known = {record.id for record in everything}
    unknown = [
        StateError("there is no record {0}".format(name), records.directory, reason="missing", hint="Nothing was changed for it.")
        for name in identifiers
        if name not in known
    ]
    wanted = {os.path.abspath(path): [os.path.abspath(path), real_path(path)] for path in paths}
    nowhere = [
        path
        for path, names in wanted.items()
        if not missing_ok and not is_directory(path) and not any(_below(record, names) for record in everything)
    ]
    unknown += [
        StateError(
            "no record names it" if exists(path) else "there is no such file or directory, and no record names it",
            path,
            reason="missing",
            hint="Nothing was changed for it. The records are those in {0}; several paths are given as a list.".format(
                show(records.directory)
            ),
        )
        for path in nowhere
    ]
    names = [name for names in wanted.values() for name in names]
    chosen = [record for record in everything if record.id in identifiers or (record.state != State.FAILED and _below(record, names))]
    return list(reversed(chosen)), unknown


def _below(record: Record, wanted: Iterable[bytes]) -> bool:
    names = [name for name in (record.file(role) for role in _ROLES) if name is not None] + links_of(record)
    return any(name == path or name.startswith(path.rstrip(b"/") + b"/") for path in wanted for name in names)


class Choice(NamedTuple):
    """Which records, and how the run goes. ``wait`` is in seconds."""

    state_dir: bytes
    paths: Tuple[bytes, ...] = ()
    records: Tuple[str, ...] = ()
    wait: float = 0
    check_mode: bool = False
    missing_ok: bool = False  # paths that name neither a record nor a directory are no errors
    domains: str = FOLLOW  # what becomes of the libvirt domains that a rollback concerns
    libvirt_uri: str = DEFAULT_URI
    moved_files: str = AUTO  # what to do with files that have other inode numbers or times than recorded

    def session(self) -> Session:
        """A session for the run."""
        return Session(
            self.state_dir, wait=self.wait, domains=self.domains, libvirt_uri=self.libvirt_uri, undoing=True, moved_files=self.moved_files
        )


def answer_of(images: List[Dict[str, Any]], recovered: List[Dict[str, Any]], **more: Any) -> Tuple[Dict[str, Any], str]:
    """The result of a module, and why it has failed; empty where it has not."""
    changed = bool(recovered) or any(image["changed"] for image in images)
    answer = dict(changed=changed, images=images, recovered=recovered, **more)
    return answer, "; ".join(image["msg"] for image in images if image["failed"])


Handle = Callable[[Record], Dict[str, Any]]
"""Handles one record; returns what its result says beyond the record itself. Raises QcowError and OSError."""


def roll_back_all(choice: Choice, *, discard_changes: bool, recovered: Optional[List[Dict[str, Any]]] = None) -> List[Dict[str, Any]]:
    """Roll back what was chosen, newest first; one result for each record.

    What is refused or fails has ``failed: true`` and does not stop the others.

    :param discard_changes: whether guests may lose what they have written since the migration.
    :param recovered: see :func:`.batch.run`.
    :raises StateError: where another run is at work on this host, or the state directory cannot be used.
    :raises QcowError: with reason ``interrupted``.
    """

    def handle(record: Record) -> Dict[str, Any]:
        reversal = rollback.plan_rollback(
            record, session.references, discard_changes=discard_changes, keep=record.path_of("src") in below_kept, moved=session.moved
        )
        ignored: List[str] = []
        diff = None
        if reversal.action == rollback.ROLL_BACK:
            diff = drawn.of_rollback(record, reversal.kept)
            adopted = record.facts.get("adopted")  # a result that was there before stays, whatever rests on it
            if not adopted:
                ignored = dependents.require_none(record)
            if reversal.kept is not None:
                below_kept.update(decode_exact(entry["path"], entry.get("path_base64")) for entry in record.facts.get("chain") or ())
            before = len(record.facts.get(LEFT) or ())
            if choice.check_mode:
                session.references.going_back.add(record.id)
            else:
                rollback.roll_back(reversal, session.references)
            ignored = ignored + (record.facts.get(LEFT) or [])[before:]
            if not adopted:
                dependents.leaves(record)  # only now: had it failed, the result would still rest on its base
        kept = record.file("rolled_back_to") or reversal.kept
        return {
            "action": reversal.action,
            "reasons": reversal.reasons + session.moved.words(record) + ignored,
            "changed": reversal.action == rollback.ROLL_BACK,
            "discarded": reversal.changed,
            "kept": None if kept is None else show(kept),
            "kept_base64": None if kept is None else encode_exact(kept),
            "diff": diff,
        }

    session = choice.session()
    dependents = NewDependents(session.domains)
    below_kept: Set[bytes] = set()
    return _run(choice, session, handle, {"discarded": False, "kept": None, "kept_base64": None, "diff": None}, recovered)


def clean_all(choice: Choice, *, min_age: float, recovered: Optional[List[Dict[str, Any]]] = None) -> List[Dict[str, Any]]:
    """Delete the retired originals among what was chosen (everything, where nothing was named) that have been retired for ``min_age`` seconds.

    Results, parameters and errors as for :func:`roll_back_all`.
    """
    session = choice.session()
    now, dependents = time.time(), NewDependents(session.domains)

    def handle(record: Record) -> Dict[str, Any]:
        removal = cleanup.plan_cleanup(record, min_age=min_age, now=now, dependents=dependents, moved=session.moved)
        if removal.action == cleanup.DELETE and not choice.check_mode:
            cleanup.clean(removal)
        reasons = removal.reasons + session.moved.words(record)
        return dict(cleanup.describe(removal), action=removal.action, reasons=reasons, changed=removal.action == cleanup.DELETE)

    if not choice.paths and not choice.records:
        choice = choice._replace(paths=(b"/",))
    return _run(choice, session, handle, cleanup.describe(None), recovered)


def _run(
    choice: Choice, session: Session, handle: Handle, missing: Dict[str, Any], recovered: Optional[List[Dict[str, Any]]]
) -> List[Dict[str, Any]]:
    recovered = [] if recovered is None else recovered
    results: List[Dict[str, Any]] = []
    nothing_migrated = next(session.records.all(), None) is None and not session.anything_left
    if choice.check_mode or (nothing_migrated and not choice.records):  # where nothing was ever migrated no lock is left behind either
        recovered.extend(leftovers.explain(session))
        _handle_all(choice, session, handle, missing, results)
        return results
    try:
        with session:
            recovered.extend(leftovers.look_after(session))
            _handle_all(choice, session, handle, missing, results)
            _refresh_pools(session, results)
    except Stopped as error:  # without the lock, so whatever became of the request
        _handle_all(choice, session, handle, missing, results, error.request)
    except Interrupted as error:
        raise QcowError(
            str(error), reason="interrupted", hint="Run again to continue; unfinished work is completed first.", images=results
        ) from error
    return results


def _handle_all(
    choice: Choice,
    session: Session,
    handle: Handle,
    missing: Dict[str, Any],
    results: List[Dict[str, Any]],
    stopped: Optional[StopRequest] = None,
) -> None:
    chosen, unknown = select(session.records, choice.paths, choice.records, missing_ok=choice.missing_ok)
    for error in unknown:
        refused = Undone("refuse", [str(error)], str(error), failed=True, reason=error.reason)
        results.append(dict(refused._asdict(), **missing))
    if choice.check_mode:
        results.extend(_result_of(record, handle, missing) for record in chosen)
        return
    if stopped is not None:
        results.extend(_deferred(record, stopped, missing) for record in chosen)
        return
    session.progress.begin([(record.file("src") or b"", 0) for record in chosen])
    for record in chosen:
        stop = session.stop.request()
        if stop is not None:
            results.append(_deferred(record, stop, missing))
            continue
        results.append(_result_of(record, handle, missing))
        session.progress.ended(0, failed=results[-1]["failed"])


def _refresh_pools(session: Session, results: List[Dict[str, Any]]) -> None:
    """Once for all records, as after a migration: a volume that has gone would stay listed."""
    changed = [result for result in results if result["changed"]]
    names = [(result[role], result[role + "_base64"]) for result in changed for role in ("src", "dest", "retired")]
    problems = session.domains.refreshed([decode_exact(*name) for name in names if name[0] is not None])
    if problems:
        changed[0]["reasons"].extend(problems)


_NAMES = ("record", "src", "src_base64", "dest", "dest_base64", "retired", "retired_base64", "time")


def _deferred(record: Record, stop: StopRequest, missing: Dict[str, Any]) -> Dict[str, Any]:
    """The result of a record that is left to another run."""
    known = explain(record)
    left = Undone("defer", stop.reasons, "; ".join(stop.reasons), reason=REASON, state=record.state, **{key: known[key] for key in _NAMES})
    return dict(left._asdict(), **missing)


def _result_of(record: Record, handle: Handle, missing: Dict[str, Any]) -> Dict[str, Any]:
    before = explain(record)
    names = {key: before[key] for key in _NAMES}
    try:
        more = handle(record)
        done = Undone(more.pop("action"), more.pop("reasons"), "", more.pop("changed"), **names)
        done = done._replace(msg="; ".join(done.reasons))
    except QcowError as error:
        done, more = Undone("refuse", [str(error)], str(error), failed=True, reason=error.reason, **names), missing
    except OSError as error:
        message = "{0}: {1}".format(before["src"], error.strerror or error)
        done, more = Undone("refuse", [message], message, failed=True, reason=reason_of(error), **names), missing
    return dict(done._replace(state=record.state)._asdict(), **more)
