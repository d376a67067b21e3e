# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The history of a report directory: what each run did, in a file to which every run adds a line for each host."""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, dump
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import locked
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run

NAME = "runs.jsonl"

SHOWN = 20
"""Runs that are told, the latest."""

_COUNTS = ("migrated", "failed", "deferred", "rolled_back", "cleaned", "bytes")
_CHANGED = {"migrate": "migrated", "rollback": "rolled_back", "cleanup": "cleaned"}


def line_of(host: str, run: Run, results: Results) -> Facts:
    """What a run did on one host. ``bytes``: on disk, of the originals that were migrated, or that a cleanup gave back."""
    images = results.done.get("images") or []
    changed = [image for image in images if image.get("changed") and not image.get("failed")]
    counts = dict.fromkeys(_COUNTS, 0)
    if run.play in _CHANGED:
        counts[_CHANGED[run.play]] = len(changed)
    counts["failed"] = sum(bool(image.get("failed")) for image in images)
    counts["deferred"] = sum(image.get("action") == "defer" and not image.get("failed") for image in images)
    sizes = [image.get("returns") if run.play == "cleanup" else (image.get("before") or {}).get("allocated_size") for image in changed]
    counts["bytes"] = sum(size or 0 for size in sizes)
    return {"id": run.id, "play": run.play, "host": host, "started": run.started, "ended": run.moment, "reached": results.reached, **counts}


def add(directory: str, line: Facts) -> None:
    """Add what a run did on one host.

    :raises OSError: it cannot be written.
    """
    path = os.path.join(directory, NAME)
    with locked(directory, NAME), open(path, "ab+") as stream:
        if os.path.getsize(path):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")  # a controller was killed while it wrote
        stream.write(dump(line).encode("utf-8", "surrogateescape"))
    if os.stat(path).st_uid == os.geteuid():
        os.chmod(path, os.stat(directory).st_mode & 0o666 | 0o644)


def latest(directory: str) -> list[Facts]:
    """The latest runs, the last first, each added up over its hosts."""
    runs: dict[tuple[str, str], Facts] = {}
    hosts: dict[tuple[str, str], dict[str, bool]] = {}
    for line in _lines(os.path.join(directory, NAME)):
        try:
            key = (line["id"], line["play"])
            fresh = {"id": key[0], "play": key[1], "started": line["started"], "ended": line["ended"], **dict.fromkeys(_COUNTS, 0)}
            run = runs.setdefault(key, fresh)
            run["started"], run["ended"] = min(run["started"], line["started"]), max(run["ended"], line["ended"])
            run.update({name: run[name] + line[name] for name in _COUNTS})
            hosts.setdefault(key, {})[line["host"]] = bool(line["reached"])
        except (KeyError, TypeError):
            continue
        if len(runs) > 2 * SHOWN:
            for old in sorted(runs, key=lambda one: runs[one]["started"])[:-SHOWN]:
                del runs[old], hosts[old]
    order = ("id", "play", "started", "ended", "hosts", "reached", *_COUNTS)
    told = [{**run, "hosts": len(hosts[key]), "reached": sum(hosts[key].values())} for key, run in runs.items()]
    told.sort(key=lambda run: (run["started"], run["ended"]), reverse=True)
    return [{name: run[name] for name in order} for run in told[:SHOWN]]


def _lines(path: str) -> t.Iterator[Facts]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            for text in stream:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict):
                    yield line
    except FileNotFoundError:
        return
