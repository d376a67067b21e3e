# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Behind everybody else: processor and disk priority of this process and of those it starts."""

import os
from typing import List

from ansible_collections.vmimage.qcow.plugins.module_utils.host import linux

# <asm/unistd.h>; no C library has a function for it.
_NR_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "i386": 289,
    "i686": 289,
    "armv7l": 314,
    "ppc64le": 273,
    "ppc64": 273,
    "s390x": 282,
}
_LOWEST_NICE = 19
# <linux/ioprio.h>: best effort, lowest of its eight levels. Not idle: an idle process that holds a lock of the filesystem can stop everybody.
_PROCESS, _BEST_EFFORT, _SHIFT, _LOWEST_LEVEL = 1, 2, 13, 7


def lower() -> List[str]:
    """Give this process the lowest ordinary priority for processor and disk. Returns what could not be done, in words."""
    problems = []
    try:
        os.nice(_LOWEST_NICE)
    except OSError as error:
        problems.append("the processor priority could not be lowered: {0}".format(error.strerror))
    number = _NR_IOPRIO_SET.get(os.uname().machine)
    try:
        if number is None or linux.libc().syscall(number, _PROCESS, 0, _BEST_EFFORT << _SHIFT | _LOWEST_LEVEL) != 0:
            problems.append("the disk priority could not be lowered")
    except OSError as error:
        problems.append("the disk priority could not be lowered: {0}".format(error.strerror))
    return problems
