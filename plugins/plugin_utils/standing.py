# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Where a fleet stands, in one sentence, and the command to run next."""

from __future__ import annotations

import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts, play_of
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

_CHANGING = ("migrate", "rollback", "cleanup")


class Step(t.NamedTuple):
    """What to do next."""

    why: str
    command: str


class Standing:
    """Before a migration, while it runs, or after."""

    def __init__(self, summary: Facts, tally: Tally, commands: Hosts) -> None:
        """:param commands: for the hosts."""
        self._totals = summary["totals"]
        self._hosts = summary["hosts"]
        self._tally = tally
        self._commands = commands
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
        away = {host["host"]: play_of(host) for host in self._hosts if host["state"] in ("unreached", "missing")}
        every = [host["host"] for host in self._hosts]
        if self.phase == "during":
            status = self._steps("See how far every host is, without disturbing it:", "status", every)
            return status + self._steps("Stop in good order, after the current images:", "stop", every)
        why = "Migrate what is left, when the reasons below are dealt with:"
        if self.phase == "before":
            why = "Migrate what can go:" if self._refused else "Migrate:"
        steps = self._steps(why, "migrate", [host["host"] for host in self._hosts if host["left"] and host["host"] not in away])
        which = "the host that was" if len(away) == 1 else f"the {len(away)} hosts that were"
        for play in sorted({*away.values()}):
            steps += self._steps(f"Try again {which} not reached:", play, [host for host, one in away.items() if one == play])
        if self._tally.reversible and self.hosts["done"] == len(self._hosts):
            migrated = [host["host"] for host in self._hosts if host["migrated"]]
            steps += self._steps(
                "When the guests have run well, delete the originals (this ends every way back):", "cleanup", migrated, again=False
            )
        return steps

    def _steps(self, why: str, play: str, hosts: t.Iterable[str], *, again: bool = True) -> list[Step]:
        """Commands for some hosts, all of them named: nobody has looked at the others of the inventory."""
        found = self._commands.together(play, list(hosts), again=again)
        return [Step(f"{why[:-1]} {told.note}:" if told.note else why, told.command) for told in found]
