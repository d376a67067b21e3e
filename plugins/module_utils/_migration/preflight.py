# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that stands in the way of a whole batch, found before the first byte is written."""

import os
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from .._errors import NoSpace, QcowError
from .._host import filesystem, free_space
from .._host.renames import can_replace_keeping, irreplaceable
from .._paths import show
from .plan import CONVERT, DEFER, REFUSE, RETIRE, Plan, Unit, unit_of, way_out_of_size
from .window import Deferral, deferred

_RECORD_BYTES = 1 << 16
_FULL = ("no-space", "no-inodes")


class Reserve:
    """What stays free on every filesystem: the larger of ``size`` bytes and ``percent`` of the filesystem."""

    def __init__(self, size: int = 64 << 20, percent: float = 0.0) -> None:
        self.size = size
        self.percent = percent


def preflight(
    plans: List[Plan], state_dir: bytes, reserve: Reserve, workers: int = 1, *, look_only: bool = False, as_many_as_fit: bool = False
) -> List[Plan]:
    """The plans, with those refused that could not be carried out for reasons of their own: the others need not wait for them.

    :param workers: how many images are under way at a time.
    :param look_only: try nothing with files of our own; what would have been tried is said in the plan's reasons.
    :param as_many_as_fit: where everything together does not fit, as few as possible are deferred.
    :raises NoSpace: where everything together does not fit. Its details' ``problems`` name this and all else that was found.
    """
    plans = _not_too_large(_distinct(plans))

    known: Dict[bytes, free_space.Filesystem] = {}

    def obstacles(kept: Reserve, among: Optional[List[Plan]] = None) -> List[free_space.Problem]:
        among = plans if among is None else among
        demands = _demands(among, state_dir) + _temporary_demands(among, workers)
        return free_space.problems(demands, reserve_bytes=kept.size, reserve_percent=kept.percent, known=known)

    found = obstacles(reserve)
    whole = plans
    closed = {problem.directory: problem for problem in found if problem.reason not in _FULL}
    plans = [_possible(plan, closed) for plan in plans]
    too_little = [problem for problem in found if problem.reason in _FULL]
    while too_little and as_many_as_fit:
        plans = _without_largest(plans, too_little[0], state_dir, workers, known)
        too_little = [problem for problem in obstacles(reserve) if problem.reason in _FULL]
    plans = _never_fitting(whole, plans, lambda among: obstacles(reserve, among))
    if too_little:
        others = [
            {"reason": plan.code, "path": show(plan.request.src), "msg": "; ".join(plan.reasons)} for plan in plans if plan.action == REFUSE
        ]
        problems = [{"reason": p.reason, "path": show(p.directory), "msg": str(p), "missing_bytes": p.missing_bytes} for p in too_little]
        fits = not any(problem.reason in _FULL for problem in obstacles(Reserve(0)))
        raise NoSpace(
            "the plan does not fit: {0}".format(" ".join(str(problem) for problem in too_little)),
            hint="Nothing was changed. Free the space, {0}choose another destination, or set fail_on_no_space=false to migrate those that fit.".format(
                "let less stay free (it fits with reserve=0), " if fits else ""
            ),
            problems=problems + others,
        )
    return _replaceable(plans, look_only=look_only)


def _never_fitting(whole: List[Plan], plans: List[Plan], obstacles: Callable[[List[Plan]], List[free_space.Problem]]) -> List[Plan]:
    """The plans, with those of the deferred ones refused that would not fit if they were alone: another run cannot do better.

    :param whole: the plans before any was deferred. :param obstacles: of plans.
    """
    units: Dict[Unit, List[Plan]] = {}
    for number, plan in enumerate(plans):
        if plan.action == DEFER and plan.code == "space":
            units.setdefault(unit_of(number, plan), []).append(whole[number])
    why = {unit: next((str(problem) for problem in obstacles(alone) if problem.reason in _FULL), None) for unit, alone in units.items()}
    refused = {unit: "there is no space for it, even without the other images. {0}".format(text) for unit, text in why.items() if text}
    return [
        _refused(plan, "no-space", refused[unit_of(number, plan)]) if plan.action == DEFER and unit_of(number, plan) in refused else plan
        for number, plan in enumerate(plans)
    ]


def _without_largest(
    plans: List[Plan], problem: free_space.Problem, state_dir: bytes, workers: int, known: Dict[bytes, free_space.Filesystem]
) -> List[Plan]:
    """The plans, with those deferred that a filesystem lacks the space for: the smallest that makes up for it, or else the largest ones.

    Images that are migrated together are deferred together. At least one is.
    """
    full = known[problem.directory].key
    by_files = problem.reason == "no-inodes"
    sizes: Dict[Unit, int] = {}
    for number, plan in enumerate(plans):
        if plan.action in (CONVERT, RETIRE):
            for demand in _demands([plan], state_dir) + _temporary_demands([plan], workers):
                there = known.get(demand.directory)
                if there is not None and there.key == full:
                    unit = unit_of(number, plan)
                    sizes[unit] = sizes.get(unit, 0) + (demand.inodes if by_files else demand.bytes)
    ascending = sorted(sizes, key=lambda unit: sizes[unit])
    missing = problem.missing_inodes if by_files else problem.missing_bytes
    dropped: Set[Unit] = set()
    while ascending and (missing > 0 or not dropped):
        unit = next((unit for unit in ascending if sizes[unit] >= missing), ascending[-1])
        ascending.remove(unit)
        dropped.add(unit)
        missing -= sizes[unit]
    why = Deferral("space", "there is no space for it beside the others. {0}".format(str(problem).rstrip(".")))
    return [
        deferred(plan, why) if plan.action in (CONVERT, RETIRE) and (not dropped or unit_of(number, plan) in dropped) else plan
        for number, plan in enumerate(plans)
    ]


def _refused(plan: Plan, code: str, reason: str, **details: Any) -> Plan:
    return plan._replace(action=REFUSE, code=code, reasons=[reason], details=details)


def _distinct(plans: List[Plan]) -> List[Plan]:
    """Refuse whoever asks for a name that an earlier one of the batch will take."""
    claimed: Dict[bytes, bytes] = {}
    folded: Dict[Tuple[bytes, str], bytes] = {}
    checked = []
    for plan in plans:
        if plan.action in (CONVERT, RETIRE):
            src = plan.request.src
            names = [plan.dest] + ([plan.retired] if plan.retired is not None else [])
            other = next((claimed[name] for name in names if claimed.get(name, src) != src), None)
            alike = next((name for name in names if folded.get(_folded(name), name) != name), None) if other is None else None
            kind = filesystem.kind_of(_parent(alike)) if alike is not None else None
            if other is None and alike is not None and kind is not None and kind.folds:
                other = claimed[folded[_folded(alike)]]
            if other is not None:
                why = "its names would be those of another image of this run, {0}: {1}".format(show(other), show(plan.dest))
                if kind is not None:
                    why += " ({0} does not tell upper from lower case there)".format(kind.name)
                plan = _refused(plan, "exists", why)
            else:
                claimed.update((name, src) for name in names)
                folded.update((_folded(name), name) for name in names)
        checked.append(plan)
    return checked


def _folded(path: bytes) -> Tuple[bytes, str]:
    """What two names have in common that a filesystem may take for one."""
    directory, name = os.path.split(path)
    return directory, name.decode("utf-8", "surrogateescape").lower()


def _not_too_large(plans: List[Plan]) -> List[Plan]:
    """Refuse what would need a file larger than there can be one."""
    possible: Dict[bytes, int] = {}  # bytes, by directory
    checked = []
    for plan in plans:
        if plan.action == CONVERT and plan.device is None:
            directory, size = _directory(plan), plan.longest_file
            limit = filesystem.limit_below(directory, size) if size > possible.get(directory, 0) else None
            if limit is None:
                possible[directory] = max(size, possible.get(directory, 0))
            else:
                plan = _too_large(plan, limit)
        checked.append(plan)
    return checked


def _too_large(plan: Plan, limit: filesystem.Limit) -> Plan:
    sizes = [free_space.human(size) for size in (plan.longest_file, limit.size)]
    if sizes[0] == sizes[1]:
        sizes = ["{0} bytes".format(size) for size in (plan.longest_file, limit.size)]
    message = "{0}: its migration needs a file of up to {1}, more than {2} allows: {3}. Nothing was changed. {4}".format(
        show(plan.dest), sizes[0], limit.whose, sizes[1], way_out_of_size(plan.request.format, ours=limit.ours)
    )
    return _refused(plan, "file-too-large", message, needed=plan.longest_file, limit=limit.size)


def _replaceable(plans: List[Plan], *, look_only: bool) -> List[Plan]:
    """Refuse what would take the name of an original that could not be kept at the same time. Each directory is asked once."""
    known: Dict[bytes, Optional[bool]] = {}
    checked = []
    for plan in plans:
        if plan.action == CONVERT and plan.in_place and plan.retired is not None:
            directory = _parent(plan.dest)
            try:
                if directory not in known:
                    kept = filesystem.kind_of(directory).keeps
                    known[directory] = can_replace_keeping(directory) if kept is None and not look_only else kept
                error = None if known[directory] in (True, None) else irreplaceable(plan.dest)
            except QcowError as found:
                error = found
            if error is not None:
                plan = _refused(plan, error.reason, str(error))
            elif known[directory] is None:
                plan = plan._replace(reasons=plan.reasons + ["whether this filesystem can exchange names is tried before the copy"])
        checked.append(plan)
    return checked


def _demands(plans: List[Plan], state_dir: bytes) -> List[free_space.Demand]:
    demands = []
    holes: Dict[bytes, bool] = {}
    for plan in plans:
        if plan.action == CONVERT:
            directory = _directory(plan)
            if directory not in holes:
                holes[directory] = filesystem.kind_of(directory).holes
            need = plan.need if plan.device is not None or holes[directory] else plan.longest_file
            demands.append(free_space.Demand(directory, need, 1, show(plan.dest)))
        if plan.action in (CONVERT, RETIRE):
            demands.append(free_space.Demand(filesystem.nearest(state_dir), _RECORD_BYTES, 1, "records"))
            if plan.retired is not None:
                demands.append(free_space.Demand(_parent(plan.retired), 0, 0, show(plan.retired)))
    return demands


def _temporary_demands(plans: List[Plan], workers: int) -> List[free_space.Demand]:
    """Temporary files go with their image, or with its chain: at the worst those of the largest ones are there together."""
    needs: Dict[bytes, Dict[Unit, int]] = {}
    for number, plan in enumerate(plans):
        if plan.action == CONVERT and plan.temporary_need:
            directory = _parent(plan.request.src) if plan.device is not None else _directory(plan)
            units, unit = needs.setdefault(directory, {}), unit_of(number, plan)
            units[unit] = units.get(unit, 0) + plan.temporary_need
    return [
        free_space.Demand(directory, sum(sorted(units.values())[-workers:]), 0, "temporary files") for directory, units in needs.items()
    ]


def _possible(plan: Plan, closed: Dict[bytes, free_space.Problem]) -> Plan:
    """The plan, or its refusal where a directory forbids what is to be done in it."""
    if plan.action not in (CONVERT, RETIRE):
        return plan
    directories = [_directory(plan)] if plan.action == CONVERT else []
    if plan.retired is not None:
        directories.append(_parent(plan.retired))
    for directory in directories:
        if directory in closed:
            return _refused(plan, closed[directory].reason, str(closed[directory]))
    return plan


def _directory(plan: Plan) -> bytes:
    """Where the result goes; of a directory that is yet to be made, the one that it will be made in."""
    directory = _parent(plan.dest)
    return directory if plan.request.dest_dir is None else filesystem.nearest(directory)


def _parent(path: bytes) -> bytes:
    return os.path.dirname(path) or b"."
