# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs two commands in turn and tells what they took."""

import ast
import os
import shutil
import statistics
import subprocess
import sys
from typing import Callable, List, NamedTuple, Optional, Sequence


class Run(NamedTuple):
    """What one process and its children took, as ``wait4`` (and so ``/usr/bin/time``) tells it."""

    seconds: float
    cpu: float  # seconds, user and system
    memory: int  # bytes at the peak, of the largest process


class Contest(NamedTuple):
    """Runs of ours and of a peer, taken in turn."""

    ours: List[Run]
    theirs: List[Run]
    written: int  # bytes our result occupies

    def ratios(self) -> List[float]:
        """The peer's time over ours, of each pair."""
        return [their.seconds / our.seconds for our, their in zip(self.ours, self.theirs)]

    def cpu_ratio(self) -> float:
        """The peer's processor time over ours."""
        return sum(run.cpu for run in self.theirs) / len(self.theirs) / (sum(run.cpu for run in self.ours) / len(self.ours))


# A process of its own, small: the peak that the kernel tells of a process is never less than what its parent had in memory when it began.
_LAUNCHER = """
import os, sys, time
tell = int(sys.argv[1])
os.set_inheritable(tell, False)
started = time.monotonic()
pid = os.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
_pid, status, usage = os.wait4(pid, 0)
figures = time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
os.write(tell, repr(figures).encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(command: Sequence[str], cwd: Optional[str] = None) -> Run:
    """Run a command to its end; its output is thrown away. Exits where it fails."""
    # Byte code is kept, as for any installed program.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")}
    told, tell = os.pipe()
    launch = [sys.executable, "-S", "-c", _LAUNCHER, str(tell), *command]
    done = subprocess.run(launch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd, env=environment, pass_fds=[tell], check=False)
    os.close(tell)
    with os.fdopen(told, encoding="ascii") as stream:
        figures = stream.read()
    if done.returncode:
        sys.exit("%s\nended with %d: %s" % (" ".join(command)[:400], done.returncode, done.stderr.decode(errors="replace")[-2000:]))
    return Run(*ast.literal_eval(figures))


def contest(
    ours: Sequence[str], theirs: Sequence[str], pairs: int, results: Sequence[str], room: int, check: Optional[Callable[[], None]] = None
) -> Contest:
    """Ours and the peer's in turn, ``pairs`` times. What they write (``results``) is removed before each, and nothing waits to be written.

    :param room: bytes of memory that are touched before each, more than they write.
    :param check: called once, when ours has run.
    """
    mine, peers = [], []
    written = 0
    for number in range(pairs):
        _clear(results, room)
        mine.append(run(ours))
        written = max(written, sum(os.stat(path).st_blocks * 512 for path in results if os.path.isfile(path)))
        if check is not None and not number:
            check()
        _clear(results, room)
        peers.append(run(theirs))
    _clear(results, 0)
    return Contest(mine, peers, written)


# Touches memory once and gives it back: a virtual machine's host hands out what was not touched lately a page at a time, which takes
# longer than what is measured here, and would be taken for the program that happens to touch it first.
_TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
for page in range(0, len(memory), 4096):
    memory[page] = 1
"""


def _clear(paths: Sequence[str], room: int) -> None:
    """Remove files and directories, let the disk come to rest, and see that ``room`` bytes of the free memory, at most half, are really there."""
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    os.sync()
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    subprocess.run([sys.executable, "-S", "-c", _TOUCH, str(max(1, min(free // 2, room)))], check=True)


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
