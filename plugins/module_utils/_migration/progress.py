# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a call has come, in small files that can be read with ``cat`` while it works.

``STATE_DIR/progress/TOKEN.json`` tells of the call, ``TOKEN-PID.json`` of what each worker is at: one line of JSON each, replaced as a whole at most
once a second. They are for whoever watches and never decide anything: one that cannot be written is left out, and one that a killed call has left
is removed by the next.
"""

import json
import os
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .._directories import make_directory, require_ours
from .._errors import StateError
from .._paths import show

INTERVAL = 1.0
"""Seconds between two writes of the same file."""

_WINDOW = 10.0  # seconds the speed is taken over

Image = Tuple[bytes, int]
"""An image's path, and the guest bytes that will be copied of it."""


class Progress:
    """The status of one call; writes nothing where nobody has given a token to watch it by.

    :param token: letters and digits, chosen by who watches.
    :param passes: how often the bytes of an image are gone through: copied, and verified.
    """

    def __init__(self, state_dir: bytes, token: Optional[str], passes: int = 2) -> None:
        self._directory = os.path.join(state_dir, b"progress")
        self._token = token if token and token.isalnum() else None
        self._passes = passes
        self._facts: Dict[str, Any] = {
            "token": token,
            "pid": os.getpid(),
            "start": started(os.getpid()) if self._token else None,
            "stage": "waiting",
            "images": 0,
            "done": 0,
            "failed": 0,
            "bytes": 0,
            "total": 0,
        }

    def stage(self, name: str, **facts: Any) -> None:
        """The call has come to ``waiting`` (for another run to end), ``recovering``, ``planning``, ``working`` or ``ending``."""
        self._facts.update(facts, stage=name)
        self._write(b"", self._facts)

    def sweep(self) -> None:
        """Remove what killed calls have left; only while no other can be at work."""
        try:
            for name in os.listdir(self._directory):
                if not name.startswith((self._token or " ").encode("ascii")):
                    _remove(os.path.join(self._directory, name))
        except OSError:
            pass

    def begin(self, images: Sequence[Image]) -> None:
        """Work begins on these."""
        self.stage("working", images=len(images), total=sum(size for _path, size in images) * self._passes)

    def ended(self, size: int, *, failed: bool) -> None:
        """An image of which ``size`` guest bytes were to be copied has been dealt with."""
        facts = self._facts
        facts.update(done=facts["done"] + 1, failed=facts["failed"] + failed, bytes=facts["bytes"] + size * self._passes)
        self._write(b"", facts)

    def meter(self, images: List[Image]) -> "Meter":
        """The meter of one job, in the process that does it."""
        suffix = "-{0}".format(os.getpid()).encode("ascii")
        return Meter(images, self._passes, lambda facts: self._write(suffix, facts and dict(facts, token=self._token)))

    def close(self) -> None:
        """Remove the files of this call."""
        if self._token is None:
            return
        try:
            for name in os.listdir(self._directory):
                if name.startswith(self._token.encode("ascii")):
                    _remove(os.path.join(self._directory, name))
        except OSError:
            pass

    def _write(self, suffix: bytes, facts: Optional[Dict[str, Any]]) -> None:
        if self._token is None:
            return
        path = os.path.join(self._directory, self._token.encode("ascii") + suffix + b".json")
        if facts is None:
            _remove(path)
            return
        try:
            require_ours(os.path.dirname(self._directory), os.path.basename(self._directory))
            make_directory(self._directory)
            fd = os.open(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, (json.dumps(facts, sort_keys=True) + "\n").encode("ascii"))
            finally:
                os.close(fd)
            os.rename(path + b".new", path)
        except (OSError, StateError):
            pass  # a full disk must not end a conversion for the sake of its status


class Meter:
    """Told of every step of one job's images; passes on where they stand (call it as :data:`convert.OnProgress`)."""

    def __init__(self, images: List[Image], passes: int, write: Any) -> None:
        self._sizes = dict(images)
        self._passes = passes
        self._write = write
        self._path: Optional[bytes] = None
        self._stage = ""
        self._before = 0  # bytes of the job's images that are dealt with
        self._done = 0  # of this image, in all stages
        self._passed = 0  # of this image, in this stage
        self._next = 0.0
        self._marks: List[Tuple[float, int]] = []

    def __call__(self, path: bytes, stage: str, count: int) -> None:
        """``count`` more guest bytes of the image at ``path`` have passed ``stage``."""
        if path != self._path:
            self._before += 0 if self._path is None else self._sizes.get(self._path, 0) * self._passes
            self._path, self._stage, self._done = path, "", 0
        if stage != self._stage:
            self._stage, self._passed, self._marks, self._next = stage, 0, [], 0.0
        self._passed += count
        self._done += count
        moment = time.monotonic()
        if moment >= self._next:
            self._next = moment + INTERVAL
            self._write(self._facts(moment))

    def close(self) -> None:
        """The job is done; its call counts it from here on."""
        self._write(None)

    def _facts(self, moment: float) -> Dict[str, Any]:
        self._marks = [mark for mark in self._marks if mark[0] >= moment - _WINDOW] + [(moment, self._passed)]
        seconds = moment - self._marks[0][0]
        speed = int((self._passed - self._marks[0][1]) / seconds) if seconds > 0 else None
        size = self._sizes.get(self._path or b"", 0)
        left = max(size - self._passed, 0)
        return {
            "pid": os.getpid(),
            "path": show(self._path or b""),
            "stage": self._stage,
            "percent": min(100, self._passed * 100 // size) if size else None,
            "speed": speed,
            "left": left // speed if speed else None,
            "done": self._before + min(self._done, size * self._passes),
            "size": size,
        }


def started(pid: int) -> Optional[int]:
    """When a process was started, in the kernel's ticks: with it, a process's number means this process and no later one."""
    try:
        with open("/proc/{0}/stat".format(pid), "rb") as stream:
            return int(stream.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


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
