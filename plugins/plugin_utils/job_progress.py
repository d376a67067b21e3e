# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What one look at a running job has shown, and how people are told."""

from __future__ import annotations

import json
import math
import typing as t

Facts = t.Dict[str, t.Any]


class JobStatus(t.NamedTuple):
    """A job at one moment."""

    finished: bool
    """There is a result to fetch."""
    alive: bool
    gone: bool
    """Its process, or every trace of it, is not there any more."""
    process: tuple[int, int] | None
    """The module's process: number, and when it was started."""
    calls: list[Facts]
    """Status of each call on the host; more than one where another run is at work."""
    workers: list[Facts]

    @classmethod
    def of(cls, text: str, token: str, process: tuple[int, int] | None) -> JobStatus:
        """Read the answer of the command that looks.

        :param process: of the job, where an earlier look has told.
        """
        known, first = process, False
        size, running, calls, workers, start = None, False, [], [], None
        for line in text.splitlines():
            facts = _facts(line)
            if line.startswith("job "):
                size = int(line.split()[1])
            elif facts is not None and "path" in facts:
                workers.append(facts)
            elif facts is not None and "token" in facts:
                calls.append(facts)
            elif facts is not None and "started" in facts:
                running = True
            elif process is not None and line.startswith(f"{process[0]} ("):
                start = int(line.rsplit(")", 1)[1].split()[19])
        own = next((call for call in calls if call["token"] == token), None)
        if own is not None:
            process = process or (own["pid"], own["start"])
            first = known is None
        alive = first or (known is not None and start == known[1])
        finished = size is not None and size > 0 and not running
        return cls(finished, alive, not alive and (known is not None or size is None), process, calls, workers)


def _facts(line: str) -> Facts | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class ProgressReport:
    """Turns what is seen into lines, and says nothing twice in a row; knows about when the job ends."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._last: list[str] = []
        self._mark: tuple[float, int] | None = None

    def left(self, status: JobStatus, moment: float) -> float:
        """Seconds until the job may end, by how far it has come since work was first seen; infinite where nothing tells.

        Zero where its status is not there: it is about to begin, or has ended.

        :param moment: when ``status`` was seen, in seconds of a clock.
        """
        own = self._own(status)
        if own is None or own["stage"] == "ending":
            return 0.0
        if own["stage"] != "working":
            return math.inf
        done = bytes_done(own, workers_of(own, status))
        self._mark = self._mark or (moment, done)
        since, before = self._mark
        return max(own["total"] - done, 0) * (moment - since) / (done - before) if done > before else math.inf

    def _own(self, status: JobStatus) -> Facts | None:
        return next((call for call in status.calls if call["token"] == self._token), None)

    def lines(self, status: JobStatus) -> list[str]:
        """What to print now."""
        own = self._own(status)
        if own is None:
            return []
        lines = self._of_call(own, status)
        fresh = lines if lines != self._last else []
        self._last = lines
        return fresh

    def _of_call(self, call: Facts, status: JobStatus) -> list[str]:
        stage = call["stage"]
        if stage == "waiting":
            others = [
                line for other in status.calls if other is not call and other["stage"] != "waiting" for line in self._of_call(other, status)
            ]
            return ["waits for another migration on this host" + (":" if others else "")] + others
        if stage == "recovering":
            return ["finishes what an interrupted run left"]
        if stage == "planning":
            return [f"plans {count(call['images'], 'image')}"]
        if stage == "ending":
            return []
        workers = workers_of(call, status)
        lines = [of_worker(worker) for worker in workers]
        if call["images"] > 1:
            overall = of_call(call, workers)
            lines = [f"{lines[0]} | {overall}"] if len(lines) == 1 else lines + [overall]
        return lines


def workers_of(call: Facts, status: JobStatus) -> list[Facts]:
    """Status of a call's workers, in the order of their images."""
    return sorted((worker for worker in status.workers if worker.get("token") == call["token"]), key=lambda worker: worker["path"])


def bytes_done(call: Facts, workers: list[Facts]) -> int:
    """Bytes of a call's total that are dealt with."""
    return call["bytes"] + sum(worker["done"] for worker in workers)


def of_worker(worker: Facts) -> str:
    """One image: name, stage, percent, speed, time left."""
    words = [worker["stage"] if worker["percent"] is None else f"{worker['stage']} {worker['percent']} %"]
    if worker["speed"]:
        words.append(f"{size(worker['speed'])}/s")
    if worker["left"] is not None:
        words.append(f"{duration(worker['left'])} left")
    return f"{worker['path']}: {', '.join(words)}"


def of_call(call: Facts, workers: list[Facts]) -> str:
    """All images of a call."""
    done = bytes_done(call, workers)
    words = [f"{call['done']} of {count(call['images'], 'image')} done"]
    if call["failed"]:
        words.append(f"{call['failed']} failed")
    if call["total"]:
        words.append(f"{min(100, done * 100 // call['total'])} %")
    speed = sum(worker["speed"] or 0 for worker in workers)
    if speed:
        words.append(f"{duration(max(call['total'] - done, 0) // speed)} left")
    return ", ".join(words)


def size(number: float) -> str:
    """Bytes, as people read them: three digits and a binary unit."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds, as people read them."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
