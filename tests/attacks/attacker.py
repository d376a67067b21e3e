# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An unprivileged user who works against runs of root's, in a process of their own."""

import contextlib
import ctypes
import mmap
import os
import pathlib
import random
import signal
import subprocess
import time
from typing import Any, Callable, Iterator

from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool

TENANT = 54321
"""A user whom the host does not know, so that no group is theirs but the one they have."""

_AT_FDCWD, _EXCHANGE = -100, 2
# Seconds between two acts: in a row, and so seldom that a run gets past each of its steps.
_PAUSES = (0, 0, 0, 0.001, 0.01, 0.05)


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Two names change places in one step; False where one of them is not there."""
    library = ctypes.CDLL(None)
    return not library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)


class Attacker:
    """Does one thing again and again, as :data:`TENANT`, until it is left (context manager). It must have succeeded at least once by then.

    :param act: returns whether it did.
    """

    def __init__(self, act: Callable[[], bool]) -> None:
        require_root()
        self._act = act
        self._pid = 0
        self._succeeded = mmap.mmap(-1, 8)

    def __enter__(self) -> "Attacker":
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setgroups([])
                os.setresgid(TENANT, TENANT, TENANT)
                os.setresuid(TENANT, TENANT, TENANT)
                while True:
                    time.sleep(random.choice(_PAUSES))
                    if self._act():
                        self._succeeded[:8] = (self.successes + 1).to_bytes(8, "little")
            finally:
                os._exit(1)
        return self

    def __exit__(self, *dummy: Any) -> None:
        os.kill(self._pid, signal.SIGKILL)
        _pid, status = os.waitpid(self._pid, 0)
        assert os.WIFSIGNALED(status), "the attacker gave up: what was tried here?"
        assert self.successes, "the attacker never did it: what was tried here?"

    def tries(self, least: int) -> Iterator[int]:
        """Numbers of tries: at least so many, and on until the attacker has done it at least once, for a minute at most."""
        number, deadline = 0, time.monotonic() + 60
        while number < least or (not self.successes and time.monotonic() < deadline):
            yield number
            number += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The attacker does nothing meanwhile."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitpid(self._pid, os.WUNTRACED)
        yield
        os.kill(self._pid, signal.SIGCONT)

    @property
    def successes(self) -> int:
        """How often it was done so far."""
        return int.from_bytes(self._succeeded[:8], "little")


def allow(path: pathlib.Path, entry: str) -> None:
    """Add an entry to the access list of a file or directory."""
    subprocess.run([require_tool("setfacl"), "-m", entry, path], check=True)


def give(*paths: pathlib.Path) -> None:
    """Make the attacker the owner of files and directories."""
    for path in paths:
        os.chown(path, TENANT, TENANT, follow_symlinks=False)
