# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several jobs at once, each in a process of its own that cleans up and ends when we do, however we end.

Not ``concurrent.futures``: its pools start threads and need POSIX semaphores (there are hosts without ``/dev/shm``), wait for every job
before they let an exception out, and leave their processes behind when the parent is killed.
"""

import os
import pickle
import select
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from . import linux
from .signals import Interrupted, Interruptible

_PR_SET_PDEATHSIG = 1
_GRACE = 60.0  # seconds a worker has to clean up after SIGTERM
_TICK = 0.2


class Ended(NamedTuple):
    """A job's end: what its function returned, or, where its process ended otherwise, the reason in words."""

    result: Any
    died: Optional[str]


class _Worker:
    def __init__(self, pid: int, number: int) -> None:
        self.pid = pid
        self.number = number
        self.answer = b""


def run_forked(
    function: Callable[[Any], Any], jobs: Sequence[Any], workers: int, go_on: Callable[[], bool] = lambda: True
) -> Iterator[Tuple[int, Ended]]:
    """Call ``function`` with each job, at most ``workers`` at a time; yields (index of the job, how it ended) as they end.

    Whatever ends the iteration early ends the workers: they get SIGTERM, which the function sees as :class:`Interrupted`, and are waited for.

    :param function: raises nothing but :class:`Interrupted`; what it returns can be pickled.
    :param go_on: asked before each job is begun; once it says no, the jobs that are left are not begun, and not yielded.
    """
    waiting: List[int] = list(range(len(jobs)))
    running: Dict[int, _Worker] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(workers, 1):
                if not go_on():
                    waiting.clear()
                    break
                _start(function, jobs, waiting.pop(0), running)
            for worker in _answered(running) if running else []:
                yield worker.number, _reap(worker)
    finally:
        _end(running)


def _start(function: Callable[[Any], Any], jobs: Sequence[Any], number: int, running: Dict[int, _Worker]) -> None:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        running[reading] = _Worker(pid, number)
        return
    code = 1
    try:
        with Interruptible():
            _die_with(parent)
            os.close(reading)
            answer = pickle.dumps(function(jobs[number]), protocol=4)
            while answer:
                answer = answer[os.write(writing, answer) :]
        code = 0
    except Interrupted:
        code = 128 + signal.SIGTERM
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when the parent is gone, also where it was killed."""
    try:
        linux.libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):
        pass
    if os.getppid() != parent:
        raise Interrupted(signal.SIGTERM)


def _answered(running: Dict[int, _Worker]) -> List[_Worker]:
    """The workers that have closed their end; waits for at least one byte or end."""
    ended = []
    for fd in select.select(list(running), [], [])[0]:
        piece = os.read(fd, 1 << 16)
        running[fd].answer += piece
        if not piece:
            ended.append(running.pop(fd))
            os.close(fd)
    return ended


def _reap(worker: _Worker) -> Ended:
    status = os.waitpid(worker.pid, 0)[1]
    if status == 0:
        return Ended(pickle.loads(worker.answer), None)
    if os.WIFSIGNALED(status):
        return Ended(None, "was ended by {0}".format(signal.Signals(os.WTERMSIG(status)).name))
    return Ended(None, "ended with exit code {0}".format(os.WEXITSTATUS(status)))


def _end(running: Dict[int, _Worker]) -> None:
    for worker in running.values():
        os.kill(worker.pid, signal.SIGTERM)  # not reaped yet, so the number is still its own
    deadline = time.monotonic() + _GRACE
    for fd, worker in running.items():
        os.close(fd)
        while os.waitpid(worker.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(_TICK / 10)
    running.clear()
