# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a run ends before all is done, cleanly between two images: the rest is deferred, and the next run goes on."""

import time
from typing import Dict, List, Optional, Set, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.migration.plan import CONVERT, RETIRE, Plan

DEFER = "defer"
"""The action of a plan that another run is to carry out."""

Unit = Tuple[str, int]


def unit_of(number: int, plan: Plan) -> Unit:
    """What a plan is carried out together with: alone by its number in the batch, or with its family."""
    return ("image", number) if plan.family is None else ("family", plan.family)


def defer_beyond(plans: List[Plan], limit: Optional[int]) -> List[Plan]:
    """The plans, with those deferred that would take a run over ``limit`` guest bytes copied.

    The first image always stays, or one larger than the limit would never be migrated; families stay whole.
    """
    if limit is None:
        return plans
    sizes: Dict[Unit, int] = {}
    for number, plan in enumerate(plans):
        if plan.action in (CONVERT, RETIRE):
            unit = unit_of(number, plan)
            sizes[unit] = sizes.get(unit, 0) + (plan.guest_bytes if plan.action == CONVERT else 0)
    total = 0
    kept: Set[Unit] = set()
    for unit, size in sizes.items():
        if not kept or total + size <= limit:
            total += size
            kept.add(unit)
    return [
        plan if plan.action not in (CONVERT, RETIRE) or unit_of(number, plan) in kept else deferred(plan, "{0} bytes".format(limit))
        for number, plan in enumerate(plans)
    ]


def deferred(plan: Plan, limit: str) -> Plan:
    """The plan, left to another run."""
    return plan._replace(action=DEFER, code="deferred", reasons=["deferred: this run ends at {0}; run again to go on".format(limit)])


class Window:
    """The time in which a run may begin with an image. What is under way at its end is completed.

    :param minutes: from now; ``None`` for no end.
    """

    def __init__(self, minutes: Optional[float]) -> None:
        self._end = None if minutes is None else time.monotonic() + minutes * 60

    def is_open(self) -> bool:
        """Whether the next image may be begun."""
        return self._end is None or time.monotonic() < self._end
