# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Not faster than asked for."""

import time
from typing import Optional

_BURST = 0.25  # seconds that may be caught up after a wait that was not ours


class Pace:
    """Sleeps, when told of bytes that have been dealt with, so that they are not more than ``bandwidth`` a second; ``None`` is no limit."""

    def __init__(self, bandwidth: Optional[int]) -> None:
        self._bandwidth = bandwidth
        self._due = time.monotonic()

    def __call__(self, count: int) -> None:
        """Bytes dealt with since the last call."""
        if not self._bandwidth:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _BURST) + count / self._bandwidth
        if self._due > now:
            time.sleep(self._due - now)
