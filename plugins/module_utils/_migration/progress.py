# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a call has come, in small files that can be read with ``cat`` while it works.

``STATE_DIR/progress/TOKEN.json`` tells of the call, ``TOKEN-PID.json`` of what each worker is at: one line of JSON each, replaced as a whole. They are
for whoever watches and never decide anything: one that cannot be written is left out, and one that a killed call has left is removed by the next.
"""

import json
import os
import re
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .._directories import make_directory, require_ours
from .._errors import StateError
from .._paths import encode_exact, show
from .calls import Call, call_of

INTERVAL = 1.0
"""Seconds between two writes of the same file."""

_WINDOW = 10.0  # seconds the speed is taken over

Image = Tuple[bytes, int]
"""An image's path, and the guest bytes that will be copied of it."""


class Progress:
    """The status of one call.

    :param passes: how often the bytes of an image are gone through: copied, and verified.
    """

    def __init__(self, state_dir: bytes, call: Call, passes: int = 2) -> None:
        self._directory = _directory(state_dir)
        self._token = call.token
        self._passes = passes
        self._refused = self._deferred = 0
        self._facts: Dict[str, Any] = {
            **call.facts(),
            "since": None,
            "stage": "waiting",
            "images": 0,
            "done": 0,
            "failed": 0,
            "bytes": 0,
            "total": 0,
        }

    def stage(self, name: str, **facts: Any) -> None:
        """The call has come to ``waiting`` (for another run to end), ``recovering``, ``planning``, ``working`` or ``ending``.

        :param facts: ``since``: when it has begun to work, in UTC; and the numbers that are known with the stage.
        """
        self._facts.update(facts, stage=name)
        self._write(b"", self._facts)

    def sweep(self) -> None:
        """Remove what killed calls have left; only while no other can be at work."""
        kept = {self._token} | {call.token for call in map(call_of, _read(self._directory)) if call is not None and call.alive}
        self._remove_all(lambda token: token not in kept)

    def begin(self, images: Sequence[Image], *, refused: int = 0, deferred: int = 0) -> None:
        """Work begins on these; so many others have been refused, or left to another run, by the plan."""
        self._refused, self._deferred = refused, deferred
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

    def numbers(self) -> Dict[str, Any]:
        """How far the call has come, in images. ``left`` is ``None`` where it is not known yet which there are."""
        facts = self._facts
        left = facts["images"] - facts["done"] + self._deferred if facts["stage"] in ("working", "ending") else None
        numbers = {key: facts[key] for key in ("since", "images", "done")}
        return dict(numbers, left=left, failed=facts["failed"] + self._refused)

    def close(self) -> None:
        """Remove the files of this call."""
        self._remove_all(lambda token: token == self._token)

    def _remove_all(self, unwanted: Callable[[str], bool]) -> None:
        for name in _names(self._directory):
            if unwanted(os.fsdecode(re.split(b"[-.]", name)[0])):
                _remove(os.path.join(self._directory, name))

    def _write(self, suffix: bytes, facts: Optional[Dict[str, Any]]) -> None:
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
            "path_base64": encode_exact(self._path or b""),
            "stage": self._stage,
            "percent": min(100, self._passed * 100 // size) if size else None,
            "speed": speed,
            "left": left // speed if speed else None,
            "bytes": self._passed,
            "done": self._before + min(self._done, size * self._passes),
            "size": size,
        }


class Seen(NamedTuple):
    """What the files of a host say: of calls, and of what their workers are at."""

    calls: List[Dict[str, Any]]
    workers: List[Dict[str, Any]]


def seen(state_dir: bytes) -> Seen:
    """What they say now; what cannot be read is left out.

    :raises StateError: others may have written there.
    """
    require_ours(state_dir, b"progress")
    found = _read(_directory(state_dir))
    return Seen([facts for facts in found if "path" not in facts], [facts for facts in found if "path" in facts])


def _directory(state_dir: bytes) -> bytes:
    return os.path.join(state_dir, b"progress")


def _names(directory: bytes) -> List[bytes]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _read(directory: bytes) -> List[Dict[str, Any]]:
    found = []
    for name in _names(directory):
        try:
            with open(os.path.join(directory, name), encoding="ascii") as stream:
                facts = json.load(stream)
        except (OSError, ValueError):
            continue
        if isinstance(facts, dict) and name.endswith(b".json"):
            found.append(facts)
    return found


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
