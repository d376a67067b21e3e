# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many images in one call: planned together, checked together for space, then executed by as many workers as asked for."""

import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import NoSpace, QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils.host import space
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.convert import Outcome, execute
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.plan import CONVERT, NOOP, REFUSE, RETIRE, Plan, make_plan
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.record import Exclusive, Records
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import encode_exact, show

_RECORD_BYTES = 1 << 16


class Settings(NamedTuple):
    """How a batch is run. ``wait`` is in seconds, the reserve in bytes."""

    state_dir: bytes
    workers: int = 1
    wait: float = 0
    reserve: int = 64 << 20
    check_mode: bool = False


def run(requests: List[Request], settings: Settings) -> List[Dict[str, Any]]:
    """Plan and, unless in check mode, execute; one result for each request, in their order.

    A refused or failed image has ``failed: true`` and does not stop the others.

    :raises NoSpace: where the whole plan does not fit; nothing has been written then.
    :raises StateError: where another run is at work on this host, or the state directory cannot be used.
    """
    if settings.check_mode:
        plans = _with_space(_plan_all(requests, settings), settings)
        return [_planned(plan) for plan in plans]
    with Exclusive(settings.state_dir, settings.wait):
        plans = _with_space(_plan_all(requests, settings), settings)
        results = {}  # type: Dict[int, Dict[str, Any]]
        work = [(number, plan) for number, plan in enumerate(plans) if plan.action in (CONVERT, RETIRE)]
        for number, plan in enumerate(plans):
            if plan.action in (NOOP, REFUSE):
                results[number] = _planned(plan)
        for number, result in _work(work, settings):
            results[number] = result
        return [results[number] for number in range(len(plans))]


def _plan_all(requests: List[Request], settings: Settings) -> List[Plan]:
    records = Records(settings.state_dir)
    plans = []
    claimed = {}  # type: Dict[bytes, bytes]
    for request in requests:
        plan = make_plan(request, records)
        if plan.action == CONVERT:
            other = claimed.setdefault(plan.dest, request.src)
            if other != request.src:
                reason = "the result would get the same name as that of {0}: {1}".format(show(other), show(plan.dest))
                plan = plan._replace(action=REFUSE, code="exists", reasons=[reason])
        plans.append(plan)
    return plans


def _with_space(plans: List[Plan], settings: Settings) -> List[Plan]:
    """The plans, those refused whose directory cannot take files at all.

    :raises NoSpace: where everything together does not fit.
    """
    demands = []
    for plan in plans:
        if plan.action == CONVERT:
            demands.append(space.Demand(_parent(plan.dest), plan.need, 1, show(plan.dest)))
            demands.append(space.Demand(_existing(settings.state_dir), _RECORD_BYTES, 1, "records"))
    found = space.problems(demands, reserve_bytes=settings.reserve)
    too_little = [problem for problem in found if problem.reason in ("no-space", "no-inodes")]
    if too_little:
        raise NoSpace(
            "the plan does not fit: {0}".format(" ".join(str(problem) for problem in too_little)),
            hint="Nothing was changed. Free the space, choose another destination, or migrate fewer images at a time.",
        )
    closed = {problem.directory: problem for problem in found}
    return [
        plan._replace(action=REFUSE, code=closed[_parent(plan.dest)].reason, reasons=[str(closed[_parent(plan.dest)])])
        if plan.action == CONVERT and _parent(plan.dest) in closed
        else plan
        for plan in plans
    ]


def _existing(directory: bytes) -> bytes:
    while not os.path.isdir(directory) and directory not in (b"", b"/"):
        directory = os.path.dirname(directory)
    return directory or b"."


def _parent(path: bytes) -> bytes:
    return os.path.dirname(path) or b"."


def _work(work: List[Tuple[int, Plan]], settings: Settings) -> Iterator[Tuple[int, Dict[str, Any]]]:
    if settings.workers <= 1 or len(work) <= 1:
        for number, plan in work:
            yield number, _execute(plan)
        return
    # Processes, not threads: tables are walked in Python. A worker that is killed breaks the pool instead of hanging it.
    with ProcessPoolExecutor(min(settings.workers, len(work))) as pool:
        futures: Dict[Future, Tuple[int, Plan]] = {pool.submit(_execute, plan): (number, plan) for number, plan in work}
        for future in as_completed(futures):
            number, plan = futures[future]
            try:
                yield number, future.result()
            except Exception as error:  # the worker died, not the image's conversion
                yield number, _failed(plan, "worker", "the worker process ended: {0!r}".format(error), {})


def _execute(plan: Plan) -> Dict[str, Any]:
    started = time.monotonic()
    try:
        outcome = execute(plan, Records(plan.request.state_dir))
    except QcowError as error:
        return _failed(plan, error.reason, str(error), error.details)
    except OSError as error:
        return _failed(plan, "error", "{0}: {1}".format(show(plan.request.src), error.strerror or error), {})
    return _done(plan, outcome, time.monotonic() - started)


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
        "before": plan.before,
        "after": {},
        "warnings": [],
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
        "unchanged": sum(not result["changed"] and not result["failed"] for result in results),
        "failed": sum(result["failed"] for result in results),
        "bytes_before": sum(result["before"].get("allocated_size", 0) for result in converted),
        "bytes_after": sum(result["after"].get("allocated_size", 0) for result in converted),
    }
