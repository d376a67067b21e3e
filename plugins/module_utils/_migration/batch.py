# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many images in one call: planned together, checked together for space, then executed by as many workers as asked for."""

import os
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from .._errors import NoSpace, QcowError
from .._image.qcow1_check import CONTENT, STRUCTURE
from .._libvirt.inventory import DEFAULT_URI
from .._paths import decode_exact, show
from .._signals import Interrupted
from .._workers import Ended, run_jobs
from . import domain_policy, leftovers
from .chains import plan_chains, refuse_together
from .domain_references import FOLLOW
from .moved_files import AUTO
from .plan import CONVERT, DEFER, NOOP, REFUSE, RETIRE, Plan, ended_as, failed, planned, unit_of, with_second_opinions
from .preflight import Reserve, preflight
from .record import Records, State
from .request import READ, Request
from .results import Outcome
from .seen_images import Searched, SeenImages
from .session import Session
from .stop import Stopped
from .stop_results import results_of_stopped, why_stopped
from .window import Deferral, Estimates, Window, defer_beyond, defer_others, deferred


class Settings(NamedTuple):
    """How a batch is run.

    ``wait`` is in seconds, ``reserve`` and ``max_bytes`` in bytes, ``reserve_percent`` in percent of a filesystem.
    """

    state_dir: bytes
    workers: int = 1
    wait: float = 0
    reserve: int = 64 << 20
    reserve_percent: float = 0.0
    check_mode: bool = False
    max_minutes: Optional[float] = None  # begin no image that cannot be completed by then
    max_bytes: Optional[int] = None  # copy no more guest bytes than this
    only: Optional[List[str]] = None  # migrate no others, by their names in results
    fail_on_no_space: bool = True  # where not all images fit together, none is migrated; otherwise as many as fit
    fail_on_in_use: bool = True  # an image that is in use has failed; otherwise it is left to another run
    watched_as: Optional[str] = None  # the token of who reads how far it has come
    run_age: Optional[float] = None  # seconds that the run of ansible-playbook is older than this process
    domains: str = FOLLOW  # what becomes of the libvirt domains that use the images
    libvirt_uri: str = DEFAULT_URI
    raw_allowed: bool = False  # images that a domain declares raw may be QCOW v1 images all the same
    reference_dirs: Tuple[bytes, ...] = ()  # text files that name an image keep it from losing its name
    references: str = "refuse"  # or report
    moved_files: str = AUTO  # what to do with files that have other inode numbers or times than recorded
    running: domain_policy.Policy = domain_policy.Policy()  # what may be done to running domains

    def session(self, passes: int) -> Session:
        """A session for the run; ``passes`` is how often the bytes of each image are gone through."""
        return Session(
            self.state_dir,
            wait=self.wait,
            domains=self.domains,
            libvirt_uri=self.libvirt_uri,
            moved_files=self.moved_files,
            raw_allowed=self.raw_allowed,
            watched_as=self.watched_as,
            run_age=self.run_age,
            passes=passes,
        )


_MEASURED = 100
"""Records of earlier migrations that tell how fast the host is."""

Requests = Union[List[Request], Callable[[SeenImages], List[Request]]]
"""What to migrate; a callable finds it, tells what else it has seen, and is asked again after an interrupted run has been looked after."""


def run(
    requests: Requests, settings: Settings, recovered: Optional[List[Dict[str, Any]]] = None, searched: Optional[List[Searched]] = None
) -> List[Dict[str, Any]]:
    """Plan and, unless in check mode, execute; one result for each request, in their order.

    A refused or failed image has ``failed: true`` and does not stop the others. What an interrupted run has left is finished or cleaned up
    first. Where nothing is found and nothing was left, nothing is written on the host either.

    :param recovered: gets an entry for each record that this was done for (in check mode: would be done for).
    :param searched: gets the directories in which overlays of the images and links to them were looked for.
    :raises NoSpace: where the whole plan does not fit; nothing has been written then.
    :raises StateError: where another run is at work on this host, or the state directory cannot be used.
    :raises QcowError: with reason ``interrupted`` where a signal asked us to end; its details hold the results so far. Where the signal came from
        who stopped the run, what is left is deferred instead.
    """
    wanted, around = _asked(requests)
    recovered = [] if recovered is None else recovered
    searched = [] if searched is None else searched
    session = settings.session(passes=2 if any(request.verify for request in wanted) else 1)
    batch = _Batch(session, settings)
    plans: List[Plan] = []
    if settings.check_mode:
        recovered.extend(leftovers.explain(session))
        plans = batch.within_window(batch.plan(wanted, recovered, around))
        searched.extend(around.searched.values())
        return _tolerated(plans, [planned(plan) for plan in plans], settings, session.records)
    if not wanted and not session.anything_left:
        return []
    try:
        with session:
            recovered.extend(leftovers.look_after(session))
            if recovered and callable(requests):
                wanted, around = _asked(requests)
            session.stop.check()
            session.progress.stage("planning", images=len(wanted))
            plans = batch.plan(wanted, recovered, around)
            searched.extend(around.searched.values())
            batch.execute(list(with_second_opinions(plans)))
            recovered.extend(leftovers.look_after_waiting(session))
    except (Stopped, Interrupted) as error:
        request = session.stop.request()
        if request is not None and not request.problem:
            stopped = results_of_stopped(request, wanted, plans, batch.results, session.records)
            return _tolerated(plans, stopped, settings, session.records)
        raise QcowError(
            "{0}; the work in progress was undone".format(error),
            reason="interrupted",
            hint="{0} of {1} images were processed. Run again to continue.".format(len(batch.results), len(wanted)),
            images=[batch.results[number] for number in sorted(batch.results)],
        ) from error
    return _tolerated(plans, [batch.results[number] for number in range(len(plans))], settings, session.records)


def _tolerated(plans: List[Plan], results: List[Dict[str, Any]], settings: Settings, records: Records) -> List[Dict[str, Any]]:
    """The results, those of images that are in use left to another run where that is no failure; chains stay together.

    One that has its result in place already has failed: it must not wait for whatever run comes next.
    """
    if settings.fail_on_in_use or not plans:  # stopped before anything was planned
        return results
    reasons: Dict[Tuple[str, int], Set[str]] = {}
    for number, (plan, result) in enumerate(zip(plans, results)):
        if result["failed"]:
            reasons.setdefault(unit_of(number, plan), set()).add(result["reason"])
    tolerable = {unit for unit, found in reasons.items() if "in-use" in found and found <= {"in-use", "chain"}}
    for number, plan in enumerate(plans):
        if unit_of(number, plan) in tolerable:
            last = records.of_source(plan.request.src)[-1:]
            if any(record.unfinished and record.state in State.IN_PLACE for record in last):
                tolerable.discard(unit_of(number, plan))
    return [
        dict(result, action=DEFER, failed=False, reason="in-use") if result["failed"] and unit_of(number, plan) in tolerable else result
        for number, (plan, result) in enumerate(zip(plans, results))
    ]


def _asked(requests: Requests) -> Tuple[List[Request], SeenImages]:
    around = SeenImages()
    return [_absolute(request) for request in (requests(around) if callable(requests) else requests)], around


def _absolute(request: Request) -> Request:
    """Records must hold names that mean the same to a later run in another directory."""
    dest, dest_dir = request.dest, request.dest_dir
    return request._replace(
        src=os.path.abspath(request.src),
        dest=None if dest is None else os.path.abspath(dest),
        dest_dir=None if dest_dir is None else os.path.abspath(dest_dir),
    )


class _Batch:
    """Plans images together and carries the plans out."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        measured = session.records.newest(_MEASURED) if settings.max_minutes is not None else ()
        self._window = Window(settings.max_minutes, Estimates(measured), passed=settings.run_age or 0.0)
        self._deferrals: Dict[int, Deferral] = {}  # why a job was not begun, by its place
        self._around: Optional[SeenImages] = None  # what the plans have seen of other images
        self.results: Dict[int, Dict[str, Any]] = {}
        """By the place of the request; what is there already when a run is interrupted has been done."""

    def plan(self, requests: List[Request], recovered: List[Dict[str, Any]], around: SeenImages) -> List[Plan]:
        """One plan for each request; nothing is changed.

        :param recovered: what was looked after; an image whose interrupted run cannot be finished is refused.
        :param around: what has been seen of other images already.
        :raises NoSpace: everything together does not fit. Its details' ``images`` hold the refused results.
        """
        session, settings = self._session, self._settings
        around.domains, around.reference_dirs = session.domains, settings.reference_dirs
        self._around = around
        requests = domain_policy.prepared(requests, session.domains, settings.running)
        level = CONTENT if settings.check_mode else STRUCTURE
        plans = domain_policy.judge(plan_chains(requests, session.records, level, around, session.moved), session.domains, settings.running)
        if settings.reference_dirs:
            from .reference_policy import refuse_referenced

            plans = refuse_referenced(plans, settings.reference_dirs, report=settings.references == "report")
        stuck = {decode_exact(entry["src"], entry["src_base64"]): entry["msg"] for entry in recovered if entry["failed"] and entry["src"]}
        for number, plan in enumerate(plans):
            message = stuck.get(plan.request.src)
            if message is not None:
                why = ["an interrupted run cannot be finished: " + message]
                plans[number] = plan._replace(action=REFUSE, code="unfinished", reasons=why)
        plans = defer_beyond(defer_others(refuse_together(plans), settings.only), settings.max_bytes)
        try:
            return refuse_together(
                preflight(
                    plans,
                    settings.state_dir,
                    Reserve(settings.reserve, settings.reserve_percent),
                    settings.workers,
                    look_only=settings.check_mode,
                    as_many_as_fit=not settings.fail_on_no_space,
                )
            )
        except NoSpace as error:
            error.details["images"] = [
                planned(plan._replace(action=REFUSE, code=error.reason, reasons=[str(error)]) if plan.action in (CONVERT, RETIRE) else plan)
                for plan in plans
            ]
            raise

    def within_window(self, plans: List[Plan]) -> List[Plan]:
        """The plans, with those deferred for which the window is foreseen to be too short. When they are carried out, measured times decide."""
        plans = list(plans)
        passed = 0.0
        for job in self._jobs([(number, plan) for number, plan in enumerate(plans) if plan.action in (CONVERT, RETIRE)]):
            why = self._window.closed_for([plan for _number, plan in job], passed / self._settings.workers)
            if why is None:
                passed += self._window.estimates.seconds([plan for _number, plan in job])
                continue
            for number, plan in job:
                plans[number] = deferred(plan, why)
        return plans

    def execute(self, plans: List[Plan]) -> None:
        """Carry them out; :attr:`results` then has one entry for each."""
        progress = self._session.progress
        work = [(number, plan) for number, plan in enumerate(plans) if plan.action in (CONVERT, RETIRE)]
        for number, plan in enumerate(plans):
            if plan.action in (NOOP, REFUSE, DEFER):
                self.results[number] = planned(plan)
        if work:  # whatever a migration and its undoing take is imported before anything is written
            from . import execute, output  # noqa: F401

            if any(plan.request.domain_access for _number, plan in work):
                from . import running_domains  # noqa: F401
            output.make_destinations([plan for _number, plan in work if plan.action == CONVERT])
        actions = [plan.action for plan in plans]
        sizes = [(plan.request.src, plan.guest_bytes) for _number, plan in work]
        progress.begin(sizes, refused=actions.count(REFUSE), deferred=actions.count(DEFER))
        for number, result in self._work(work):
            self.results[number] = result
            if result["action"] != DEFER:
                progress.ended(plans[number].guest_bytes, failed=result["failed"])
        progress.stage("ending")
        self._refresh_pools(plans)

    def _refresh_pools(self, plans: List[Plan]) -> None:
        """Once for all images: a refresh reads every volume of a pool."""
        moved = [number for number, result in self.results.items() if result["changed"]]
        if not moved:
            return
        problems = self._session.domains.refreshed([path for number in moved for path in (plans[number].request.src, plans[number].dest)])
        self.results[moved[0]]["warnings"].extend(problems)

    def _jobs(self, work: List[Tuple[int, Plan]]) -> List[List[Tuple[int, Plan]]]:
        """What is carried out together, by the place of the request."""
        units: Dict[Tuple[str, int], List[Tuple[int, Plan]]] = {}
        for number, plan in work:
            # A chain is one worker's: its images are converted on top of one another.
            units.setdefault(unit_of(number, plan), []).append((number, plan))
        return domain_policy.together(list(units.values()), self._session.domains)

    def _work(self, work: List[Tuple[int, Plan]]) -> Iterator[Tuple[int, Dict[str, Any]]]:
        jobs = self._jobs(work)
        for index, ended in self._jobs_done(jobs):
            for place, (number, plan) in enumerate(jobs[index]):
                if ended.died is None:
                    yield number, ended.result[place]
                else:  # the next run cleans up after it
                    message = "{0}: the process that converted it {1}".format(show(plan.request.src), ended.died)
                    yield number, failed(plan, "worker", message, {})
        for index, why in self._deferrals.items():
            for number, plan in jobs[index]:
                yield number, failed(plan, why.code, why.reason, {}) if why.code == "state" else planned(deferred(plan, why))

    def _jobs_done(self, jobs: List[List[Tuple[int, Plan]]]) -> Iterator[Tuple[int, Ended]]:
        tasks = [[plan for _number, plan in job] for job in jobs]
        begun: Dict[int, float] = {}

        def may_begin(index: int) -> bool:
            begun[index] = time.monotonic()
            request = self._session.stop.request()
            why = self._window.closed_for(tasks[index]) if request is None else why_stopped(request)
            if why is not None:
                self._deferrals[index] = why
            return why is None

        if self._settings.workers > 1 and len(jobs) > 1:
            # Processes, not threads: tables are walked in Python.
            ends = run_jobs(self._job, tasks, self._settings.workers, may_begin)
        else:
            ends = ((index, Ended(self._job(plans), None)) for index, plans in enumerate(tasks) if may_begin(index))
        for index, ended in ends:
            if ended.died is None and all(
                result["action"] == CONVERT and result["changed"] and not result["failed"] for result in ended.result
            ):
                size, seconds = sum(plan.guest_bytes for plan in tasks[index]), time.monotonic() - begun[index]
                self._window.estimates.learn(size, seconds, len(tasks[index]))
            yield index, ended

    def _job(self, plans: List[Plan]) -> List[Dict[str, Any]]:
        """The results of images that are carried out together."""
        if not any(plan.request.domain_access for plan in plans):
            return self._carry_out(plans)
        try:
            return self._beside_running_domains(plans)
        except (QcowError, OSError) as error:
            return [ended_as(plan, error, 0.0) for plan in plans]

    def _beside_running_domains(self, plans: List[Plan]) -> List[Dict[str, Any]]:
        """The results of images whose domains run.

        :raises QcowError: nothing was migrated, and the domains run as before (the hint says which do not).
        """
        from .._libvirt import api
        from . import running_domains

        session, policy = self._session, self._settings.running
        session.domains.forget()
        running: Dict[str, str] = {}
        for plan in plans:
            running.update(session.domains.running(plan.request.src))
        connection = api.connect(session.domains.uri, readonly=False)
        try:
            if policy.running == domain_policy.SHUTDOWN:
                paths = [plan.request.src for plan in plans]
                with running_domains.ShutDown(session, connection, running, policy.shutdown_timeout, paths) as held:
                    results = self._planned_anew(plans, "")
                    session.domains.forget()
                    running_domains.start_or_roll_back(held, session, results)
                return results
            disks = [running_domains.HeldDisk(plan.request, plan.dest) for plan in plans]
            with running_domains.DomainsOnOverlays(session, connection, running, disks) as taken:
                results = self._planned_anew(plans, READ)
                for problem in taken.release():
                    results[0].update(failed=True, msg="{0} {1}".format(results[0]["msg"], problem))
            return results
        finally:
            session.domains.forget()
            api.close(connection)

    def _planned_anew(self, plans: List[Plan], access: str) -> List[Dict[str, Any]]:
        """The results of images that nobody writes any more: they are planned anew, as they are now.

        :param access: what running domains still do with them, see :attr:`.Request.domain_access`.
        """
        session = self._session
        requests = [plan.request._replace(domain_access=access) for plan in plans]
        anew = plan_chains(requests, session.records, around=self._around, moved=session.moved)
        if not access:
            anew = domain_policy.judge(anew, session.domains, self._settings.running)
        results: Dict[int, Dict[str, Any]] = {}
        units: Dict[Tuple[str, int], List[int]] = {}
        for number, plan in enumerate(refuse_together(anew)):
            if plan.action in (CONVERT, RETIRE):
                units.setdefault(unit_of(number, plan), []).append(number)
            else:
                results[number] = planned(plan)
        for numbers in units.values():
            results.update(zip(numbers, self._carry_out([anew[number] for number in numbers])))
        return [results[number] for number in range(len(plans))]

    def _carry_out(self, plans: List[Plan]) -> List[Dict[str, Any]]:
        """The results of an image that stands alone, or of a whole chain."""
        from .execute import execute, execute_chain

        started = time.monotonic()
        ended: List[Union[Outcome, Exception]] = []
        meter = self._session.progress.meter([(plan.request.src, plan.guest_bytes) for plan in plans])
        try:
            if len(plans) == 1:
                ended = [execute(plans[0], self._session, meter)]
            else:
                ended = execute_chain(plans, self._session, meter)
        except Exception as error:  # a bug of ours must not keep the other images from being converted
            ended = [error] * len(plans)
        meter.close()
        return [ended_as(plan, outcome, time.monotonic() - started) for plan, outcome in zip(plans, ended)]
