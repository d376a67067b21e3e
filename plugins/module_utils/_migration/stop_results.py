# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run that was stopped says of the images that it has left to another one."""

from typing import Any, Dict, List, Optional

from .plan import CONVERT, NOOP, RETIRE, Plan, planned
from .planner import make_plan
from .record import Record, Records, State
from .request import Request, result_path
from .stop import REASON, StopRequest
from .window import Deferral, deferred


def why_stopped(request: StopRequest) -> Deferral:
    """Why a stopped run leaves an image to another one; with the code ``state`` where nobody can see whether it was: then the image has failed."""
    return Deferral("state" if request.problem else REASON, request.words)


def results_of_stopped(
    request: StopRequest, wanted: List[Request], plans: List[Plan], done: Dict[int, Dict[str, Any]], records: Records
) -> List[Dict[str, Any]]:
    """The results of a run that was stopped, where not all of it is ``done``, and not even planned maybe."""

    def left(plan: Plan, planned_for: bool = True) -> Dict[str, Any]:
        if plan.action not in (CONVERT, RETIRE):
            return planned(plan)
        record: Optional[Record] = next(iter(records.of_source(plan.request.src)[-1:]), None)
        if record is not None and record.state == State.DONE:
            anew = make_plan(plan.request, records)
            if (
                anew.action == NOOP
            ):  # it was done, and the signal came before that could be noted; or what was left of it was finished first
                return dict(planned(anew), changed=planned_for)
        if record is not None and record.unfinished:
            why = Deferral(REASON, "{0} while it was {1}; the next run finishes it".format(request.words, record.state))
            ours = planned_for and record.id != plan.unfinished
            return dict(planned(deferred(plan, why)), changed=ours and record.state in State.IN_PLACE, record=record.id)
        return planned(deferred(plan, why_stopped(request)))

    if not plans:
        return [left(Plan(CONVERT, image, result_path(image), [], ""), planned_for=False) for image in wanted]
    return [done.get(number) or left(plan) for number, plan in enumerate(plans)]
