# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What domains forbid, before anything is written, and what may be done to those that run.

A running domain holds all of its images, so images that share one are migrated together: it is shut down, or put on a snapshot, once for all of them.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from .._errors import QcowError
from .._libvirt.inventory import Move
from .._paths import show
from .domain_references import Domains
from .plan import CONVERT, REFUSE, RETIRE, Plan
from .request import WRITTEN, Request, retired_path

SHUTDOWN = "shutdown"
LIVE = "live"


class Policy(NamedTuple):
    """What may be done to running domains: nothing (``refuse``), ``shutdown`` within so many seconds, or a ``live`` move."""

    running: str = REFUSE
    shutdown_timeout: float = 120.0


def prepared(requests: List[Request], domains: Domains, policy: Policy) -> List[Request]:
    """The requests with what libvirt knows of their images: declared formats, and whether a running domain will make room."""
    if not requests:
        return requests
    formats = domains.declared_formats()
    access = WRITTEN if policy.running in (SHUTDOWN, LIVE) else ""
    return [
        request._replace(
            # Of the image itself its own refusal speaks, which names the domain.
            backing_formats=tuple(item for item in formats if item[0] != request.src) + request.backing_formats,
            domain_access=access if access and domains.running(request.src) else "",
        )
        for request in requests
    ]


def judge(plans: List[Plan], domains: Domains, policy: Policy) -> List[Plan]:
    """The plans, those refused that a domain stands in the way of; the others say which domains follow."""
    judged = []
    for plan in plans:
        if plan.action in (CONVERT, RETIRE):
            plan = _judged(plan, domains, policy)
        elif plan.action == REFUSE and plan.code == "in-use" and domains.running(plan.request.src):
            names = ", ".join(domains.running(plan.request.src).values())
            plan = plan._replace(reasons=["{0} {1}".format("; ".join(plan.reasons), _way_out(names))])
        elif plan.action == REFUSE and plan.code == "exists":
            places = [path for path in (plan.dest, retired_path(plan.request.src)) if path != plan.request.src]
            uses = sorted({"{0} ({1})".format(use.domain, use.target) for path in places for use in domains.survey().users_of(path)})
            if uses:
                plan = plan._replace(
                    reasons=["{0} What has the name is used by domain {1}.".format("; ".join(plan.reasons), ", ".join(uses))]
                )
        judged.append(plan)
    return judged


def _judged(plan: Plan, domains: Domains, policy: Policy) -> Plan:
    src = plan.request.src
    against = domains.against(src, Move(src, plan.dest, plan.request.format))
    if against:
        return _refused(plan, "domain", " ".join(against))
    running = domains.running(plan.request.src)
    names = ", ".join(running.values())
    if running and policy.running == REFUSE:
        return _refused(plan, "in-use", _way_out(names))
    if running and policy.running == LIVE:
        try:
            why = _against_live(plan, domains, running)
        except QcowError as error:
            why = str(error)
        if why is not None:
            return _refused(plan, "domain", why)
    uses = sorted({(use.domain, use.target, use.declared_format) for use in domains.definitions(plan.request.src)}, key=str)
    follow = sorted({"{0} ({1})".format(*use) for use in uses})
    how = "follows"
    if running:
        how = "is shut down and started again" if policy.running == SHUTDOWN else "is moved live"
    if not follow:
        return plan
    disks = tuple({"name": name, "target": target, "format": declared} for name, target, declared in uses)
    return plan._replace(reasons=plan.reasons + ["domain {0} {1}".format(", ".join(follow), how)], domains=disks)


def _refused(plan: Plan, code: str, why: str) -> Plan:
    return plan._replace(action=REFUSE, code=code, reasons=["{0}: {1} Nothing was changed.".format(show(plan.request.src), why)])


def _way_out(names: str) -> str:
    return "Domain {0} is running. Shut it down, or set running=shutdown or running=live.".format(names)


def _against_live(plan: Plan, domains: Domains, running: Dict[str, str]) -> Optional[str]:
    """Why a running domain cannot be moved with this image.

    :raises QcowError: the host cannot, and why.
    """
    names = ", ".join(running.values())
    uses = [use for use in domains.survey().users_of(plan.request.src) if use.uuid in running]
    if len(running) > 1 or any(use.depth for use in uses) or plan.below or plan.chain_group is not None:
        return "Running domain {0} shares it, or it is part of a chain; that cannot be moved live. Set running=shutdown.".format(names)
    if plan.in_place:
        return "A result under the same name cannot be made while domain {0} runs. Set running=shutdown.".format(names)
    if plan.action == RETIRE:
        return "Running domain {0} has written to it since its result was made. Give another dest, or set running=shutdown.".format(names)
    from .._libvirt import api, control  # these are there: a domain runs

    connection = api.connect(domains.uri, readonly=True)
    try:
        for uuid in running:
            control.capable(connection, uuid, sorted({use.target for use in uses}), plan.request.format)
    finally:
        api.close(connection)
    return None


Job = List[Tuple[int, Plan]]


def together(jobs: List[Job], domains: Domains) -> List[Job]:
    """The jobs, with those that share a running domain made one."""
    merged: List[Job] = []
    place: Dict[str, Job] = {}
    for job in jobs:
        names = {uuid for _number, plan in job if plan.request.domain_access for uuid in domains.running(plan.request.src)}
        found: List[Job] = []
        for name in sorted(names):
            other = place.get(name)
            if other is not None and not any(other is one for one in found):
                found.append(other)
        for other in found:
            job = other + job
            merged = [one for one in merged if one is not other]
        merged.append(job)
        for uuid, other in list(place.items()):
            if any(other is one for one in found):
                place[uuid] = job
        place.update((uuid, job) for uuid in names)
    return merged
