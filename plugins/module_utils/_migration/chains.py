# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that hang together: planned base first, refused together, and no base retired that somebody still needs."""

from typing import Dict, List, Optional, Set

from .._errors import QcowError
from .._host.in_use import find_users_many
from .._image.chain import GraphNode, Key, locate
from .._image.qcow1_check import STRUCTURE
from .._image.qcow2_header import BackingEntry
from .._paths import show
from . import overlay_headers
from .backing import new_name
from .link_references import with_links
from .moved_files import MovedFiles
from .plan import CONVERT, REFUSE, RETIRE, Plan
from .planner import Bases, make_plan
from .record import Records
from .request import Request
from .seen_images import SeenImages, looks_like_template

_MOST_NAMED = 10  # directories; the results list all that were searched
_TEMPLATE = (
    "its name is that of a template, but no image rests on it in {0}: if it has linked clones elsewhere, name their directories in backing_dirs, or they "
    "lose their backing file"
)


def plan_chains(
    requests: List[Request],
    records: Records,
    level: str = STRUCTURE,
    around: Optional[SeenImages] = None,
    moved: Optional[MovedFiles] = None,
) -> List[Plan]:
    """One plan for each request, in their order; bases are planned before what rests on them.

    :param level: of the check of each image.
    :param around: what has been seen of other images already.
    :param moved: settles which file is which.

    A base that would be retired gets the foreign overlays that have to follow it; it is refused where something rests on it that can neither
    follow nor is migrated in the same batch.
    """
    around = around or SeenImages()
    around.look_around(requests)
    own: Dict[Key, int] = {}
    for number, request in enumerate(requests):
        node = around.node(request.src)
        if node is not None:
            own.setdefault(node.key, number)
    bases = Bases(level, moved)
    if len(own) > 1:
        bases.users = find_users_many(own)
    plans: Dict[int, Plan] = {}
    searched = tuple(directory.path for directory in around.searched.values() if directory.recurse)
    for number in _base_first(requests, around, own):
        plans[number] = make_plan(requests[number], records, bases)
    for key, number in own.items():
        if plans[number].retires:
            dependents, ignored = around.dependents(key)
            if not dependents and looks_like_template(plans[number].request.src):
                ignored.append(_TEMPLATE.format(", ".join(map(show, list(around.searched)[:_MOST_NAMED]))))
            plan = plans[number]._replace(
                searched=searched, users=tuple(node.path for node in dependents), warnings=plans[number].warnings + tuple(ignored)
            )
            plans[number] = _with_dependents(plan, dependents, own, plans)
    plans = with_links(plans, around.links)
    chain_groups = _chain_groups(around, own, plans)
    return [plans[number]._replace(chain_group=chain_groups.get(number)) for number in range(len(requests))]


def refuse_together(plans: List[Plan]) -> List[Plan]:
    """Where one image of a chain group is refused, all that would be changed of it are."""
    refused: Dict[int, Plan] = {}
    for plan in plans:
        if plan.chain_group is not None and plan.action == REFUSE:
            refused.setdefault(plan.chain_group, plan)
    return [
        _refused(plan, "chain", "of the same chain, {0}".format("; ".join(refused[plan.chain_group].reasons)))
        if plan.chain_group in refused and plan.action in (CONVERT, RETIRE)
        else plan
        for plan in plans
    ]


def _refused(plan: Plan, code: str, why: str) -> Plan:
    return plan._replace(action=REFUSE, code=code, reasons=["{0}: {1}".format(show(plan.request.src), why)])


def _base_first(requests: List[Request], around: SeenImages, own: Dict[Key, int]) -> List[int]:
    keys = {number: key for key, number in own.items()}
    order: Dict[int, None] = {}
    for number in range(len(requests)):
        line: List[int] = []
        seen: Set[Key] = set()
        key: Optional[Key] = keys.get(number)
        while key is not None and key not in seen:
            seen.add(key)
            if key in own:
                line.append(own[key])
            key = around.base(key)
        order.update(dict.fromkeys(reversed(line or [number])))
    return list(order)


def _with_dependents(plan: Plan, dependents: List[GraphNode], own: Dict[Key, int], plans: Dict[int, Plan]) -> Plan:
    """The plan of a base with what has to follow it, or its refusal."""
    follow: List[overlay_headers.Dependent] = []
    needed_by: List[bytes] = []
    for node in dependents:
        over = plans[own[node.key]] if node.key in own else None
        if over is not None and node.format == "qcow" and over.action in (CONVERT, RETIRE, REFUSE):
            needed_by.append(over.request.src)
            continue
        if node.format == "qcow":
            return _refused(
                plan,
                "needed",
                "it is the backing file of {0}, which is not migrated in this run. Nothing was changed. Migrate both together, "
                "or keep the original.".format(show(node.path)),
            )
        try:
            old = node.reference.name if node.reference else b""
            name = new_name(node.path, node.path, old, locate(node.path, old), plan.dest)
            follow.append(overlay_headers.check(node.path, BackingEntry(name, plan.request.format)))
        except QcowError as error:
            return _refused(plan, error.reason, "its overlay cannot follow it: {0}".format(error))
    return plan._replace(dependents=tuple(follow), needed_by=tuple(needed_by))


def _chain_groups(around: SeenImages, own: Dict[Key, int], plans: Dict[int, Plan]) -> Dict[int, int]:
    """Number of the chain group by number of the plan, for images that are not alone in theirs."""
    parent = {number: number for number in plans}

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for key, number in own.items():
        request = plans[number].request
        base = around.base(key)
        seen = {key}
        while base is not None and base not in seen:
            seen.add(base)
            if base in own:
                together = request.chains == "preserve" or plans[own[base]].request.retire
                if together:
                    parent[root(number)] = root(own[base])
                break
            base = around.base(base)
    sizes: Dict[int, int] = {}
    for number in plans:
        sizes[root(number)] = sizes.get(root(number), 0) + 1
    return {number: root(number) for number in plans if sizes[root(number)] > 1 or plans[number].dependents}
