# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The images that a page lists, and what all of them amount to by reason."""

from __future__ import annotations

import heapq
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.advice import advice
from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_row import COLUMNS
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_words import IMAGES, PENDING, time_text

Facts = t.Dict[str, t.Any]

IN_A_GROUP = 10
"""Images that are named with a reason; the list of images has all."""

_RANK = {state: rank for rank, state in enumerate(IMAGES)}
_HOST, _PATH, _STATE, _BYTES = map(COLUMNS.index, ("host", "path", "state", "bytes"))
_QUIET = ("left", "migrated", "other")
"""States that need no reason: only what has a message has something in its way."""


class Reason:
    """What has one reason."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.means, self.do = advice(code)
        self.images = 0
        self.bytes = 0
        self.states: dict[str, int] = {}
        self.hosts: set[str] = set()
        self.examples: list[Facts] = []

    def add(
        self, host: str, state: str | None, message: str, path: str | None = None, size: int = 0, domains: t.Sequence[str] = ()
    ) -> None:
        """Take in an image, or a host as such."""
        self.hosts.add(host)
        if state is not None:
            self.images += 1
            self.bytes += size
            self.states[state] = self.states.get(state, 0) + 1
        if len(self.examples) < IN_A_GROUP:
            self.examples.append({"host": host, "path": path, "message": message, "domains": domains})

    @property
    def pressing(self) -> tuple[int, int, str]:
        """For sorting: what stands against whole hosts first, then what has failed before what waits, the most frequent first."""
        return (min((_RANK[state] for state in self.states), default=-1), -(self.images or len(self.hosts)), self.code)


class Tally:
    """What all images amount to, whether a page lists them or not."""

    def __init__(self) -> None:
        self.total = 0
        self.refused = 0
        """Images that the plan would refuse."""
        self.reversible = 0
        self.bytes = dict.fromkeys(IMAGES, 0)
        """On disk, of the images in each state."""
        self._reasons: dict[str, Reason] = {}

    def add(self, row: Facts) -> None:
        """Count an image."""
        self.total += 1
        self.reversible += bool(row["rollback"])
        self.bytes[row["state"]] += row["bytes"] or 0
        if row["reason"] and (row["message"] if row["state"] in _QUIET else row["state"] in PENDING):
            self.refused += row["state"] == "left"
            self._reason(row["reason"]).add(row["host"], row["state"], told(row), row["path"], row["bytes"] or 0, row["domains"] or ())

    def _reason(self, code: str) -> Reason:
        return self._reasons.setdefault(code, Reason(code))

    def reasons(self, hosts: list[Facts], problems: list[Facts]) -> list[Reason]:
        """Why images and hosts are not done, the most pressing first.

        :param hosts: all of them, those that were not reached among them.
        :param problems: of these, those that are of a host as such; those of images are in the images.
        """
        of_hosts: dict[str, Reason] = {}
        for host in hosts:
            if host["state"] in ("unreached", "missing"):
                why = "; ".join(host["problems"]) or (
                    f"not reached since {time_text(host['unreached_since'])}" if host["unreached_since"] else ""
                )
                of_hosts.setdefault("unreached", Reason("unreached")).add(host["host"], None, why)
        own = {(host["host"], message) for host in hosts for message in host["problems"] if host["state"] not in ("unreached", "missing")}
        for problem in problems:
            whole = f"{problem['path']}: {problem['message']}"
            if not own.isdisjoint({(problem["host"], problem["message"]), (problem["host"], whole)}):
                code = problem["reason"]
                of_hosts.setdefault(code, Reason(code)).add(problem["host"], None, problem["message"])
        found = [reason for reason in of_hosts.values() if reason.hosts] + list(self._reasons.values())
        return sorted(found, key=lambda reason: reason.pressing)


def tally_of(rows: t.Iterable[Facts]) -> Tally:
    """What these images amount to."""
    tally = Tally()
    for row in rows:
        tally.add(row)
    return tally


class Listed:
    """The images that matter most, by host."""

    def __init__(self, rows: t.Iterable[Facts], most: int) -> None:
        """:param most: images to keep."""
        values = (tuple(row[column] for column in COLUMNS) for row in rows)
        kept = heapq.nsmallest(most, values, key=lambda row: (_RANK[row[_STATE]], -(row[_BYTES] or 0)))
        kept.sort(key=lambda row: (row[_HOST], _RANK[row[_STATE]], row[_PATH]))
        self._kept = kept
        self.listed = len(kept)

    @property
    def rows(self) -> t.Iterator[Facts]:
        """The images to list, by host."""
        return (dict(zip(COLUMNS, row)) for row in self._kept)


def told(row: Facts) -> str:
    """The message of an image, without its name at the beginning."""
    message = row["message"] or ""
    start = f"{row['path']}: "
    return message[len(start) :] if message.startswith(start) else message
