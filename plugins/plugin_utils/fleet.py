# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What is kept of single hosts, added up. One image is in memory at a time, but for those that a page lists."""

from __future__ import annotations

import heapq
import json
import sys
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.chain_forest import ChainForest
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, HostFile
from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_row import COLUMNS, checked, row_of
from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_state import STATES, TO_MIGRATE
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts, play_of
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_rows import Tally

__all__ = ["COLUMNS", "HOST_COLUMNS", "HOST_STATES", "ROWS", "SCHEMA", "STATES", "Fleet"]

SCHEMA = 1

ROWS = 20000
"""Images that a page may list; the files beside it list all."""

PROBLEMS = 2000
"""Problems and retries that are listed; all are counted."""

CHAINS = 200
"""Backing chains that are drawn."""

HOST_STATES = ("unreached", "missing", "failed", "running", "left", "deferred", "done")

HOST_COLUMNS = (
    "host",
    "state",
    "known_at",
    "unreached_since",
    "last_play",
    "last_run_at",
    "files",
    "images",
    "left",
    "left_bytes",
    "failed",
    "interrupted",
    "running",
    "deferred",
    "migrated",
    "bytes_before",
    "bytes_after",
    "seconds",
    "planned_seconds",
    "planned_bytes",
    "problems",
    "domains",
)
"""What is told of each host, in the order of the CSV file."""

_SUMS = ("images", "bytes", "left", "left_bytes", "bytes_before", "bytes_after", "seconds", "planned_seconds", "planned_bytes", "verified")


def _zeros() -> dict[str, float]:
    return dict.fromkeys((*(state for state in STATES if state != "left"), *_SUMS), 0)


class Fleet:
    """All hosts, as far as they have been added.

    :param commands: that are told.
    :param runs: the history, see :mod:`.run_history`.
    """

    def __init__(self, commands: Hosts | None = None, runs: t.Sequence[Facts] = ()) -> None:
        self.hosts: list[Facts] = []
        self._commands = commands or Hosts()
        self._runs = list(runs)
        self._totals: dict[str, float] = {"hosts": 0, "missing": 0, "unreached": 0, "files": 0, **_zeros()}
        self._formats: dict[str, list[int]] = {}
        self._producers: dict[str, list[int]] = {}
        self._reasons: dict[str, int] = {}
        self._problems: list[Facts] = []
        self._problems_of_hosts: list[Facts] = []
        self.tally = Tally()
        """What all images amount to by reason, for the page."""
        self._chains: list[Facts] = []
        self._retry: list[Facts] = []
        self._rows: list[tuple[int, int, int, str]] = []
        self._number = 0

    def add(self, host: str, kept: HostFile) -> t.Iterator[Facts]:
        """Take in one host: exhaust what is returned.

        :return: the rows of its images.
        """
        counts, domains, forest = _zeros(), set(), ChainForest()
        self._commands.keep(host, kept.facts)
        wrong = 0
        for name, entry in kept.images():
            try:
                row = row_of(host, entry, self._commands.undo)
                if row is None:
                    continue
                checked(row)
                forest.add(name, row, (entry.get("seen") or {}).get("below") or ())
                # To put off a rollback or a cleanup is no failure of the host.
                wrong += row["state"] == "migrated" and bool(row["reason"]) and not (entry.get("tried") or {}).get("deferred")
            except Exception as error:  # one host must not keep all the others from being told
                kept.unreadable = f"What is kept of an image of this host cannot be used ({type(error).__name__}: {error})."
                continue
            self._count(row, counts)
            domains.update(row["domains"])
            if row["message"] and (row["state"] != "deferred"):
                self._problem(host, row["path"], row["reason"] or "error", row["message"])
            self._rank(row)
            self.tally.add(row)
            yield row
        for key, value in counts.items():
            self._totals[key] += value
        self._chains.extend({"host": host, **tree} for tree in forest.trees(CHAINS - len(self._chains)))
        try:
            self._host(host, kept.facts, kept.unreadable, counts, len(domains), wrong)
        except Exception as error:
            unusable = f"What is kept of this host cannot be used ({type(error).__name__}: {error}). Run vmimage.qcow.scan for this host."
            self._host(host, {}, unusable, counts, len(domains), wrong)

    def _count(self, row: Facts, counts: dict[str, float]) -> None:
        """The one place where images are counted: still to migrate is whatever has one of these states."""
        state, size = row["state"], row["bytes"] or 0
        counts["images"] += 1
        counts["bytes"] += size
        if state != "left":
            counts[state] += 1
        if state in TO_MIGRATE:
            counts["left"] += 1
            counts["left_bytes"] += size
            counts["planned_seconds"] += row["planned_seconds"] or 0
            counts["planned_bytes"] += row["planned_bytes"] or 0
        elif state == "migrated":
            counts["bytes_before"] += size
            counts["bytes_after"] += row["bytes_after"] or 0
            counts["seconds"] += row["seconds"] or 0
            counts["verified"] += bool(row["verified"])
        for table, key in ((self._formats, row["format"]), (self._producers, row["producer"] if row["format"] == "qcow" else None)):
            if key:
                counted = table.setdefault(key, [0, 0])
                counted[0] += 1
                counted[1] += size

    def _host(self, host: str, facts: Facts, unreadable: str | None, counts: dict[str, float], domains: int, wrong: int) -> None:
        """:param wrong: images that are migrated, and something is the matter with them."""
        problems = list(facts.get("problems") or ())
        if unreadable is not None:
            problems.append({"path": None, "reason": "report", "message": unreadable})
        state = _state(facts, counts, bool(problems or wrong))
        of_host = [(one["path"], one["reason"], str(one["message"])) for one in problems]
        if state == "missing":
            of_host.append((None, "missing", "Nothing is known of this host: it was not reached, or its run ended early."))
        if state == "unreached":
            away = f"Not reached since {facts['unreached_since']}: {facts.get('unreached') or 'no answer'}"
            of_host.append((None, "unreached", away))
        scans = facts.get("scans")
        files = sum(scan["files"] for scan in scans) if scans else None
        kinds = ("known_at", "unreached_since", "last_play", "last_run_at")
        told = {
            "host": host,
            "state": state,
            **{key: facts.get(key) for key in kinds},
            "files": files,
            **{key: round(value, 3) for key, value in counts.items()},
            "problems": [str(one["message"]) for one in problems],
            "domains": domains,
        }
        retry = None if state == "done" else {"host": host, "command": self._commands.one(play_of(told), host).command}
        for path, reason, message in of_host:
            self._problem(host, path, reason, message, self._problems_of_hosts)
        self.hosts.append({key: told[key] for key in HOST_COLUMNS})
        self._totals["hosts"] += 1
        self._totals["missing"] += state == "missing"
        self._totals["unreached"] += state == "unreached"
        self._totals["files"] += files or 0
        if retry is not None and len(self._retry) < PROBLEMS:
            self._retry.append(retry)

    def _rank(self, row: Facts) -> None:
        self._number += 1
        rank = (-STATES.index(row["state"]), row["bytes"] or 0, -self._number)
        if len(self._rows) < ROWS:
            heapq.heappush(self._rows, (*rank, json.dumps(row, ensure_ascii=False)))
        elif rank > self._rows[0][:3]:
            heapq.heapreplace(self._rows, (*rank, json.dumps(row, ensure_ascii=False)))

    def _problem(self, host: str, path: str | None, reason: str, message: str, among: list[Facts] | None = None) -> None:
        among = self._problems if among is None else among
        reason = sys.intern(reason)
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        if path is not None and message.startswith(path + ": "):
            message = message[len(path) + 2 :]
        if len(among) < PROBLEMS:
            among.append({"host": host, "path": path, "reason": reason, "message": message})

    def rows(self) -> t.Iterator[Facts]:
        """The images that matter most, the most pressing state first, the larger before the smaller; at most :data:`ROWS`."""
        for ranked in sorted(self._rows, reverse=True):
            yield json.loads(ranked[3])

    def summary(self) -> Facts:
        """Everything but the images, as ``report.json`` has it."""
        return {
            "schema": SCHEMA,
            "totals": {key: round(value, 3) for key, value in self._totals.items()},
            "hosts": self.hosts,
            "runs": self._runs,
            "formats": _table(self._formats),
            "producers": _table(self._producers),
            "reasons": dict(sorted(self._reasons.items())),
            "problems": sorted([*self._problems_of_hosts, *self._problems][:PROBLEMS], key=lambda one: str(one["host"])),
            "chains": self._chains,
            "retry": self._retry,
        }


def _state(facts: Facts, counts: dict[str, float], problems: bool) -> str:
    if facts.get("unreached_since"):
        return "unreached"
    if not facts.get("known_at") and not problems:
        return "missing"
    if counts["failed"] or problems:
        return "failed"
    if counts["running"]:
        return "running"
    if counts["left"] > counts["deferred"]:
        return "left"
    return "deferred" if counts["deferred"] else "done"


def _table(counted: dict[str, list[int]]) -> list[Facts]:
    """Counted things, the most frequent first."""
    return [
        {"name": name, "images": n, "bytes": size} for name, (n, size) in sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    ]
