# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The most memory that this process has held.

Not ``ru_maxrss``: that begins with what the parent held when it started the process, and never falls.
"""


def peak() -> int:
    """Most bytes resident at once, since the process began or since ``forget_peak`` (VmHWM of proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def forget_peak() -> int:
    """Count anew from what is resident now (proc_pid_clear_refs(5)); bytes of it."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")
    return peak()
