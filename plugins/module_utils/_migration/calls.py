# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls of modules on this host: which process one is, and when the run of ``ansible-playbook`` that it belongs to began.

Moments are seconds since the host was started: setting the clock does not move them.
"""

import os
import time
from typing import Any, Dict, Mapping, NamedTuple, Optional

WATCHED_AS = "VMIMAGE_QCOW_WATCHED_AS"
"""The environment variable in which the action plugin names the token that it finds the progress of its job by. No option: it means nothing to
anybody else."""

RUN_AGE = "VMIMAGE_QCOW_RUN_AGE"
"""The environment variable in which the action plugin says how old its run of ``ansible-playbook`` is, in seconds. A length of time, not a moment: the
clocks of the controller and the host need not agree."""

SENT = "VMIMAGE_QCOW_SENT"
"""The environment variable in which it says when it has sent the call, in seconds since 1970. Windows and stops take the time on the way into account."""

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", 7)  # Python 3.6 does not name it


class Call(NamedTuple):
    """One call of a module that changes something."""

    token: str  # letters and digits; its progress files are named after it
    pid: int
    start: Optional[int]  # when its process was started, see started()
    boot: str  # of the host, see boot_id()
    began: float  # when its run began; negative: before the host was started

    @property
    def alive(self) -> bool:
        """Whether its process is still there."""
        return self.start is not None and self.boot == boot_id() and started(self.pid) == self.start

    def facts(self) -> Dict[str, Any]:
        """The call as files state it, for :func:`call_of`."""
        return dict(self._asdict())


def call_of(facts: Mapping[str, Any]) -> Optional[Call]:
    """The call that a file speaks of; ``None`` where it speaks of none."""
    try:
        return Call(str(facts["token"]), int(facts["pid"]), int(facts["start"]), str(facts["boot"]), float(facts["began"]))
    except (KeyError, TypeError, ValueError):
        return None


def this_call(token: Optional[str] = None, run_age: Optional[float] = None) -> Call:
    """The call that this process makes.

    :param token: letters and digits, chosen by who watches; anything else is not taken.
    :param run_age: seconds that its run is older than this process. Without it the run began with this process.
    """
    pid = os.getpid()
    start = started(pid)
    begin = boot_seconds() if start is None else start / float(os.sysconf("SC_CLK_TCK"))
    name = token if token and token.isalnum() else "{0}t{1}".format(pid, start)
    return Call(name, pid, start, boot_id(), begin - max(run_age or 0.0, 0.0))


def started(pid: int) -> Optional[int]:
    """When a process was started, in the kernel's ticks: with it, a process's number means this process and no later one.

    ``None`` where there is none, or only its parent has not noticed yet that it has ended.
    """
    try:
        with open("/proc/{0}/stat".format(pid), "rb") as stream:
            fields = stream.read().rsplit(b")", 1)[1].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def boot_id() -> str:
    """What tells this start of the host from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except (OSError, ValueError):
        return ""


def boot_seconds() -> float:
    """This moment."""
    return time.clock_gettime(_BOOTTIME)
