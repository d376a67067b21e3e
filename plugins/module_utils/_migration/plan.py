# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for one image: a value that check mode prints, diff mode shows and normal mode executes. There is no other path."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .._host.files import FileIdentity
from .._image.chain import Member
from .backing import RECLUSTER, Backing
from .overlay_headers import Dependant
from .request import Request
from .source import Losses, listed

NOOP = "noop"
CONVERT = "convert"
RETIRE = "retire"
REFUSE = "refuse"

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
    need: int = 0  # bytes the result will occupy at most
    details: Dict[str, Any] = {}  # of a refusal
    below: Tuple[Member, ...] = ()  # the other files of its chain, nearest first
    backing: Optional[Backing] = None  # what a thin overlay rests on; None: the result stands alone
    cluster_size: int = 0  # of a qcow2 result
    layout: str = RECLUSTER  # of a qcow2 result
    lost: Losses = {}  # what salvage gives up
    chain_group: Optional[int] = None  # images that are migrated together or not at all have the same number
    dependants: Tuple[Dependant, ...] = ()  # foreign overlays to be re-pointed
    needed_by: Tuple[bytes, ...] = ()  # QCOW v1 overlays of the same chain_group
    unfinished: Optional[str] = None  # the record of an interrupted run that is to be brought to its end

    @property
    def lost_ranges(self) -> List[Dict[str, Any]]:
        """What salvage gives up, as results, reports and records list it."""
        return listed(self.lost, [self.request.src] + [member.path for member in self.below])

    @property
    def in_place(self) -> bool:
        """Whether the result replaces the original under its own name."""
        return self.dest == self.request.src
