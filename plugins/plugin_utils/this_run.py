# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""This run of ``ansible-playbook``: the same for all of its hosts, batches and plays.

Strategies load the class of an action plugin in the main process before they fork a worker for a host. So what is set here once, when the first task
of this collection is due, is what every worker sees.
"""

from __future__ import annotations

import os
import time

STARTED: float = time.time()
"""When the first task of this collection was due, in seconds since 1970."""

ID: str = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(STARTED)) + f"-{os.getpid()}"
"""Tells runs apart; sorts by time."""

_TICKS: float = time.monotonic()


def age() -> float:
    """Seconds since then. Where the clock was set or the machine slept meanwhile, rather too many than too few."""
    return max(time.time() - STARTED, time.monotonic() - _TICKS, 0.0)
