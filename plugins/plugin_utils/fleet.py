# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What the reports of single hosts amount to. One host is in memory at a time: what is kept of it does not grow with its images."""

from __future__ import annotations

import heapq
import json
import os
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import decode_exact, show, to_path

Facts = t.Dict[str, t.Any]

SCHEMA = 1
ROWS = 2000
"""Images that the page lists; the files beside it list all."""

STATES = ("failed", "left", "deferred", "migrated", "retired", "other")
"""What has become of an image, the most pressing first."""

COLUMNS = (
    "host",
    "path",
    "state",
    "format",
    "producer",
    "virtual_size",
    "bytes",
    "bytes_after",
    "dest",
    "verified",
    "fingerprint",
    "seconds",
    "bytes_per_second",
    "rests_on",
    "used_by",
    "reason",
    "message",
    "record",
)
"""What is told of each image, in the order of the CSV file."""

HOST_COLUMNS = (
    "host",
    "state",
    "scanned",
    "migrated_at",
    "files",
    "images",
    "left",
    "left_bytes",
    "migrated",
    "failed",
    "deferred",
    "bytes_before",
    "bytes_after",
    "seconds",
)
"""What is told of each host, in the order of the CSV file."""


class Names(t.NamedTuple):
    """One host's own reports, by their file names."""

    host: str
    scan: str | None
    migrate: str | None


def reports(directory: str, hosts: t.Iterable[str]) -> list[Names]:
    """The reports in a directory, one entry a host, and one for each further host that should have one."""
    found: dict[str, dict[str, str]] = {}
    for name in os.listdir(directory):
        kind, _dash, rest = name.partition("-")
        if kind in ("scan", "migrate") and rest.endswith(".json"):
            found.setdefault(rest[: -len(".json")], {})[kind] = os.path.join(directory, name)
    return [Names(host, found.get(host, {}).get("scan"), found.get(host, {}).get("migrate")) for host in sorted(set(found) | set(hosts))]


def read(path: str | None) -> Facts:
    """A report of one host; what cannot be read is a report of that."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as stream:
            report = json.load(stream)
        return report if isinstance(report, dict) else {"errors": [f"{path} holds no report"]}
    except (OSError, ValueError) as error:
        return {"errors": [f"{path} cannot be read: {error}"]}


def _name(facts: Facts, role: str = "path") -> bytes:
    """A name as the host has it: names that are not the same can look alike."""
    shown = facts.get(role) or ""
    try:
        return decode_exact(shown, facts.get(role + "_base64"))
    except ValueError:  # not as a module writes it
        return to_path(shown)


def images_of(host: str, scan: Facts, migrate: Facts) -> list[Facts]:
    """Every image of a host as a row: found by the scan, migrated, or both.

    :return: the columns, and in ``name`` and ``below`` the exact names of the image and of what it rests on.
    """
    rows: dict[bytes, Facts] = {}
    for image in scan.get("images") or []:
        rows[_name(image)] = _found(host, image)
    results: set[bytes] = set()
    for result in migrate.get("images") or []:
        name = _name(result, "src")
        fresh = dict.fromkeys(COLUMNS) | {"host": host, "path": result["src"], "format": "qcow", "name": name, "below": []}
        _migrated(rows.setdefault(name, fresh), result)
        if result.get("changed"):
            results.update((_name(result, "dest"), _name(result, "retired")))
    # A scan after the migration has seen the results and the retired originals: they are told of with the image they come from.
    return [row for name, row in sorted(rows.items()) if name not in results or row["state"] in ("migrated", "failed")]


def _found(host: str, image: Facts) -> Facts:
    row: Facts = dict.fromkeys(COLUMNS)
    name = _name(image)
    chain = [_name(member) for member in image.get("chain") or []]
    backing = image.get("backing")
    if backing and not chain:
        chain = [os.path.normpath(os.path.join(os.path.dirname(name), _name(backing, "name")))]
    damaged = (image.get("check") or {}).get("verdict") == "damaged"
    row.update(
        host=host,
        path=image["path"],
        state="left" if image.get("candidate") else "retired" if "retired original" in (image.get("reasons") or []) else "other",
        format=image.get("format"),
        producer=image.get("producer"),
        virtual_size=image.get("virtual_size"),
        bytes=image.get("allocated_size"),
        rests_on=[show(member) for member in chain],
        name=name,
        below=chain,
        used_by=[f"{use.get('who')} ({use.get('how') or use.get('kind')})" for use in image.get("in_use") or []],
        reason="damaged" if damaged else "error" if image.get("error") else None,
        message=image.get("error") or (f"damaged: {findings(image['check'])}" if damaged else None),
    )
    return row


def findings(check: Facts) -> str:
    """The first of what a structure check has found, in words."""
    words = [str(item["text"]) for item in check.get("findings") or []]
    return "; ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _migrated(row: Facts, result: Facts) -> None:
    before, after = result.get("before") or {}, result.get("after") or {}
    row["record"] = result.get("record")
    if result.get("failed"):
        row.update(state="failed", reason=result.get("reason"), message=result.get("msg"))
    elif result.get("action") == "defer":
        row.update(state="deferred", reason="deferred", message=result.get("msg"))
    elif result.get("changed") or result.get("action") == "noop":
        seconds = result.get("seconds") or 0
        size = before.get("allocated_size")
        row.update(
            # What was converted before, its original kept, is migrated, too, where no scan says otherwise.
            state="migrated" if result.get("changed") else row["state"] or "migrated",
            virtual_size=before.get("virtual_size", row["virtual_size"]),
            bytes=size if size is not None else row["bytes"],
            bytes_after=after.get("allocated_size"),
            dest=result.get("dest"),
            verified=result.get("verified"),
            fingerprint=result.get("fingerprint"),
            seconds=seconds or None,
            bytes_per_second=int(size / seconds) if seconds and size else None,
            reason=None,
            message=None,
        )
    row["below"] = row["below"] or [_name(member) for member in result.get("chain") or []]
    row["rests_on"] = [show(member) for member in row["below"]]
    row["used_by"] = row["used_by"] or []


class Fleet:
    """All hosts, as far as they have been added."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = dict.fromkeys(
            ("hosts", "missing", "files", "images", "bytes", *STATES, "left_bytes", "bytes_before", "bytes_after", "seconds", "verified"), 0
        )
        self.formats: dict[str, list[int]] = {}
        self.producers: dict[str, list[int]] = {}
        self.reasons: dict[str, int] = {}
        self.hosts: list[Facts] = []
        self.problems: list[Facts] = []
        self.chains: list[Facts] = []
        self._rows: list[tuple[int, int, int, Facts]] = []
        self._number = 0

    def add(self, host: str, scan: Facts, migrate: Facts) -> list[Facts]:
        """Take in one host.

        :return: its images, as rows.
        """
        rows = images_of(host, scan, migrate)
        summary = self._host(host, scan, migrate, rows)
        self.totals["hosts"] += 1
        for row in rows:
            self._take(row)
        for key in ("files", "images", "left_bytes", "bytes_before", "bytes_after", "seconds"):
            self.totals[key] += summary[key] or 0
        named = {row["message"] for row in rows}
        for message in list(scan.get("errors") or []) + list(migrate.get("errors") or []):
            if message not in named:
                self._problem(host, None, "run", str(message))
        if summary["state"] == "missing":
            self.totals["missing"] += 1
            self._problem(host, None, "missing", "There is no report of this host: it was not reached, or its run ended early.")
        self.chains.extend(forest(host, rows)[: max(0, 200 - len(self.chains))])
        self.hosts.append(summary)
        return rows

    def _host(self, host: str, scan: Facts, migrate: Facts, rows: list[Facts]) -> Facts:
        number = {state: sum(row["state"] == state for row in rows) for state in STATES}
        done = [row for row in rows if row["state"] == "migrated"]
        errors = bool(scan.get("errors") or migrate.get("errors")) or any(row["reason"] in ("damaged", "error") for row in rows)
        state = "missing" if not scan and not migrate else "failed" if number["failed"] or errors else "left" if number["left"] else "done"
        return {
            "host": host,
            "state": "deferred" if state == "done" and number["deferred"] else state,
            "scanned": scan.get("time"),
            "migrated_at": migrate.get("time"),
            "files": (scan.get("summary") or {}).get("files"),
            "images": len(rows),
            "left": number["left"],
            "left_bytes": sum(row["bytes"] or 0 for row in rows if row["state"] in ("left", "failed", "deferred")),
            "migrated": number["migrated"],
            "failed": number["failed"],
            "deferred": number["deferred"],
            "bytes_before": sum(row["bytes"] or 0 for row in done),
            "bytes_after": sum(row["bytes_after"] or 0 for row in done),
            "seconds": round(sum(row["seconds"] or 0 for row in done), 3),
        }

    def _take(self, row: Facts) -> None:
        totals = self.totals
        totals[row["state"]] += 1
        totals["bytes"] += row["bytes"] or 0
        totals["verified"] += row["state"] == "migrated" and bool(row["verified"])
        for table, key in ((self.formats, row["format"]), (self.producers, row["producer"] if row["format"] == "qcow" else None)):
            if key:
                entry = table.setdefault(key, [0, 0])
                entry[0] += 1
                entry[1] += row["bytes"] or 0
        if row["message"] and row["state"] != "deferred":
            self._problem(row["host"], row["path"], row["reason"] or "error", row["message"])
        self._number += 1
        ranked = (-STATES.index(row["state"]), row["bytes"] or 0, -self._number, row)
        if len(self._rows) < ROWS:
            heapq.heappush(self._rows, ranked)
        else:
            heapq.heappushpop(self._rows, ranked)

    def _problem(self, host: str, path: str | None, reason: str, message: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if path is not None and message.startswith(path + ": "):
            message = message[len(path) + 2 :]
        if len(self.problems) < ROWS:
            self.problems.append({"host": host, "path": path, "reason": reason, "message": message})

    def rows(self) -> list[Facts]:
        """The images that matter most, those that need attention first, the largest before the smaller."""
        return [entry[3] for entry in sorted(self._rows, reverse=True)]

    def summary(self) -> Facts:
        """Everything but the images, as the JSON file has it."""
        return {
            "schema": SCHEMA,
            "totals": {key: round(value, 3) for key, value in self.totals.items()},
            "formats": table(self.formats),
            "producers": table(self.producers),
            "reasons": dict(sorted(self.reasons.items())),
            "hosts": self.hosts,
            "problems": self.problems,
            "chains": self.chains,
        }


def table(counted: dict[str, list[int]]) -> list[Facts]:
    """Counted things, the most frequent first."""
    return [
        {"name": name, "images": n, "bytes": size} for name, (n, size) in sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    ]


def forest(host: str, rows: list[Facts]) -> list[Facts]:
    """The backing chains of a host: each base with what rests on it."""
    known = {row["name"]: row for row in rows}
    above: dict[bytes, list[bytes]] = {}
    for row in rows:
        line = [row["name"], *row["below"]]
        for over, base in zip(line, line[1:]):
            if over not in above.setdefault(base, []):
                above[base].append(over)
    overlays = {over for overs in above.values() for over in overs}

    def node(path: bytes, depth: int) -> Facts:
        row = known.get(path)
        return {
            "path": show(path),
            "format": row["format"] if row else None,
            "state": row["state"] if row else None,
            "overlays": [node(over, depth + 1) for over in sorted(above.get(path, []))] if depth < 50 else [],
        }

    return [{"host": host, **node(base, 0)} for base in sorted(above) if base not in overlays]
