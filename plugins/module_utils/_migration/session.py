# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run on a host. A session is built once by each run and passed down; there is no other state."""

from contextlib import ExitStack
from typing import Any, Optional, Set

from .._libvirt.inventory import DEFAULT_URI
from .._signals import Interruptible
from .calls import this_call
from .domain_references import FOLLOW, IGNORE, REFUSE, Domains, IgnoredDomains, LostDomains, RefusingDomains
from .link_references import LinkUpdater
from .lock import Exclusive
from .moved_files import AUTO, MovedFiles
from .overlay_headers import NeededBases, OverlayHeaders
from .progress import Progress
from .record import DomainJournal, Records, now
from .references import References
from .seen_images import RecentLooks
from .stop import Stop

_MIGRATING = {FOLLOW: Domains, REFUSE: RefusingDomains, IGNORE: IgnoredDomains}
_UNDOING = {FOLLOW: Domains, REFUSE: RefusingDomains, IGNORE: LostDomains}


class Session:
    """What a run holds and whom it asks (context manager: no other run changes anything on this host, and signals are exceptions).

    Without being entered it serves runs that only look.

    :param wait: seconds to wait for another run to end.
    :param domains: what becomes of libvirt domains that use an image: ``follow``, ``refuse`` or ``ignore``.
    :param undoing: the run rolls back or cleans up: ``ignore`` then leaves definitions as they are.
    :param moved_files: what to do with a file that has another inode number or time than recorded, see :class:`.MovedFiles`.
    :param raw_allowed: a v1 image may be followed as an image although a domain declares it raw.
    :param watched_as: the token by which progress is watched, see :func:`.calls.this_call`.
    :param run_age: seconds that the run of ``ansible-playbook`` is older than this process.
    :param passes: how often the bytes of each image are gone through.
    """

    def __init__(
        self,
        state_dir: bytes,
        *,
        wait: float = 0,
        domains: str = FOLLOW,
        libvirt_uri: str = DEFAULT_URI,
        undoing: bool = False,
        moved_files: str = AUTO,
        raw_allowed: bool = False,
        watched_as: Optional[str] = None,
        run_age: Optional[float] = None,
        passes: int = 2,
    ) -> None:
        self.state_dir = state_dir
        self.journal = DomainJournal(state_dir)
        self.domains = (_UNDOING if undoing else _MIGRATING)[domains](libvirt_uri, raw_allowed=raw_allowed)
        self.moved = MovedFiles(moved_files)
        self.waiting: Set[str] = set()  # records of interrupted runs that wait for overlays to be migrated
        self.references = References(NeededBases(), OverlayHeaders(), LinkUpdater(), self.domains)
        self.looks = RecentLooks(self.domains)
        self._call = this_call(watched_as, run_age)
        self.stop = Stop(state_dir, self._call)
        self.progress = Progress(state_dir, self._call, passes)
        self._wait = wait
        self._held = ExitStack()

    @property
    def records(self) -> Records:
        """The records of this host as they are now: other processes of this run write them, too."""
        return Records(self.state_dir)

    @property
    def anything_left(self) -> bool:
        """Whether an interrupted run has left something to look after."""
        records = self.records
        return bool(records.unfinished() or records.unreadable() or self.journal.entries())

    def __enter__(self) -> "Session":
        """:raises StateError: with reason ``locked`` where another run is at work, or the state directory cannot be used.

        :raises Stopped: the run was stopped before, or while it waited for another one.
        """
        self.stop.check()
        with ExitStack() as held:
            held.callback(self.progress.close)
            self.progress.stage("waiting")
            held.enter_context(Interruptible())
            lock = held.enter_context(Exclusive(self.state_dir, self._wait, self._call, self.stop.check))
            self.stop.check()
            self.progress.sweep()
            self.progress.stage("recovering", since=now())
            held.callback(lambda: lock.ended.update(self.progress.numbers(), time=now(), stopped=self.stop.heeded))
            self._held = held.pop_all()
        self.moved.writes = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)
