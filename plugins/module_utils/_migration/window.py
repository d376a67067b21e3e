# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a run ends before all is done: what it leaves to another run, and why."""

import time
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set

from .._paths import show
from .plan import CONVERT, DEFER, RETIRE, Plan, Unit, unit_of
from .record import Record

ASSUMED_SPEED = 100 << 20
"""Guest bytes a second, until something has been measured on the host."""

ASSUMED_OVERHEAD = 1.0
"""Seconds that an image takes beside its bytes, until something has been measured on the host."""

_AT_LEAST = 1.0  # seconds; a busy host takes as long to begin
_LARGE = 16 << 20  # guest bytes from which on an image tells of speed; what is smaller tells of all the rest


class Deferral(NamedTuple):
    """Why an image is left to another run: ``code`` for programs, ``reason`` for people."""

    code: str
    reason: str


def deferred(plan: Plan, why: Deferral) -> Plan:
    """The plan, left to another run."""
    return plan._replace(action=DEFER, code=why.code, reasons=["deferred: {0}; run again to go on".format(why.reason)])


def defer_others(plans: List[Plan], only: Optional[Sequence[str]]) -> List[Plan]:
    """The plans, with those deferred that are not of ``only``, the images by their names in results; chains stay whole."""
    if only is None:
        return plans
    wanted = frozenset(only)
    others = {
        unit_of(number, plan)
        for number, plan in enumerate(plans)
        if plan.action in (CONVERT, RETIRE) and show(plan.request.src) not in wanted
    }
    return _deferred_units(plans, others, Deferral("unplanned", "it is not among the images that this run was given (only)"))


def defer_beyond(plans: List[Plan], limit: Optional[int]) -> List[Plan]:
    """The plans, with those deferred that would take a run over ``limit`` guest bytes copied.

    The first image always stays, or one larger than the limit would never be migrated; chains stay whole.
    """
    if limit is None:
        return plans
    sizes: Dict[Unit, int] = {}
    for number, plan in enumerate(plans):
        if plan.action in (CONVERT, RETIRE):
            unit = unit_of(number, plan)
            sizes[unit] = sizes.get(unit, 0) + (plan.guest_bytes if plan.action == CONVERT else 0)
    total = 0
    beyond: Set[Unit] = set()
    for number, (unit, size) in enumerate(sizes.items()):
        if number == 0 or total + size <= limit:
            total += size
        else:
            beyond.add(unit)
    return _deferred_units(plans, beyond, Deferral("limit", "this run ends at {0} bytes".format(limit)))


def _deferred_units(plans: List[Plan], units: Set[Unit], why: Deferral) -> List[Plan]:
    return [
        deferred(plan, why) if plan.action in (CONVERT, RETIRE) and unit_of(number, plan) in units else plan
        for number, plan in enumerate(plans)
    ]


class Estimates:
    """How long images take on this host, by what others took.

    :param records: of earlier migrations on the host.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._bytes = self._byte_seconds = 0.0
        self._images = self._image_seconds = 0.0
        for record in records:
            if record.facts.get("bandwidth"):
                continue  # its time says what was allowed, not what is possible
            if record.facts.get("seconds") is not None and record.facts.get("copy_bytes") is not None:
                self.learn(record.facts["copy_bytes"], record.facts["seconds"])

    def learn(self, size: int, seconds: float, images: int = 1) -> None:
        """So many guest bytes of so many images took so many seconds."""
        if size >= _LARGE * images:
            self._bytes += size
            self._byte_seconds += seconds
        else:
            self._images += images
            self._image_seconds += seconds

    def seconds(self, plans: List[Plan]) -> float:
        """What plans that are carried out one after the other will take."""
        overhead = self._image_seconds / self._images if self._images else ASSUMED_OVERHEAD
        speed = self._bytes / self._byte_seconds if self._byte_seconds else ASSUMED_SPEED
        return sum(overhead + max(plan.guest_bytes / speed, _slowed_down(plan)) for plan in plans)


def _slowed_down(plan: Plan) -> float:
    """Seconds that an image takes at least where its bandwidth is limited."""
    passes = 2 if plan.request.verify else 1
    return plan.guest_bytes * passes / plan.request.bandwidth if plan.request.bandwidth else 0.0


class Window:
    """The time in which a run may begin with images: what is begun is completed, and nothing is begun that cannot be by then.

    :param minutes: from now; ``None`` for no end.
    :param estimates: by which the end of an image is foreseen.
    :param passed: seconds of the window that are over.
    """

    def __init__(self, minutes: Optional[float], estimates: Estimates, *, passed: float = 0.0) -> None:
        self._end = None if minutes is None else time.monotonic() + minutes * 60
        self._whole = None if minutes is None else passed + minutes * 60
        self.estimates = estimates

    def closed_for(self, plans: List[Plan], after: float = 0.0) -> Optional[Deferral]:
        """Why these, which are carried out together, may not be begun; ``None`` where they may.

        :param after: seconds from now until they would be.
        """
        if self._end is None or self._whole is None:
            return None
        left = self._end - time.monotonic() - after
        if left <= 0:
            return Deferral("window", "the window of this run has closed")
        needed = max(self.estimates.seconds(plans), _AT_LEAST)
        if needed <= left:
            return None
        why = "it would take about {0}, and the window of this run closes in {1}".format(_time(needed), _time(left))
        if needed > self._whole:
            why += "; the whole window of {0} is too short for it, choose a longer one".format(_time(self._whole))
        return Deferral("window", why)


def _time(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole < 60:
        return "{0} s".format(whole)
    if whole < 3600:
        return "{0} min".format(whole // 60)
    return "{0} h {1:02d} min".format(whole // 3600, whole % 3600 // 60)
