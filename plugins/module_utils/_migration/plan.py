# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for one image: a value that check mode prints, diff mode shows and normal mode executes. There is no other path."""

import errno
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from .._errors import QcowError, reason_of
from .._host.files import FileIdentity
from .._host.symbolic_links import SymbolicLink
from .._image.chain import Member
from .._paths import encode_exact, show
from .backing import RECLUSTER, Backing
from .overlay_headers import Dependent
from .record import named
from .request import Request
from .results import ImageResult, Outcome
from .source import Losses, listed

NOOP = "noop"
CONVERT = "convert"
RETIRE = "retire"
REFUSE = "refuse"
DEFER = "defer"  # left to another run

NATIVE = "native"
STAGED = "staged"
QEMU_IMG = "qemu-img"


class Plan(NamedTuple):
    """What will happen to one image, and why."""

    action: str  # NOOP, CONVERT, RETIRE (the result is there and proven, only the original is to be renamed) or REFUSE
    request: Request
    dest: bytes
    reasons: List[str]  # in words
    code: str  # of a refusal, see QcowError.reason
    retired: Optional[bytes] = None  # the name the original will get
    engine: str = NATIVE
    identity: Optional[FileIdentity] = None  # of the source
    before: Dict[str, Any] = {}
    virtual_size: int = 0  # of the result, bytes
    guest_bytes: int = 0  # that will be copied
    device: Optional[int] = None  # number of the block device that ``dest`` is
    need: int = 0  # bytes the result will occupy at most
    foreign_need: int = 0  # bytes that what is fetched of a foreign base will occupy at most, until the chain is done
    details: Dict[str, Any] = {}  # of a refusal
    below: Tuple[Member, ...] = ()  # the other files of its chain, nearest first
    backing: Optional[Backing] = None  # what a thin overlay rests on; None: the result stands alone
    cluster_size: int = 0  # of a qcow2 result
    layout: str = RECLUSTER  # of a qcow2 result
    lost: Losses = {}  # what salvage gives up
    chain_group: Optional[int] = None  # images that are migrated together or not at all have the same number
    dependents: Tuple[Dependent, ...] = ()  # foreign overlays to be re-pointed
    needed_by: Tuple[bytes, ...] = ()  # QCOW v1 overlays of the same chain_group
    searched: Tuple[bytes, ...] = ()  # trees in which overlays were looked for
    links: Tuple[SymbolicLink, ...] = ()  # to be re-pointed
    domains: Tuple[Dict[str, Any], ...] = ()  # disks that follow: name of the domain, target, declared format
    users: Tuple[bytes, ...] = ()  # all overlays and links that were seen
    warnings: Tuple[str, ...] = ()
    unfinished: Optional[str] = None  # the record of an interrupted run that is to be brought to its end
    second_opinion: bool = True  # whether qemu-img, where the host has one, checks the result too

    @property
    def lost_ranges(self) -> List[Dict[str, Any]]:
        """What salvage gives up, as results, reports and records list it."""
        return listed(self.lost, [self.request.src] + [member.path for member in self.below])

    @property
    def read_back_by_qemu_img(self) -> bool:
        """Whether only qemu-img can read what it wrote."""
        return self.engine != NATIVE and (self.request.compression == "zstd" or self.request.encryption == "luks")

    @property
    def temporary_need(self) -> int:
        """Bytes that temporary files will occupy beside the result at most."""
        return self.foreign_need + (self.need if self.read_back_by_qemu_img else 0)

    @property
    def longest_file(self) -> int:
        """Bytes that the longest file of the migration has at most, holes included: the result, or what qemu-img reads back of it, which is raw."""
        raw = self.request.format == "raw" or (self.read_back_by_qemu_img and self.request.verify)
        return max(self.need, self.virtual_size) if raw else self.need

    @property
    def retires(self) -> bool:
        """Whether the plan, when it is carried out, renames the original."""
        return self.action in (CONVERT, RETIRE) and self.retired is not None

    @property
    def in_place(self) -> bool:
        """Whether the result replaces the original under its own name."""
        return self.dest == self.request.src


Unit = Tuple[str, int]
"""What is carried out together, as something to compare and to look up."""


def unit_of(number: int, plan: Plan) -> Unit:
    """What a plan is carried out together with: alone by its number in the batch, or with its chain_group."""
    return ("image", number) if plan.chain_group is None else ("chain", plan.chain_group)


_SMALL = 16 << 20
_FIRST, _EACH = 20, 10


def with_second_opinions(plans: Iterable[Plan]) -> Iterator[Plan]:
    """The plans of a run, some of which ``qemu-img check`` need not be asked about: starting it takes longer than converting a small image.

    Asked about are all results but small plain ones (every cluster referred to once, one table of each kind), of those the first twenty and then
    each tenth.
    """
    small = 0
    for plan in plans:
        plain = plan.request.compression == "none" and plan.layout == RECLUSTER
        if plain and plan.need < _SMALL and plan.action == CONVERT:
            small += 1
            plan = plan._replace(second_opinion=small <= _FIRST or small % _EACH == 0)
        yield plan


def _of(plan: Plan, **facts: Any) -> Dict[str, Any]:
    result = ImageResult(
        src=show(plan.request.src),
        src_base64=encode_exact(plan.request.src),
        dest=show(plan.dest),
        dest_base64=encode_exact(plan.dest),
        action=plan.action,
        reasons=plan.reasons,
        retired=None if plan.retired is None else show(plan.retired),
        retired_base64=None if plan.retired is None else encode_exact(plan.retired),
        source=None if plan.identity is None else {key: getattr(plan.identity, key) for key in ("size", "mtime_ns", "ino")},
        copy_bytes=plan.guest_bytes,
        before=plan.before,
        warnings=list(plan.warnings),
        chain=[named(member.path, format=member.format) for member in plan.below],
        backing=None if plan.backing is None else named(plan.backing.name, format=plan.backing.format),
        repointed=[show(item.path) for item in plan.dependents],
        links=[named(link.path, target=show(link.target)) for link in plan.links],
        domains=list(plan.domains),
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
        message = "{0}: {1}".format(show(plan.request.src), outcome.strerror or outcome)
        if outcome.errno == errno.EFBIG:
            message += ". The original was not changed. {0}".format(way_out_of_size(plan.request.format))
        return failed(plan, reason_of(outcome), message, {})
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
        warnings=list(plan.warnings) + outcome.warnings,
        seconds=round(seconds, 3),
        copy_seconds=round(outcome.copy_seconds, 3),
        verify_seconds=round(outcome.verify_seconds, 3),
    )


def way_out_of_size(format_name: str, *, ours: Optional[bool] = None) -> str:
    """What to do where a result of a format needs a larger file than there can be.

    :param ours: whether a limit of our process forbids it, rather than the filesystem; ``None``: that is not known.
    """
    ways: Dict[Optional[bool], str] = {True: "raise that limit", False: "choose a dest on another filesystem"}
    way = ways.get(ours, "choose a dest on another filesystem, or raise the limit of the process (ulimit -f)")
    return "{0}.".format("Set format=qcow2, or " + way if format_name == "raw" else way[0].upper() + way[1:])


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
