# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that stands in the way of a whole batch, found before the first byte is written."""

import errno
import os
from typing import Any, Dict, List, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import NoSpace, QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils.host import attributes, space
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import open_source
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.plan import CONVERT, REFUSE, RETIRE, Plan
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

_RECORD_BYTES = 1 << 16


class Reserve:
    """What stays free on every filesystem: the larger of ``size`` bytes and ``percent`` of the filesystem."""

    def __init__(self, size: int = 64 << 20, percent: float = 0.0) -> None:
        self.size = size
        self.percent = percent


def preflight(plans: List[Plan], state_dir: bytes, reserve: Reserve) -> List[Plan]:
    """The plans, with those refused that could not be carried out for reasons of their own: the others need not wait for them.

    :raises NoSpace: where everything together does not fit. Its details' ``problems`` name this and all else that was found.
    """
    plans = _distinct(plans)
    demands = _demands(plans, state_dir)
    found = space.problems(demands, reserve_bytes=reserve.size, reserve_percent=reserve.percent)
    closed = {problem.directory: problem for problem in found if problem.reason not in ("no-space", "no-inodes")}
    plans = [_possible(plan, closed) for plan in plans]
    too_little = [problem for problem in found if problem.reason in ("no-space", "no-inodes")]
    if too_little:
        others = [
            {"reason": plan.code, "path": show(plan.request.src), "msg": "; ".join(plan.reasons)} for plan in plans if plan.action == REFUSE
        ]
        problems = [{"reason": p.reason, "path": show(p.directory), "msg": str(p), "missing_bytes": p.missing_bytes} for p in too_little]
        raise NoSpace(
            "the plan does not fit: {0}".format(" ".join(str(problem) for problem in too_little)),
            hint="Nothing was changed. Free the space, choose another destination, or migrate fewer images at a time.",
            problems=problems + others,
        )
    return plans


def _refused(plan: Plan, code: str, reason: str, **details: Any) -> Plan:
    return plan._replace(action=REFUSE, code=code, reasons=[reason], details=details)


def _distinct(plans: List[Plan]) -> List[Plan]:
    """Refuse whoever asks for a name that an earlier one of the batch will take."""
    claimed: Dict[bytes, bytes] = {}
    checked = []
    for plan in plans:
        if plan.action in (CONVERT, RETIRE):
            src = plan.request.src
            names = [plan.dest] + ([plan.retired] if plan.retired is not None else [])
            other = next((claimed[name] for name in names if claimed.get(name, src) != src), None)
            if other is not None:
                plan = _refused(
                    plan, "exists", "its names would be those of another image of this run, {0}: {1}".format(show(other), show(plan.dest))
                )
            else:
                claimed.update((name, src) for name in names)
        checked.append(plan)
    return checked


def _demands(plans: List[Plan], state_dir: bytes) -> List[space.Demand]:
    demands = []
    for plan in plans:
        if plan.action == CONVERT:
            demands.append(space.Demand(_directory(plan), plan.need, 1, show(plan.dest)))
        if plan.action in (CONVERT, RETIRE):
            demands.append(space.Demand(_existing(state_dir), _RECORD_BYTES, 1, "records"))
            if plan.retired is not None:
                demands.append(space.Demand(_parent(plan.retired), 0, 0, show(plan.retired)))
    return demands


def _possible(plan: Plan, closed: Dict[bytes, space.Problem]) -> Plan:
    """The plan, or its refusal where a directory or the original itself forbids what is to be done with it."""
    if plan.action not in (CONVERT, RETIRE):
        return plan
    directories = [_directory(plan)] if plan.action == CONVERT else []
    if plan.retired is not None:
        directories.append(_parent(plan.retired))
    for directory in directories:
        if directory in closed:
            return _refused(plan, closed[directory].reason, str(closed[directory]))
    flags = _protection(plan.request.src) if plan.retired is not None else None
    if flags:
        reason = (
            "{0}: the original is {1} (see lsattr) and could not be renamed. Nothing was changed. Run chattr on it, or keep the original."
        )
        return _refused(plan, "protected", reason.format(show(plan.request.src), flags))
    return plan


def _protection(path: bytes) -> Optional[str]:
    try:
        fd = open_source(path)
    except QcowError:
        return None
    try:
        return " and ".join(attributes.protection(fd))
    finally:
        os.close(fd)


def _directory(plan: Plan) -> bytes:
    """Where the result goes; of a directory that is yet to be made, the one that it will be made in."""
    directory = _parent(plan.dest)
    return directory if plan.request.dest_dir is None else _existing(directory)


def _parent(path: bytes) -> bytes:
    return os.path.dirname(path) or b"."


def _existing(directory: bytes) -> bytes:
    while not os.path.isdir(directory) and directory not in (b"", b"/"):
        directory = os.path.dirname(directory)
    return directory or b"."


def reason_of(error: OSError) -> str:
    """The stable code of an error of the operating system."""
    reasons = {
        errno.ENOSPC: "no-space",
        errno.EDQUOT: "no-space",
        errno.EIO: "storage",
        errno.EROFS: "read-only",
        errno.EACCES: "unreadable",
        errno.EPERM: "unreadable",
        errno.ENOENT: "missing",
    }
    return reasons.get(error.errno or 0, "error")
