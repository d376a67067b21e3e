# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moves the domains of a host from one image to another: all of them, or none.

Definitions are pointed to a result that is there. A running domain is shut down for that, or moved live: then the result is made here,
while the domain writes to an overlay.
"""

import os
import time
from typing import Any, Dict, List, NamedTuple, Optional

from .._directories import exists, make_directory
from .._errors import ImageChanged, ImageInUse, QcowError, TargetExists, ToolFailed, ToolMissing, UnsafeImage
from .._image.detect import HEAD, UNKNOWN, identify, is_qcow1
from .._libvirt import api, control, redefine
from .._libvirt.inventory import DEFAULT_URI, DomainUse, Inventory
from .._libvirt.survey import survey
from .._paths import show
from .._signals import Interrupted
from . import leftovers
from .domain_references import active, declared_raw
from .execute import execute
from .plan import CONVERT
from .planner import make_plan
from .request import READ, Request
from .results import MovedDomain, Outcome
from .running_domains import DomainsOnOverlays, HeldDisk, Redefinition, ShutDown, add_leftovers
from .session import Session

REFUSE = "refuse"
SHUTDOWN = "shutdown"
LIVE = "live"


class Job(NamedTuple):
    """What is asked for. ``domains``: names or UUIDs, ``None`` for all that use the image. Seconds; bytes a second."""

    src: bytes
    dest: bytes
    format: str
    state_dir: bytes
    uri: str = DEFAULT_URI
    domains: Optional[List[str]] = None
    running: str = REFUSE
    shutdown_timeout: float = 120
    wait: float = 0  # for another run on this host
    restart: bool = True
    bandwidth: Optional[int] = None
    refresh_pools: bool = True


class Result(NamedTuple):
    """What happened, or would. ``domains`` and ``pools`` are for the module's result, ``diffs`` show disks with secrets masked."""

    changed: bool
    domains: List[Dict[str, Any]]
    pools: List[Dict[str, Any]] = []
    diffs: List[Dict[str, str]] = []
    converted: Optional[Outcome] = None
    warnings: List[str] = []


def run(job: Job, *, check_mode: bool, recovered: Optional[List[Dict[str, Any]]] = None) -> Result:
    """Move them; in check mode, say what would be moved.

    :param recovered: gets an entry for everything that an interrupted run has left and that was looked after, see :func:`.recover.recover`.
    :raises QcowError: after which every domain is as it was, and running if it ran.
    """
    recovered = [] if recovered is None else recovered
    session = Session(job.state_dir, wait=job.wait, libvirt_uri=job.uri, raw_allowed=True)
    if check_mode:
        recovered.extend(leftovers.explain(session))
    if check_mode or not session.anything_left:
        result = _move(job, session, check_mode=True)
        if check_mode or not result.changed:
            return result
    try:
        with session:
            recovered.extend(leftovers.look_after(session))
            session.stop.check()  # what an interrupted run has left may not all have been finished then
            session.progress.begin([(job.src, 0)])
            return _move(job, session, check_mode=False)
    except Interrupted as error:
        raise QcowError(
            "{0}; every domain is as it was before".format(error), reason="interrupted", hint="Run again to move them."
        ) from error


def _move(job: Job, session: Session, *, check_mode: bool) -> Result:
    answer = survey(job.uri)
    uses = _uses(answer, job)
    if not answer.complete and uses:
        raise ToolMissing("Domain {0} uses the image, and cannot be changed: {1}".format(uses[0].domain, answer.reason))
    if answer.source != "libvirt":
        return Result(False, [], warnings=[] if answer.complete else [answer.reason or ""])
    connection = api.connect(job.uri, readonly=False)
    try:
        planned = redefine.plan(connection, answer, [redefine.Move(job.src, job.dest, job.format)], job.domains)
        if not any(item.changed for item in planned):
            return Result(False, [_described(item, job) for item in planned])
        _require_movable(connection, answer, uses, job)
        if check_mode:
            return Result(True, [_described(item, job) for item in planned], diffs=[item.diff() for item in planned if item.changed])
        return _Moving(session, connection, answer, job, planned, uses).run()
    finally:
        api.close(connection)


def _uses(answer: Inventory, job: Job) -> List[DomainUse]:
    uses = answer.users_of(job.src)
    if job.domains is None:
        return uses
    names = {known.name for known in answer.domains.values()} | set(answer.domains)
    unknown = sorted(set(job.domains) - names)
    if unknown:
        raise QcowError("There is no domain {0}.".format(", ".join(unknown)), reason="no-domain", hint="Nothing was changed.")
    return [use for use in uses if use.domain in job.domains or use.uuid in job.domains]


def _require_movable(connection: api.Connection, answer: Inventory, uses: List[DomainUse], job: Job) -> None:
    """Everything that forbids the move and can be known before anything is touched."""
    if is_qcow1(_head(job.src)):
        against = declared_raw(uses)
        if against:
            raise UnsafeImage(" ".join(against), job.src, hint="Nothing was changed.")
    against = redefine.obstacles(answer, uses, redefine.Move(job.src, job.dest, job.format))
    if against:
        raise ImageInUse(" ".join(against), job.src, reason="domain", hint="Nothing was changed.")
    running = active(answer, uses)
    names = ", ".join(answer.domains[uuid].name for uuid in running)
    if running and job.running == REFUSE:
        raise ImageInUse(
            "Domain {0} is running.".format(names),
            job.src,
            hint="Nothing was changed. Shut it down, or set running=shutdown or running=live.",
            domains=[answer.domains[uuid].name for uuid in running],
        )
    if not running or job.running != LIVE:
        _require_result(job)
        return
    if len(running) > 1 or any(use.depth for use in uses if use.uuid in running):
        raise ImageInUse(
            "Running domains share the image: {0}.".format(names), job.src, hint="Nothing was changed. Shut them down instead."
        )
    if exists(job.dest):
        raise TargetExists(
            "The running domain has written to its image since this was made.",
            job.dest,
            hint="Nothing was changed. A live move makes the result itself: choose a name that is free.",
        )
    control.capable(connection, running[0], sorted({use.target for use in uses if use.uuid in running}), job.format)


def _head(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _require_result(job: Job) -> None:
    """The result must be there, be what it is said to be, and not be older than what was written to the image."""
    try:
        made = os.stat(job.dest)
    except OSError as error:
        raise QcowError(
            "cannot be used: {0}".format(error.strerror),
            job.dest,
            reason="no-result",
            hint="No definition was changed. Convert the image first.",
        ) from error
    found = identify(_head(job.dest), made.st_size).format
    if found != (job.format if job.format != "raw" else UNKNOWN):
        raise UnsafeImage(
            "is {0} by its content, not {1}".format("raw or unknown" if found == UNKNOWN else found, job.format),
            job.dest,
            hint="No definition was changed: a guest started with the wrong type would read or destroy the container.",
        )
    if job.src != job.dest and os.path.exists(job.src) and os.stat(job.src).st_mtime_ns > made.st_mtime_ns:
        raise ImageChanged(
            "was written after {0} was made from it".format(show(job.dest)),
            job.src,
            hint="No definition was changed. Convert it again, with its domains shut off.",
        )


def _described(item: redefine.Repoint, job: Job) -> Dict[str, Any]:
    domain = MovedDomain(
        name=item.domain,
        uuid=item.uuid,
        changed=item.changed,
        targets=list(item.targets),
        path=show(job.dest),
        format=job.format,
        was_running=item.active,
        method="live" if item.active and job.running == LIVE else "definition",
    )
    return dict(domain._asdict())


class _Moving:
    """One run of a job."""

    def __init__(
        self,
        session: Session,
        connection: api.Connection,
        answer: Inventory,
        job: Job,
        planned: List[redefine.Repoint],
        uses: List[DomainUse],
    ) -> None:
        self._session, self._connection, self._job = session, connection, job
        self._planned = [item for item in planned if item.changed]
        self._running = {uuid: answer.domains[uuid].name for uuid in active(answer, uses)}
        self._domains = {item.uuid: _described(item, job) for item in planned}
        self._pools: List[Dict[str, Any]] = []
        self._identifier = "{0}-{1}".format(time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), os.urandom(3).hex())

    def run(self) -> Result:
        """Move them.

        :raises QcowError: see :func:`run`.
        """
        for item in self._planned:
            self._domains[item.uuid]["saved"] = show(self._save(item))
        converted = None
        try:
            if self._job.running == LIVE and self._running:
                converted = self._live()
            else:
                self._shut_down()
        except QcowError as error:
            if not error.details.get("left"):
                error.hint = " ".join(filter(None, [error.hint, "Every domain is as it was before."]))
            raise
        return Result(True, list(self._domains.values()), self._pools, [item.diff() for item in self._planned], converted)

    def _save(self, item: redefine.Repoint) -> bytes:
        """The exact old definition, passwords and all, for the day when nothing else helps: readable by root only, on this host only."""
        directory = os.path.join(self._job.state_dir, b"domains")
        path = os.path.join(directory, "{0}-{1}.xml".format(self._identifier, item.uuid).encode("ascii"))
        try:
            make_directory(directory)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(item.before.encode("utf-8"))
                file.flush()
                os.fsync(fd)
        except OSError as error:
            raise QcowError(
                "The old definition cannot be saved: {0}.".format(error.strerror), path, reason="state", hint="Nothing was changed."
            ) from error
        return path

    def _live(self) -> Outcome:
        """Convert the image while its domain writes to an overlay; that, and every other definition, follows the result."""
        job, session = self._job, self._session
        request = Request(
            src=job.src,
            dest=job.dest,
            format=job.format,
            timestamps=False,
            bandwidth=job.bandwidth,
            state_dir=job.state_dir,
            domain_access=READ,
        )
        session.domains.restrict(item.uuid for item in self._planned)
        with DomainsOnOverlays(session, self._connection, self._running, [HeldDisk(request, job.dest)]):
            plan = make_plan(request, session.records)
            if plan.action != CONVERT:
                raise QcowError("It cannot be converted: {0}".format(" ".join(plan.reasons)), reason=plan.code or "error")
            outcome = execute(plan, session)
        self._refresh_pools()
        return outcome

    def _shut_down(self) -> None:
        """Change the definitions while their domains are off."""
        job, session = self._job, self._session
        with ShutDown(session, self._connection, self._running, job.shutdown_timeout, [job.src]) as held:
            _require_result(job)
            self._refresh_pools()
            change = Redefinition(session, self._connection, self._planned, job.src, job.dest)
            change.apply()
            if not job.restart:
                held.leave_off()
                return
            started = list(held.stopped)
            problems = held.release()
            if problems:
                failure = ToolFailed(" ".join(problems), reason="start-failed")
                add_leftovers(failure, held.stop_again() + change.restore())
                raise failure
            for uuid in started:
                self._domains[uuid]["started"] = True

    def _refresh_pools(self) -> None:
        if self._job.refresh_pools:
            found = api.refresh_pools(self._connection, [self._job.src, self._job.dest])
            self._pools = [dict(pool._asdict(), path=show(pool.path)) for pool in found]
