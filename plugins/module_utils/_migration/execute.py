# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Executes a plan: copy, verify, publish, retire, each step recorded before it happens."""

import os
import time
from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from .._copy.copier import copy_extents
from .._copy.writers import DeviceWriter
from .._errors import ImageChanged, QcowError, StateError
from .._host.attributes import carry_over, prepare
from .._host.files import create_temporary, identity, identity_at, sync_directory
from .._image.extent import SECTOR, filled
from .._paths import show
from .._signals import Interrupted, Uninterrupted
from .._verify.compare import verify
from .._verify.qcow_readers import open_reader
from . import link_references, overlay_headers
from .block_device import open_exclusively
from .commit import abandon, finish, published, temporary_path, withdraw
from .output import read_back, second_opinion, write
from .plan import CONVERT, RETIRE, Plan
from .progress import Pace
from .record import Record, Records, State, named
from .results import Outcome
from .seen_images import SEARCHED
from .session import Session
from .source import Guards, Source, ranges_of

OnProgress = Callable[[bytes, str, int], None]
"""Told of an image, of a stage (``copy`` or ``verify``) and of the guest bytes it has dealt with since the last call."""


def execute(plan: Plan, session: Session, progress: Optional[OnProgress] = None) -> Outcome:
    """Carry out a plan that is not a refusal.

    :raises QcowError: after which the source and the old state are as they were, and nothing unfinished is left.
    :raises OSError: likewise.
    """
    if plan.action not in (CONVERT, RETIRE):
        return Outcome(False, plan.dest)
    with Migration(plan, session, progress) as migration:
        migration.prove()
        with Uninterrupted():
            migration.publish()
            return migration.complete()


class Migration:
    """One image on its way, with everything that it rests on (context manager). Nobody can write any of it until it is complete.

    :meth:`prove` makes the result; :meth:`publish` gives it its name; :meth:`complete` re-points what refers to the original and retires it.
    Between the last two, other images of the same chain can be converted on top of the result.
    """

    def __init__(self, plan: Plan, session: Session, progress: Optional[OnProgress] = None) -> None:
        self.plan = plan
        self._records = session.records
        self._references = session.references
        self._looks = session.looks
        self._progress = progress
        self._stack = ExitStack()
        self._outcome = Outcome(True, plan.dest)
        self.record: Optional[Record] = None

    def __enter__(self) -> "Migration":
        """:raises QcowError: where the images are not what was planned for, or cannot be read, or are in use by a writer."""
        plan = self.plan
        with ExitStack() as stack:
            self.source = stack.enter_context(Source(plan.request.src, plan.identity, plan.below))
            self.guard = stack.enter_context(Guards(self.source))
            if plan.action == CONVERT:
                self.source.open_layers({} if plan.lost else None)
                self.source.unlock(dict(plan.request.passphrase_files), force=plan.request.force_passphrase)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Optional[BaseException], *dummy: Any) -> None:
        if error is not None:
            self._undo(error)
        self._stack.close()

    def prove(self) -> None:
        """Record, copy and prove; or take up what an interrupted run has left.

        :raises QcowError: after which the old state is there again. :raises OSError: likewise.
        """
        plan = self.plan
        self.record = record = self._unfinished() or _begin(plan, self.source, self._records)
        try:
            if record.state == State.PLANNED and plan.action == RETIRE:
                self._outcome = _adopt(plan, record)
            elif record.state == State.PLANNED and plan.device is not None:
                self._outcome = _fill_device(plan, plan.device, self.source, self.guard, record, self._progress)
            elif record.state == State.PLANNED:
                self._outcome = _produce(plan, self.source, self.guard, record, self._progress)
            if plan.retired is not None:
                self._looks.require_nothing_new(plan.request.src, plan.users, links=not plan.in_place)
        except BaseException as error:
            self._undo(error)
            raise
        self._outcome = self._outcome._replace(record=record.id)

    def publish(self) -> None:
        """Give the result its name.

        :raises QcowError: after which the old state is there again. :raises OSError: likewise.
        """
        try:
            finish(self._begun(), self._references, self.source.fd, self.guard, hold=True)
        except BaseException as error:
            self._undo(error)
            raise

    def complete(self) -> Outcome:
        """The rest: after this the record is done, and nobody is kept out any more. Our own re-pointing of an overlay that another image of the
        chain rests on would wait for this one's lease, too.

        :raises QcowError: the result stays, and the next run goes on.
        """
        record = self._begun()
        try:
            finish(record, self._references, self.source.fd, self.guard)
        except BaseException as error:
            self._undo(error)
            raise
        finally:
            self._stack.close()
        left = record.facts.get(link_references.LEFT) or []
        return self._outcome._replace(retired=self.plan.retired, warnings=self._outcome.warnings + left)

    def withdraw(self, reason: str) -> None:
        """Take a published result back, because what rests on it could not be converted. One that has replaced its original stays."""
        record = self.record
        if record is not None and record.state == State.PUBLISHED and not self.plan.in_place and not record.facts.get("adopted"):
            withdraw(record, self._references, reason)

    def _begun(self) -> Record:
        if self.record is None:
            raise StateError("no result has been made", self.plan.request.src)
        return self.record

    def _unfinished(self) -> Optional[Record]:
        if self.plan.unfinished is None:
            return None
        return next((record for record in self._records.of_source(self.plan.request.src) if record.id == self.plan.unfinished), None)

    def _undo(self, error: BaseException) -> None:
        record = self.record
        if record is not None and record.state in (State.PLANNED, State.COPYING, State.VERIFIED) and not published(record):
            _give_up(record, error)


def execute_chain(plans: List[Plan], session: Session, progress: Optional[OnProgress] = None) -> List[Union[Outcome, Exception]]:
    """Carry out the plans of images that hang together, bases first: all results are in place before any original loses its name.

    :param plans: none of them a refusal; in any order.
    :return: for each plan its outcome, or why it was not carried out.
    """
    results: List[Union[Outcome, Exception]] = [Outcome(False, plan.dest) for plan in plans]
    order = sorted((number for number, plan in enumerate(plans) if plan.action in (CONVERT, RETIRE)), key=lambda n: len(plans[n].below))
    started: List[Tuple[int, Migration]] = []
    with ExitStack() as stack:
        try:
            for position, number in enumerate(order):
                try:
                    migration = stack.enter_context(Migration(_where_originals_are(plans[number], plans), session, progress))
                    migration.prove()
                    with Uninterrupted():
                        migration.publish()
                        started.append((number, migration))
                except (QcowError, OSError) as error:
                    results[number] = error
                    _take_back(started, results, plans[number])
                    for other in order[position + 1 :]:
                        results[other] = _not_tried(plans[other], plans[number])
                    return results
            stack.enter_context(Uninterrupted())  # once the first original has lost its name, the others have to
        except Interrupted:
            _take_back(started, results, plans[order[len(started) - 1]])
            raise
        for number, migration in reversed(started):
            try:
                results[number] = migration.complete()
            except (QcowError, OSError) as error:
                results[number] = error
    return results


def _where_originals_are(plan: Plan, group: List[Plan]) -> Plan:
    """The plan, its backing files by the names they have after bases were replaced under their own names."""
    moved = {other.request.src: other.retired for other in group if other.in_place and other.action == CONVERT}
    below = tuple(member._replace(real=moved[member.real] or member.real) if member.real in moved else member for member in plan.below)
    return plan._replace(below=below)


def _not_tried(plan: Plan, failed: Plan) -> QcowError:
    return QcowError(
        "not converted, because {0} of the same chain could not be".format(show(failed.request.src)),
        plan.request.src,
        reason="chain",
        hint="It was left as it is.",
    )


def _take_back(started: List[Tuple[int, Migration]], results: List[Union[Outcome, Exception]], failed: Plan) -> None:
    for number, migration in reversed(started):
        results[number] = _not_tried(migration.plan, failed)
        try:
            migration.withdraw("{0} of the same chain could not be converted".format(show(failed.request.src)))
        except (QcowError, OSError) as error:
            results[number] = error


def _begin(plan: Plan, source: Source, records: Records) -> Record:
    """The record, with everything that a later run needs to finish or clean up without asking anybody."""
    facts: Dict[str, Any] = {}
    if plan.below:
        facts["chain"] = [named(member.path, format=member.format) for member in plan.below]
    if plan.backing is not None:
        facts["backing"] = named(plan.backing.name, format=plan.backing.format)
    if plan.lost:
        facts["lost"] = plan.lost_ranges
    if plan.dependents:
        facts[overlay_headers.WANTED] = overlay_headers.as_facts(list(plan.dependents))
    if plan.links:
        facts[link_references.FACT] = link_references.as_facts(plan)
    if plan.searched:
        facts[SEARCHED] = [named(path) for path in plan.searched]
    if plan.needed_by:
        facts[overlay_headers.NEEDED_BY] = [named(path) for path in plan.needed_by]
    if plan.request.bandwidth:
        facts["bandwidth"] = plan.request.bandwidth
    if plan.request.domain_access:
        facts["domain_access"] = plan.request.domain_access  # a running domain reads the original until it has followed to the result
    return records.begin(
        named(source.path, **source.identity._asdict()),
        named(plan.dest),
        format=plan.request.format,
        engine=plan.engine,
        before=plan.before,
        retire_to=None if plan.retired is None else named(plan.retired),
        **facts,
    )


def _give_up(record: Record, error: BaseException) -> None:
    """Leave the old state. What goes wrong here must not hide what went wrong first: the next run cleans up what is left."""
    try:
        abandon(record, str(error) or type(error).__name__)
    except (QcowError, OSError):
        pass


def _adopt(plan: Plan, record: Record) -> Outcome:
    """A result that was there already, and was proven when the plan was made."""
    with Source(plan.dest) as there:
        record.note(State.PUBLISHED, adopted=True, verified=True, result=there.identity._asdict())
    return Outcome(True, plan.dest, record=record.id)


def _fill_device(plan: Plan, device: int, source: Source, guard: Guards, record: Record, progress: Optional[OnProgress]) -> Outcome:
    """Write the result over a block device and prove it. There is no way back to what the device held, and the record says so."""
    fd = open_exclusively(plan.dest, device)
    try:
        record.note(State.COPYING, device=named(plan.dest))
        started = time.monotonic()
        source.fetch_foreign(os.path.dirname(plan.request.src), whole=False)
        extents = filled(source.extents(), source.layers[0], plan.virtual_size)
        writer = DeviceWriter(fd, plan.virtual_size)
        written = copy_extents(extents, source.layers, writer, _stage(progress, plan, "copy", guard), hashed=plan.request.verify)
        os.fsync(fd)
        copied = time.monotonic()
        proof = None
        if plan.request.verify:
            result = open_reader("raw", fd, plan.dest)
            result.size = plan.virtual_size  # the rest of the device is none of ours
            advance = _stage(progress, plan, "verify", guard)
            proof = verify(source.readers(ranges_of(plan.lost)), [result], plan.dest, advance, copied=written.fingerprint)
        guard.check()
        _require_still_named(source)
        size = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    after = {
        "path": record.facts["dest"]["path"],
        "format": "raw",
        "virtual_size": plan.virtual_size,
        "file_size": size,
        "allocated_size": size,
        "cluster_size": None,
    }
    there = identity_at(plan.dest)
    if there is None:
        raise ImageChanged("the device is gone.", plan.dest, hint="The original was not changed. Look for the device and run again.")
    seconds = (copied - started, time.monotonic() - copied)
    record.note(
        State.PUBLISHED,
        adopted=True,
        fingerprint=proof,
        verified=plan.request.verify,
        after=after,
        result=there._asdict(),
        copy_bytes=plan.guest_bytes,
        seconds=round(sum(seconds), 3),
    )
    return Outcome(True, plan.dest, plan.engine, plan.request.verify, proof, None, record.id, after, guard.warnings, *seconds)


def _produce(plan: Plan, source: Source, guard: Guards, record: Record, progress: Optional[OnProgress]) -> Outcome:
    """Write the result under its temporary name, prove it and make it durable."""
    temporary = temporary_path(record)
    fd = create_temporary(os.path.dirname(temporary), os.path.basename(temporary))
    try:
        inode = os.fstat(fd).st_ino
        record.note(State.COPYING, temporary=named(temporary, ino=inode))
        warnings = guard.warnings + prepare(fd, source.fd)
        started = time.monotonic()
        written = write(plan, source, fd, os.path.dirname(temporary), _stage(progress, plan, "copy", guard))
        copied = time.monotonic()
        proof = None
        if plan.request.verify:
            proof = _prove(plan, source, fd, temporary, written, _stage(progress, plan, "verify", guard))
            second_opinion(plan, fd)
        guard.check()
        _require_still_named(source)
        warnings += carry_over(
            source.fd,
            fd,
            timestamps=plan.request.timestamps,
            below=[base for _member, base in source.pairs()] if plan.backing is None else (),
        )
        os.fsync(fd)
        sync_directory(os.path.dirname(temporary))
        after = {
            "path": record.facts["dest"]["path"],
            "format": plan.request.format,
            "virtual_size": plan.virtual_size,
            "file_size": identity(fd).size,
            "allocated_size": os.fstat(fd).st_blocks * SECTOR,
            "cluster_size": plan.cluster_size or None,
        }
        seconds = (copied - started, time.monotonic() - copied)
        record.note(
            State.VERIFIED,
            fingerprint=proof,
            verified=plan.request.verify,
            after=after,
            result=identity(fd)._asdict(),
            copy_bytes=plan.guest_bytes,
            seconds=round(sum(seconds), 3),
        )
        return Outcome(True, plan.dest, plan.engine, plan.request.verify, proof, None, record.id, after, warnings, *seconds)
    finally:
        os.close(fd)


def _require_still_named(source: Source) -> None:
    """What was read must still be what the image's name means: the result is published, and the original retired, by name."""
    there = identity_at(source.path)
    if there is None or not there.same_file(source.identity):
        raise ImageChanged("was replaced, moved or removed while it was read.", source.path, hint="Nothing was published. Run again.")


def _stage(progress: Optional[OnProgress], plan: Plan, stage: str, guard: Guards) -> Callable[[int], None]:
    """The callback of one stage: counts bytes on, and looks after the guard every 64 MiB."""
    unseen = [0]
    pace = Pace(plan.request.bandwidth)

    def advance(count: int) -> None:
        pace(count)
        unseen[0] += count
        if unseen[0] >= 64 << 20:
            unseen[0] = 0
            guard.check()
        if progress is not None:
            progress(plan.request.src, stage, count)

    advance(0)
    return advance


def _prove(plan: Plan, source: Source, fd: int, temporary: bytes, written: Optional[str], progress: Callable[[int], None]) -> str:
    result, opened = read_back(plan, source, fd, os.path.dirname(temporary))
    try:
        uncached = plan.request.page_cache == "spare"
        return verify(source.readers(ranges_of(plan.lost)), result, plan.dest, progress, copied=written, uncached=uncached)
    finally:
        for other in opened:
            os.close(other)
