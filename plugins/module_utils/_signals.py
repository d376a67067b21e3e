# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SIGTERM, SIGINT and SIGHUP ask a run to end; it ends in good order."""

import signal
import threading
from typing import Any, Dict, Optional


class Interrupted(BaseException):
    """We were asked to end. Not an ``Exception``, so that nobody takes it for a failure of one image and goes on to the next."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted by {0}".format(signal.Signals(number).name))
        self.number = number


class Interruptible:
    """Raises :class:`Interrupted` at the first SIGTERM, SIGINT or SIGHUP (context manager).

    Further ones are ignored: cleaning up is under way then, and SIGKILL is still there. Signals that were ignored before (``nohup``) stay so.
    In a thread other than the main one it does nothing.
    """

    def __init__(self) -> None:
        self._before: Dict[int, Any] = {}
        self._raised = False

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if not self._raised:
            self._raised = True
            if Uninterrupted.depth:
                Uninterrupted.pending = number
            else:
                raise Interrupted(number)

    def __exit__(self, *dummy: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Uninterrupted:
    """What is done inside is done to its end; :class:`Interrupted` is raised only then (context manager)."""

    depth = 0
    pending: Optional[int] = None

    def __enter__(self) -> None:
        Uninterrupted.depth += 1

    def __exit__(self, *dummy: Any) -> None:
        Uninterrupted.depth -= 1
        number = Uninterrupted.pending
        if number is not None and not Uninterrupted.depth:
            Uninterrupted.pending = None
            raise Interrupted(number)
