# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many images in one call: planned together, checked together for space, then executed by as many workers as asked for."""

import os
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from .._errors import NoSpace, QcowError
from .._host.signals import Interrupted, Interruptible
from .._host.workers import Ended, run_forked
from .._image.check import CONTENT, STRUCTURE
from .._libvirt.api import DEFAULT_URI
from .._paths import encode_exact, show
from . import guests, keepers, running_domains
from .chains import plan_chains, refuse_together
from .domain_references import Domains
from .execute import Outcome, execute, execute_family
from .plan import CONVERT, NOOP, REFUSE, RETIRE, Plan
from .preflight import DEFER, Reserve, Window, defer_beyond, deferred, preflight, reason_of, unit_of
from .progress import Board
from .record import Exclusive, Records, make_directory, named
from .recover import explain, recover
from .request import Request


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
    max_minutes: Optional[float] = None  # start no image later than this
    max_bytes: Optional[int] = None  # copy no more guest bytes than this
    fail_on_in_use: bool = True  # an image that is in use has failed; otherwise it is left to another run
    watched_as: Optional[str] = None  # the token of who reads how far it has come
    domains: str = keepers.FOLLOW  # what becomes of the libvirt domains that use the images
    libvirt_uri: str = DEFAULT_URI
    raw_allowed: bool = False  # images that a domain declares raw may be QCOW v1 images all the same
    reference_dirs: Tuple[bytes, ...] = ()  # text files that name an image keep it from losing its name
    references: str = "refuse"  # or report
    running: guests.Policy = guests.Policy()  # what may be done to running domains


Requests = Union[List[Request], Callable[[], List[Request]]]
"""What to migrate; a callable finds it, and is asked again after an interrupted run has been looked after."""


def run(requests: Requests, settings: Settings, recovered: Optional[List[Dict[str, Any]]] = None) -> List[Dict[str, Any]]:
    """Plan and, unless in check mode, execute; one result for each request, in their order.

    A refused or failed image has ``failed: true`` and does not stop the others. What an interrupted run has left is finished or cleaned up
    first. Where nothing is found and nothing was left, nothing is written on the host either.

    :param recovered: gets an entry for each record that this was done for (in check mode: would be done for).
    :raises NoSpace: where the whole plan does not fit; nothing has been written then.
    :raises StateError: where another run is at work on this host, or the state directory cannot be used.
    :raises QcowError: with reason ``interrupted`` where a signal asked us to end; its details hold the results so far.
    """
    wanted = _asked(requests)
    recovered = [] if recovered is None else recovered
    keeper = keepers.install(settings.domains, settings.libvirt_uri, raw_allowed=settings.raw_allowed)
    if settings.check_mode:
        recovered.extend(running_domains.explain(settings.state_dir))
        recovered.extend(dict(explain(record), failed=False) for record in Records(settings.state_dir).unfinished())
        plans = _plan_all(wanted, settings, [], keeper)
        return _tolerated(plans, [_planned(plan) for plan in plans], settings)
    if not wanted and not _anything_left(settings.state_dir):
        return []
    results: Dict[int, Dict[str, Any]] = {}
    window = Window(settings.max_minutes)
    board = Board(settings.state_dir, settings.watched_as, passes=2 if any(request.verify for request in wanted) else 1)
    try:
        board.stage("waiting")
        with Interruptible(), Exclusive(settings.state_dir, settings.wait):
            board.sweep()
            board.stage("recovering")
            recovered.extend(running_domains.recover(settings.state_dir, settings.libvirt_uri))
            recovered.extend(recover(Records(settings.state_dir)))
            recovered.extend(running_domains.restart(settings.state_dir, settings.libvirt_uri))
            if recovered and callable(requests):
                wanted = _asked(requests)
            board.stage("planning", images=len(wanted))
            plans = _plan_all(wanted, settings, recovered, keeper)
            work = [(number, plan) for number, plan in enumerate(plans) if plan.action in (CONVERT, RETIRE)]
            for number, plan in enumerate(plans):
                if plan.action in (NOOP, REFUSE, DEFER):
                    results[number] = _planned(plan)
            _make_destinations([plan for _number, plan in work if plan.action == CONVERT])
            board.begin([(plan.request.src, plan.guest_bytes) for _number, plan in work])
            for number, result in _work(work, settings, window, board, keeper):
                results[number] = result
                board.ended(plans[number].guest_bytes, failed=result["failed"])
            board.stage("ending")
            _refresh_pools(keeper, plans, results)
    except Interrupted as error:
        raise QcowError(
            "{0}; what was under way was undone".format(error),
            reason="interrupted",
            hint="{0} of {1} images had been dealt with. Run again to go on.".format(len(results), len(wanted)),
            images=[results[number] for number in sorted(results)],
        ) from error
    finally:
        board.close()
    return _tolerated(plans, [results[number] for number in range(len(plans))], settings)


def _anything_left(state_dir: bytes) -> bool:
    """Whether an interrupted run has left something to look after."""
    records = Records(state_dir)
    return bool(records.unfinished() or records.unreadable() or running_domains.explain(state_dir))


def _tolerated(plans: List[Plan], results: List[Dict[str, Any]], settings: Settings) -> List[Dict[str, Any]]:
    """The results, those of images that are in use left to another run where that is no failure; chains stay together."""
    if settings.fail_on_in_use:
        return results
    reasons: Dict[Tuple[str, int], Set[str]] = {}
    for number, (plan, result) in enumerate(zip(plans, results)):
        if result["failed"]:
            reasons.setdefault(unit_of(number, plan), set()).add(result["reason"])
    tolerable = {unit for unit, found in reasons.items() if "in-use" in found and found <= {"in-use", "chain"}}
    return [
        dict(result, action=DEFER, failed=False, reason="in-use") if result["failed"] and unit_of(number, plan) in tolerable else result
        for number, (plan, result) in enumerate(zip(plans, results))
    ]


def _asked(requests: Requests) -> List[Request]:
    return [_absolute(request) for request in (requests() if callable(requests) else requests)]


def _absolute(request: Request) -> Request:
    """Records must hold names that mean the same to a later run in another directory."""
    dest, dest_dir = request.dest, request.dest_dir
    return request._replace(
        src=os.path.abspath(request.src),
        dest=None if dest is None else os.path.abspath(dest),
        dest_dir=None if dest_dir is None else os.path.abspath(dest_dir),
    )


def _plan_all(requests: List[Request], settings: Settings, recovered: List[Dict[str, Any]], keeper: Domains) -> List[Plan]:
    requests = guests.prepared(requests, keeper, settings.running)
    level = CONTENT if settings.check_mode else STRUCTURE
    plans = guests.judge(plan_chains(requests, Records(settings.state_dir), level), keeper, settings.running)
    plans = guests.refuse_referenced(plans, settings.reference_dirs, report=settings.references == "report")
    stuck = {entry["src"]: entry["msg"] for entry in recovered if entry["failed"]}
    for number, plan in enumerate(plans):
        message = stuck.get(show(plan.request.src))
        if message is not None:
            plans[number] = plan._replace(action=REFUSE, code="unfinished", reasons=["an interrupted run cannot be finished: " + message])
    plans = defer_beyond(refuse_together(plans), settings.max_bytes)
    try:
        return refuse_together(preflight(plans, settings.state_dir, Reserve(settings.reserve, settings.reserve_percent)))
    except NoSpace as error:
        refused = [
            plan._replace(action=REFUSE, code=error.reason, reasons=[str(error)]) if plan.action in (CONVERT, RETIRE) else plan
            for plan in plans
        ]
        error.details["images"] = [_planned(plan) for plan in refused]
        raise


def _make_destinations(plans: List[Plan]) -> None:
    """The directories for results. Others may pass through them but not list them: results have the rights of their originals."""
    for directory in sorted({plan.request.dest_dir for plan in plans if plan.request.dest_dir is not None}):
        try:
            make_directory(directory, 0o711)
        except OSError as error:
            raise QcowError(
                "the directory for the results cannot be made: {0}".format(error.strerror),
                directory,
                reason=reason_of(error),
                hint="Nothing was changed. Make it, or choose another.",
            ) from error


def _refresh_pools(keeper: Domains, plans: List[Plan], results: Dict[int, Dict[str, Any]]) -> None:
    """Once for all images: a refresh reads every volume of a pool."""
    moved = [number for number, result in results.items() if result["changed"]]
    if not moved:
        return
    try:
        pools = keeper.refresh_pools([path for number in moved for path in (plans[number].request.src, plans[number].dest)])
        problems = [
            "pool {0} was not refreshed: {1}".format(pool.name, pool.reason) for pool in pools if pool.reason not in (None, "inactive")
        ]
    except QcowError as error:
        problems = [str(error)]
    results[moved[0]]["warnings"].extend(problems)


def _work(
    work: List[Tuple[int, Plan]], settings: Settings, window: Window, board: Board, keeper: Domains
) -> Iterator[Tuple[int, Dict[str, Any]]]:
    units: Dict[Tuple[str, int], List[Tuple[int, Plan]]] = {}
    for number, plan in work:
        # A family is one worker's: its images are converted on top of one another.
        units.setdefault(unit_of(number, plan), []).append((number, plan))
    jobs = guests.together(list(units.values()), keeper)
    begun = set()

    def deal(plans: List[Plan]) -> List[Dict[str, Any]]:
        return _visit(plans, settings, board, keeper) if any(plan.request.held for plan in plans) else _execute(plans, board)

    for index, ended in _jobs_done(jobs, settings.workers, window, deal):
        begun.add(index)
        for place, (number, plan) in enumerate(jobs[index]):
            if ended.died is None:
                yield number, ended.result[place]
            else:  # the next run cleans up after it
                message = "{0}: the process that converted it {1}".format(show(plan.request.src), ended.died)
                yield number, _failed(plan, "worker", message, {})
    for index, job in enumerate(jobs):
        for number, plan in job if index not in begun else ():
            yield number, _planned(deferred(plan, "{0:g} minutes".format(settings.max_minutes or 0)))


def _jobs_done(
    jobs: List[List[Tuple[int, Plan]]], workers: int, window: Window, deal: Callable[[List[Plan]], List[Dict[str, Any]]]
) -> Iterator[Tuple[int, Ended]]:
    tasks = [[plan for _number, plan in job] for job in jobs]
    if workers > 1 and len(jobs) > 1:
        # Processes, not threads: tables are walked in Python.
        yield from run_forked(deal, tasks, workers, window.is_open)
        return
    for index, plans in enumerate(tasks):
        if not window.is_open():
            return
        yield index, Ended(deal(plans), None)


def _visit(plans: List[Plan], settings: Settings, board: Board, keeper: Domains) -> List[Dict[str, Any]]:
    """The results of images whose domains run. They are planned anew when nobody writes them any more."""

    def carry_out(requests: List[Request]) -> List[Dict[str, Any]]:
        anew = plan_chains(requests, Records(settings.state_dir))
        if not any(request.held for request in requests):
            anew = guests.judge(anew, keeper, settings.running)
        results: Dict[int, Dict[str, Any]] = {}
        units: Dict[Tuple[str, int], List[int]] = {}
        for number, plan in enumerate(refuse_together(anew)):
            if plan.action in (CONVERT, RETIRE):
                units.setdefault(unit_of(number, plan), []).append(number)
            else:
                results[number] = _planned(plan)
        for numbers in units.values():
            results.update(zip(numbers, _execute([anew[number] for number in numbers], board)))
        return [results[number] for number in range(len(requests))]

    try:
        return running_domains.visit(plans, keeper, settings.running, settings.state_dir, carry_out)
    except (QcowError, OSError) as error:
        return [_ended(plan, error, 0.0) for plan in plans]


def _execute(plans: List[Plan], board: Board) -> List[Dict[str, Any]]:
    """The results of an image that stands alone, or of a whole family."""
    started = time.monotonic()
    ended: List[Union[Outcome, Exception]] = []
    meter = board.meter([(plan.request.src, plan.guest_bytes) for plan in plans])
    try:
        records = Records(plans[0].request.state_dir)
        if len(plans) == 1:
            ended = [execute(plans[0], records, meter)]
        else:
            ended = execute_family(plans, records, meter)
    except Exception as error:  # a bug of ours must not keep the other images from being converted
        ended = [error] * len(plans)
    meter.close()
    return [_ended(plan, outcome, time.monotonic() - started) for plan, outcome in zip(plans, ended)]


def _ended(plan: Plan, outcome: Union[Outcome, Exception], seconds: float) -> Dict[str, Any]:
    if isinstance(outcome, QcowError):
        return _failed(plan, outcome.reason, str(outcome), outcome.details)
    if isinstance(outcome, OSError):
        return _failed(plan, reason_of(outcome), "{0}: {1}".format(show(plan.request.src), outcome.strerror or outcome), {})
    if isinstance(outcome, Exception):
        return _failed(plan, "error", "{0}: {1!r}".format(show(plan.request.src), outcome), {})
    return _done(plan, outcome, seconds)


def _base(plan: Plan) -> Dict[str, Any]:
    """The keys every result has."""
    return {
        "src": show(plan.request.src),
        "src_base64": encode_exact(plan.request.src),
        "dest": show(plan.dest),
        "dest_base64": encode_exact(plan.dest),
        "action": plan.action,
        "reasons": plan.reasons,
        "changed": False,
        "failed": False,
        "engine": None,
        "verified": None,
        "fingerprint": None,
        "retired": None if plan.retired is None else show(plan.retired),
        "record": None,
        "source": None if plan.identity is None else {key: getattr(plan.identity, key) for key in ("size", "mtime_ns", "ino")},
        "copy_bytes": plan.guest_bytes,
        "before": plan.before,
        "after": {},
        "warnings": [],
        "chain": [dict(named(member.path), format=member.format) for member in plan.below],
        "backing": None if plan.backing is None else dict(named(plan.backing.name), format=plan.backing.format),
        "repointed": [show(item.path) for item in plan.dependants],
        "lost": plan.lost_ranges,
        "seconds": 0.0,
        "reason": None,
        "msg": "; ".join(plan.reasons),
        "details": {},
    }


def _planned(plan: Plan) -> Dict[str, Any]:
    result = _base(plan)
    if plan.action == REFUSE:
        return dict(result, failed=True, reason=plan.code, details=plan.details)
    if plan.action == CONVERT:
        after = {"path": show(plan.dest), "format": plan.request.format, "virtual_size": plan.virtual_size, "file_size": plan.need}
        return dict(result, changed=True, engine=plan.engine, after=after)
    if plan.action == DEFER:
        return dict(result, reason=plan.code)
    return dict(result, changed=plan.action == RETIRE)


def _failed(plan: Plan, reason: str, message: str, details: Dict[str, Any]) -> Dict[str, Any]:
    return dict(_base(plan), failed=True, reason=reason, msg=message, details=details)


def _done(plan: Plan, outcome: Outcome, seconds: float) -> Dict[str, Any]:
    return dict(
        _base(plan),
        changed=outcome.changed,
        engine=outcome.engine,
        verified=outcome.verified,
        fingerprint=outcome.fingerprint,
        record=outcome.record,
        after=outcome.after,
        warnings=outcome.warnings,
        seconds=round(seconds, 3),
        copy_seconds=round(outcome.copy_seconds, 3),
        verify_seconds=round(outcome.verify_seconds, 3),
    )


def summary(results: List[Dict[str, Any]]) -> Dict[str, int]:
    """How a batch ended: numbers of images, and bytes on their filesystems before and after of those that were converted."""
    converted = [result for result in results if result["changed"] and result["action"] == CONVERT and not result["failed"]]
    return {
        "images": len(results),
        "changed": sum(result["changed"] for result in results),
        "unchanged": sum(not result["changed"] and not result["failed"] and result["action"] != DEFER for result in results),
        "failed": sum(result["failed"] for result in results),
        "deferred": sum(result["action"] == DEFER for result in results),
        "bytes_before": sum(result["before"].get("allocated_size", 0) for result in converted),
        "bytes_after": sum(result["after"].get("allocated_size", 0) for result in converted),
    }
