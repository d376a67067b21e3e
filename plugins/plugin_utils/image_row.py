# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""An image as a row: of the page, of the tables, and of what other programs read."""

from __future__ import annotations

import math
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import show
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, name
from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_state import TO_MIGRATE, in_place, state_of

COLUMNS = (
    "host",
    "path",
    "state",
    "reason",
    "message",
    "domains",
    "format",
    "producer",
    "virtual_size",
    "bytes",
    "bytes_after",
    "dest",
    "retired",
    "verified",
    "fingerprint",
    "seconds",
    "bytes_per_second",
    "rests_on",
    "used_by",
    "record",
    "rollback",
    "known_at",
    "planned_seconds",
    "planned_bytes",
    "damage",
)
"""What is told of each image, in the order of the CSV file."""


_NUMBERS = ("virtual_size", "bytes", "bytes_after", "seconds", "planned_seconds", "planned_bytes")
_TEXTS = ("path", "reason", "message", "format", "producer", "record", "known_at")


def checked(row: Facts) -> Facts:
    """A row whose values are of the types that it should have.

    :raises TypeError: one is not; the host has returned it, or the file was changed.
    """
    for key in _NUMBERS:
        if row[key] is not None and not (isinstance(row[key], (int, float)) and math.isfinite(row[key])):
            raise TypeError(f"{key} is no number")
    for key in _TEXTS:
        if row[key] is not None and not isinstance(row[key], str):
            raise TypeError(f"{key} is no text")
    if not all(isinstance(text, str) for key in ("domains", "rests_on", "used_by") for text in row[key]):
        raise TypeError("a name is no text")
    return row


def row_of(host: str, entry: Facts, undo: t.Callable[[str, str], str]) -> Facts | None:
    """The row of an image that is kept as in :mod:`.host_file`; ``None`` where it is gone.

    :param undo: tells the command that undoes the migration with a record on a host.
    """
    told = state_of(entry)
    if told is None:
        return None
    record, seen, plan = entry.get("record") or {}, entry.get("seen") or {}, entry.get("plan") or {}
    done = bool(record) and in_place(record) and told.state in ("migrated", "interrupted", "running")
    now = record if done else seen
    to_do = told.state in TO_MIGRATE
    planned = to_do and plan.get("reason") == "planned"
    size, seconds = _first(now.get("bytes"), seen.get("bytes"), record.get("bytes")), record.get("seconds") if done else None
    beside = (entry.get("result") or {}) if done else seen
    path = entry["path"]
    message = told.message
    if message is not None and message.startswith(path + ": "):
        message = message[len(path) + 2 :]
    if told.damage is not None and to_do:
        message = told.damage["text"].split("\n")[0]
    return {
        "host": host,
        "path": path,
        "state": told.state,
        "reason": told.reason,
        "message": message,
        "domains": sorted({*(beside.get("domains") or ()), *((record.get("domains") or ()) if done else ())}),
        "format": "qcow" if done else seen.get("format") or "qcow",
        "producer": seen.get("producer"),
        "virtual_size": _first(now.get("virtual_size"), seen.get("virtual_size"), record.get("virtual_size")),
        "bytes": size,
        "bytes_after": record.get("bytes_after") if done else None,
        "dest": show(name(record, "dest")) if done else None,
        "retired": show(name(record, "retired")) if done and record.get("retired") and record["state"] != "cleaned" else None,
        "verified": bool(record.get("verified")) if done else None,
        "fingerprint": (record if done else seen).get("fingerprint"),
        "seconds": seconds,
        "bytes_per_second": int(size / seconds) if size and seconds else None,
        "rests_on": [member["path"] for member in seen.get("below") or ()],
        "used_by": list(beside.get("used_by") or ()),
        "record": record.get("record") if done or told.state in ("interrupted", "running") else None,
        "rollback": undo(host, record["record"]) if done and record.get("reversible") and not beside.get("no_way_back") else None,
        "known_at": told.known_at,
        "planned_seconds": plan.get("seconds", 0) if planned else None,
        "planned_bytes": plan.get("bytes", 0) if planned else None,
        "damage": told.damage,
    }


def _first(*values: t.Any) -> t.Any:
    return next((value for value in values if value is not None), None)
