# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules return: every entry of a list is one of these types, turned into a dictionary. RETURN documents their fields."""

from typing import Any, Dict, List, NamedTuple, Optional, Union

from .._errors import QcowError
from .._paths import encode_exact, show
from .execute import Outcome
from .plan import CONVERT, REFUSE, RETIRE, Plan
from .preflight import DEFER, reason_of
from .record import named


class ImageResult(NamedTuple):
    """What has become of one image, or would. Sizes in bytes, times in seconds."""

    src: str
    src_base64: Optional[str]
    dest: str
    dest_base64: Optional[str]
    action: str
    reasons: List[str]
    changed: bool = False
    failed: bool = False
    engine: Optional[str] = None
    verified: Optional[bool] = None
    fingerprint: Optional[str] = None
    retired: Optional[str] = None
    record: Optional[str] = None
    source: Optional[Dict[str, int]] = None
    copy_bytes: int = 0
    before: Dict[str, Any] = {}
    after: Dict[str, Any] = {}
    warnings: List[str] = []
    chain: List[Dict[str, Any]] = []
    backing: Optional[Dict[str, Any]] = None
    repointed: List[str] = []
    lost: List[Dict[str, Any]] = []
    seconds: float = 0.0
    copy_seconds: float = 0.0
    verify_seconds: float = 0.0
    reason: Optional[str] = None
    msg: str = ""
    details: Dict[str, Any] = {}


def _of(plan: Plan, **facts: Any) -> Dict[str, Any]:
    result = ImageResult(
        src=show(plan.request.src),
        src_base64=encode_exact(plan.request.src),
        dest=show(plan.dest),
        dest_base64=encode_exact(plan.dest),
        action=plan.action,
        reasons=plan.reasons,
        retired=None if plan.retired is None else show(plan.retired),
        source=None if plan.identity is None else {key: getattr(plan.identity, key) for key in ("size", "mtime_ns", "ino")},
        copy_bytes=plan.guest_bytes,
        before=plan.before,
        warnings=[],
        chain=[named(member.path, format=member.format) for member in plan.below],
        backing=None if plan.backing is None else named(plan.backing.name, format=plan.backing.format),
        repointed=[show(item.path) for item in plan.dependants],
        lost=plan.lost_ranges,
        msg="; ".join(plan.reasons),
    )
    return dict(result._replace(**facts)._asdict())


def planned(plan: Plan) -> Dict[str, Any]:
    """What would become of an image, or why it was left alone."""
    if plan.action == REFUSE:
        return _of(plan, failed=True, reason=plan.code, details=plan.details)
    if plan.action == CONVERT:
        after = {"path": show(plan.dest), "format": plan.request.format, "virtual_size": plan.virtual_size, "file_size": plan.need}
        return _of(plan, changed=True, engine=plan.engine, after=after)
    if plan.action == DEFER:
        return _of(plan, reason=plan.code)
    return _of(plan, changed=plan.action == RETIRE)


def failed(plan: Plan, reason: str, message: str, details: Dict[str, Any]) -> Dict[str, Any]:
    """What stopped an image."""
    return _of(plan, failed=True, reason=reason, msg=message, details=details)


def ended_as(plan: Plan, outcome: Union[Outcome, Exception], seconds: float) -> Dict[str, Any]:
    """What has become of an image.

    :param outcome: of its plan, or what was raised instead.
    :param seconds: that it took.
    """
    if isinstance(outcome, QcowError):
        return failed(plan, outcome.reason, str(outcome), outcome.details)
    if isinstance(outcome, OSError):
        return failed(plan, reason_of(outcome), "{0}: {1}".format(show(plan.request.src), outcome.strerror or outcome), {})
    if isinstance(outcome, Exception):
        return failed(plan, "error", "{0}: {1!r}".format(show(plan.request.src), outcome), {})
    return _of(
        plan,
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
