# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""How a running job is looked at, what a look has shown, and how people are told."""

from __future__ import annotations

import json
import math
import shlex
import typing as t

Facts = t.Dict[str, t.Any]

_SHORT = 400
"""Bytes that the results file of a job that has not ended is shorter than: one line. That of one that has ended may be huge."""


def started_job(text: str) -> str | None:
    """The results file of the job that a command has started; ``None`` where it has started none.

    :param text: what the command has printed.
    """
    started = (facts for facts in map(_facts, text.splitlines()) if facts is not None and "ansible_job_id" in facts)
    return next((str(facts["results_file"]) for facts in started if "results_file" in facts), None)


def look(results_file: str, directory: str, token: str, process: tuple[int, int] | None, *, seconds: float, age: float) -> str:
    """The shell command of one look: it waits for the job's end, and prints what :meth:`JobStatus.of` reads.

    :param directory: of the progress files. :param process: of the job, where an earlier look has told.
    :param seconds: how long to wait at most. :param age: seconds that the job has been watched for; its end is looked for as often as suits that.
    """
    nap = min(max(age / 20, 0.1), 1.0)
    # Of other programs, only cat, sleep and wc are taken. While nothing is known of its process, what it says of itself is kept: it may
    # have gone again at the end of the wait.
    return (
        f"f={shlex.quote(results_file)}; d={shlex.quote(directory)}; n={math.ceil(seconds / nap)}; call=; "
        f"""ended() {{ s=$(wc -c <"$f") && {{ [ "$s" -ge {_SHORT} ] || {{ read -r l <"$f"; case $l in '' | '{{"started"'*) false ;; esac; }}; }}; }}; """
        f'until ended || [ $((n -= 1)) -lt 0 ]; do read -r call <"$d/{token}.json"; sleep {nap:.2f} || sleep 1; done; '
        'if ended; then echo result; cat "$f"; else [ -e "$f" ] && echo job; cat "$d"/*.json; '
        + (f"cat /proc/{process[0]}/stat; fi" if process else """printf '%s\n' "$call"; fi""")
    )


def removal(results_file: str, directory: str, token: str) -> str:
    """The shell command that removes what a job that has ended has left."""
    return f"rm -f {shlex.quote(results_file)} {shlex.quote(directory)}/{token}*.json"


class JobStatus(t.NamedTuple):
    """A job at one moment."""

    result: str | None
    """What the job has ended with, a line of JSON; ``None`` while there is none."""
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
        known, there = process, False
        calls, workers, start = [], [], None
        lines = text.splitlines()
        for number, line in enumerate(lines):
            facts = _facts(line)
            if line == "result":
                return cls("".join(lines[number + 1 :]), False, True, known, [], [])
            if line == "job":
                there = True
            elif facts is not None and "path" in facts:
                workers.append(facts)
            elif facts is not None and "token" in facts:
                calls.append(facts)
            elif process is not None and line.startswith(f"{process[0]} ("):
                start = int(line.rsplit(")", 1)[1].split()[19])
        own = next((call for call in calls if call["token"] == token), None)
        if own is not None:
            process = process or (own["pid"], own["start"])
        alive = process is not None if known is None else start == known[1]
        return cls(None, alive, not alive and (known is not None or not there), process, calls, workers)


def _facts(line: str) -> Facts | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class ProgressReport:
    """Turns what is seen into lines, and says nothing twice in a row."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._last: list[str] = []

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
