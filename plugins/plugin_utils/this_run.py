# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""This run of ``ansible-playbook``: the same for all of its hosts, batches and plays.

Strategies load the class of an action plugin in the main process before they fork a worker for a host. So what is set here once, when the first task
of this collection is due, is what every worker sees. The run has begun before: with its process, ahead of hooks and of other roles.
"""

from __future__ import annotations

import os
import time

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import boot_seconds, started


def _process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell (no /proc)."""
    ticks = started(os.getpid())
    return 0.0 if ticks is None else max(boot_seconds() - ticks / os.sysconf("SC_CLK_TCK"), 0.0)


_AGE: float = _process_age()

STARTED: float = time.time() - _AGE
"""When ansible-playbook was started, in seconds since 1970."""

ID: str = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(STARTED)) + f"-{os.getpid()}"
"""Tells runs apart; sorts by time."""

_TICKS: float = time.monotonic() - _AGE


def age() -> float:
    """Seconds since then. Where the clock was set or the machine slept meanwhile, rather too many than too few."""
    return max(time.time() - STARTED, time.monotonic() - _TICKS, 0.0)
