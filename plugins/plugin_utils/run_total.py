# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What a run amounts to over all of its hosts, and what to do next."""

from __future__ import annotations

import functools
import os
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import DEFERRED
from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import count, size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Next, after_this_run

Facts = t.Dict[str, t.Any]

STATES = {"done": "done", "left": "with images left", "failed": "failed", "ended": "ended early", "unreached": "not reached"}
"""States of a host at the end of a run, in words."""

_FORESEEN = {**STATES, "done": "without problems", "failed": "with problems"}
_SCANNED = {**_FORESEEN, "done": "with nothing to migrate", "left": "with images to migrate"}


class Run(t.NamedTuple):
    """A run of a playbook. ``hosts`` are all that it was to work on; ``counts`` are of those that have come to their end."""

    play: str
    hosts: list[str]
    counts: list[Facts]
    check_mode: bool
    directory: str | None  # of the reports
    planned: bool = False  # whether it has written plans

    def by_state(self) -> dict[str, list[str]]:
        """The hosts in each state; a host that told nothing has ended early, by a failure that Ansible has shown."""
        known = {entry["host"]: entry["state"] for entry in self.counts}
        found: dict[str, list[str]] = {state: [] for state in STATES}
        for host in self.hosts:
            found[known.get(host, "ended")].append(host)
        return found

    def total(self, name: str) -> int:
        """One count over all hosts."""
        return sum(entry[name] for entry in self.counts)

    def deferred(self) -> dict[str, int]:
        """Numbers of images that are left to another run, by reason."""
        found: dict[str, int] = {}
        for entry in self.counts:
            for reason, number in entry["deferred"].items():
                found[reason] = found.get(reason, 0) + number
        return found

    def page(self) -> str | None:
        """Path of the page, where there is one."""
        path = os.path.join(self.directory, "index.html") if self.directory is not None else None
        return path if path is not None and os.path.exists(path) else None

    def lines(self) -> list[str]:
        """What people are told."""
        words = _SCANNED if self.play == "scan" else _FORESEEN if self.check_mode else STATES
        states = [f"{len(hosts)} {words[state]}" for state, hosts in self.by_state().items() if hosts]
        told = [f"{count(len(self.hosts), 'host')}: {', '.join(states)}", _IMAGES[self.play](self)]
        page, following = self.page(), self.following()
        told += [f"report: {page}"] if page else []
        if following is not None:
            told += [f"next: {following.command}", *([f"      {following.note}"] if following.note else [])]
        elif self._checked():
            told.append("next: look into what your own tasks found, listed above, before you go on")
        return told

    def command(self) -> str | None:
        """What to run next; ``None`` where there is nothing to do."""
        following = self.following()
        return following.command if following is not None else None

    def _checked(self) -> set[str]:
        """Hosts where nothing but checks after the migration failed: to migrate again would pass over that."""
        return {one["host"] for one in self.counts if one["checks_failed"] and one["checks_failed"] == one["problems"]}

    def following(self) -> Next | None:
        """What to run next, with what is to be known of it; ``None`` where there is nothing to do."""
        again = functools.partial(after_this_run, self.play, self.play, directory=None if self.check_mode else self.directory)
        states, checked = self.by_state(), self._checked()
        troubled = [host for state in ("failed", "ended", "unreached") for host in states[state] if host not in checked]
        if self.play == "scan":
            some = any(entry["to_migrate"] for entry in self.counts)
            if some and self.planned and not troubled:
                plan: Facts = {"migrate_plan": self.directory, "migrate_paths": []}
                return after_this_run("migrate", "scan", variables=plan, check=True)
            return again(hosts=troubled) if troubled else None
        if troubled:
            return again(hosts=troubled, check=self.check_mode)
        if checked:
            return None
        if self.play in ("status", "stop"):
            return again() if self.play == "status" and self.total("running") else None
        if states["left"] or (self.check_mode and self.total("changed")):
            return again()
        if self.play == "migrate" and self.total("changed"):
            return after_this_run("cleanup", "migrate", check=True)
        return None


def _scanned(run: Run) -> str:
    text = f"{count(run.total('to_migrate'), 'image')} to migrate, {size(run.total('to_migrate_bytes'))}"
    return text + (f"; {run.total('to_refuse')} would be refused" if run.total("to_refuse") else "")


def _migrated(run: Run) -> str:
    done = count(run.total("changed"), "image")
    if run.check_mode:
        words = [f"{done} would be migrated, {size(run.total('bytes_before'))}"]
    else:
        sizes = f", {size(run.total('bytes_before'))} -> {size(run.total('bytes_after'))}" if run.total("changed") else ""
        words = [f"{done} migrated{sizes}"]
    words += [f"{run.total('failed')} {'would be refused' if run.check_mode else 'failed'}"] if run.total("failed") else []
    return "; ".join(words + [f"{number} deferred: {DEFERRED.get(reason, reason)}" for reason, number in run.deferred().items()])


def _rolled_back(run: Run) -> str:
    would = "would be " if run.check_mode else ""
    text = f"{count(run.total('changed'), 'migration')} {would}rolled back"
    return text + (f"; {run.total('failed')} {would}refused" if run.total("failed") else "")


def _cleaned(run: Run) -> str:
    would, came = ("would be ", "would come") if run.check_mode else ("", "came")
    text = f"{count(run.total('changed'), 'original')} {would}deleted, {size(run.total('bytes_returned'))} {came} back"
    return text + (f"; {run.total('failed')} {would}kept" if run.total("failed") else "")


def _status(run: Run) -> str:
    words = [f"{count(run.total('running'), 'host')} at work", f"{count(run.total('migrated'), 'image')} migrated"]
    return "; ".join(words + ([f"{run.total('interrupted')} interrupted"] if run.total("interrupted") else []))


def _stopped(run: Run) -> str:
    return (
        f"{count(run.total('stopped'), 'run')} {'would be ' if run.check_mode else ''}stopped, {count(run.total('not_done'), 'image')} left"
    )


_IMAGES = {"scan": _scanned, "migrate": _migrated, "rollback": _rolled_back, "cleanup": _cleaned, "status": _status, "stop": _stopped}
