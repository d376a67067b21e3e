# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Where a fleet stands, in one sentence, and the command to run next."""

from __future__ import annotations

import shlex
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_rows import Tally
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_words import (
    HOSTS,
    IMAGES,
    PENDING,
    count,
    duration_text,
    number,
    size_text,
    time_text,
)

Facts = t.Dict[str, t.Any]

LIMIT = 10
"""Hosts that a command names; where it is about more, it runs for all: what is done costs a look."""


_CHANGING = ("migrate", "rollback", "cleanup")


class Step(t.NamedTuple):
    """What to do next."""

    why: str
    command: str


class Standing:
    """Before a migration, while it runs, or after."""

    def __init__(self, summary: Facts, tally: Tally, inventories: t.Sequence[str] = ()) -> None:
        """:param inventories: of the controller, for the commands."""
        self._totals = summary["totals"]
        self._hosts = summary["hosts"]
        self._retry = summary["retry"]
        self._tally = tally
        self._inventories = inventories
        self.hosts = {state: sum(host["state"] == state for host in self._hosts) for state in HOSTS}
        self.pending = self._totals["left"]
        """Images still to migrate, in any state."""
        self.images = {state: self._totals[state] for state in IMAGES}
        """Images in each state; those that only wait are what the others leave of those still to migrate."""
        self.images["left"] = self.pending - sum(self._totals[state] for state in PENDING if state != "left")
        runs = sorted(summary["runs"], key=lambda run: str(run["started"]))
        changing = [run for run in runs if run["play"] in _CHANGING]
        running = bool(self._totals["running"])
        self.phase = "during" if running else "after" if changing or self._totals["migrated"] else "before"
        self._refused = tally.refused + self._totals["failed"]
        """Before a migration: images that it would refuse, damaged ones among them."""
        self._away = self.hosts["unreached"] + self.hosts["missing"]

    @property
    def slowest(self) -> float:
        """Seconds that the host with most to do will need, as estimated."""
        return max((host["planned_seconds"] or 0 for host in self._hosts), default=0)

    @property
    def sentence(self) -> str:
        """Where things stand."""
        away = self._away
        since = min((host["unreached_since"] for host in self._hosts if host["unreached_since"]), default=None)
        gone = f"{number(away)} not reached{f' since {time_text(since)}' if since else ''}" if away else ""
        if self.phase == "before":
            looked = f"{count(len(self._hosts) - away, 'host')} looked at"
            words = [looked, *([gone] if gone else [])]
            if not self.pending:
                return f"{', '.join(words)}: there is no QCOW version 1 image to migrate."
            refused = f"; {number(self._refused)} of them would be refused" if self._refused else ""
            return f"{', '.join(words)}: {count(self.pending, 'image')} to migrate{refused}."
        still = sum(self.hosts[state] for state in ("running", "left", "deferred"))
        words = [f"{number(self.hosts['done'])} of {count(len(self._hosts), 'host')} done"]
        words += [f"{number(self.hosts['failed'])} failed"] if self.hosts["failed"] else []
        words += [f"{number(still)} still to do"] if still else []
        return ", ".join([*words, *([gone] if gone else [])]) + "."

    @property
    def verdict(self) -> str:
        """More of it: what it means for what comes next."""
        left = f"{count(self.pending, 'image')} ({size_text(self._totals['left_bytes'])}) still to migrate"
        takes = f"about {duration_text(self.slowest)} on the host with most to do" if self.slowest else ""
        if self.phase == "before":
            if not self.pending:
                return f"There is nothing to do{self._unknown}."
            space = f"{size_text(self._totals['planned_bytes'])} of space" if self._totals["planned_bytes"] else ""
            needs = " and ".join(words for words in (takes, space) if words)
            against = [f"{count(self._refused, 'image')} would be refused"] if self._refused else []
            against += [f"{count(self._away, 'host')} could not be looked at"] if self._away else []
            go = f"Not all can go: {' and '.join(against)}. The others can." if against else "Go: nothing stands against it."
            return f"{go}{f' It needs {needs}.' if needs else ''}"
        if not self.pending:
            return f"Nothing is left to migrate{self._unknown}."
        return f"{left[0].upper()}{left[1:]}{f', {takes}' if takes else ''}."

    @property
    def _unknown(self) -> str:
        return f" on the other hosts; of {count(self._away, 'host')} that is not known" if self._away else ""

    @property
    def steps(self) -> list[Step]:
        """Commands that come next, the first one first."""
        away = {host["host"] for host in self._hosts if host["state"] in ("unreached", "missing")}
        if self.phase == "during":
            return [
                Step("See how far every host is, without disturbing it:", self._command("status")),
                Step("Stop in good order, after the current images:", self._command("stop")),
            ]
        again = self._together({host["host"] for host in self._hosts if host["left"]} - away)
        why = "Migrate what is left, when the reasons below are dealt with:"
        if self.phase == "before":
            why = "Migrate what can go:" if self._refused else "Migrate:"
        steps = [Step(why, command) for command in again]
        which = "the host that was" if len(away) == 1 else f"the {len(away)} hosts that were"
        steps += [Step(f"Try again {which} not reached:", command) for command in self._together(away, limit=True)]
        if self._tally.reversible and self.hosts["done"] == len(self._hosts):
            steps.append(Step("When the guests have run well, delete the originals (this ends every way back):", self._command("cleanup")))
        return steps

    def _command(self, play: str) -> str:
        return shlex.join(
            ["ansible-playbook", *(word for inventory in self._inventories for word in ("-i", inventory)), f"vmimage.qcow.{play}"]
        )

    def _together(self, hosts: set[str], *, limit: bool = False) -> list[str]:
        """The commands to retry some hosts, those that differ in nothing but the host as one.

        :param limit: name the hosts however many they are.
        """
        alike: dict[tuple[str, str], list[str]] = {}
        for entry in self._retry:
            if entry["host"] in hosts:
                before, _host, after = entry["command"].partition(f" -l {shlex.quote(entry['host'])}")
                alike.setdefault((before, after), []).append(entry["host"])
        every = len(alike) == 1 and not limit and (len(hosts) > LIMIT or len(hosts) == len(self._hosts))
        return [before + ("" if every else f" -l {shlex.quote(','.join(named))}") + after for (before, after), named in alike.items()]
