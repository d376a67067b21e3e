# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Takes what a run has told of a host into what is kept of it.

Every run of any play does that. Nothing is compared by clocks, of which each host has its own: what was told by a later run is later.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import encode_exact, show
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_file, image_state, told
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, HostFile, name
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import Replacing, locked
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Coverage, Run, Told

_FOUND_BY_TRYING = ("verification-failed", "storage", "worker", "error", "tool-failed")
"""Reasons of failures that no plan foresees: a plan that sees nothing in the way does not make up for them."""


def keep(directory: str, host: str, run: Run, results: Results) -> None:
    """Take a run into the file of a host.

    :param directory: of the reports; it is there.
    :raises OSError: the file cannot be written; it is as it was then.
    """
    with locked(directory, host):
        kept = HostFile(os.path.join(directory, host_file.name_of(host)))
        facts = _facts(kept.facts, host, run, results)
        with Replacing(directory, host_file.name_of(host)) as replaced:
            replaced.stream.write(host_file.dump(facts))
            entries = merged(kept, told.told_by(results), Coverage(run, results), run, facts["runs"]) if results.reached else kept.images()
            for _name, entry in entries:
                replaced.stream.write(host_file.dump(entry))


def expect(directory: str, hosts: t.Iterable[str]) -> None:
    """Have these hosts stay in the report, whether anything becomes known of them or not.

    :raises OSError: a file cannot be written.
    """
    there = host_file.hosts_in(directory)
    for host in hosts:
        if host in there:
            continue
        with locked(directory, host):
            if not os.path.exists(os.path.join(directory, host_file.name_of(host))):
                with Replacing(directory, host_file.name_of(host)) as replaced:
                    replaced.stream.write(host_file.dump({"schema": host_file.SCHEMA, "host": host}))


def _facts(known: Facts, host: str, run: Run, results: Results) -> Facts:
    """What is kept of the host itself."""
    facts = {
        "schema": host_file.SCHEMA,
        "scans": [],
        "problems": [],
        **known,
        "host": host,
        "last_play": run.play,
        "last_run_at": run.moment,
    }
    facts["runs"] = known.get("runs", 0) + 1
    facts["given"] = {**known.get("given", {}), run.play: run.given}
    if not results.reached:
        facts["unreached_since"] = known.get("unreached_since") or run.moment
        facts["unreached"] = next(str(result.get("msg") or "").strip() for result in results if result.get("unreachable"))
        return facts
    facts.update(unreached_since=None, unreached=None)
    coverage = Coverage(run, results)
    looked = results.found.get("images") is not None
    if looked or results.done.get("records") is not None:  # the module was not stopped before it saw anything
        facts["known_at"] = run.moment
    # A scan shows where things stand; what else went wrong holds until the next run that changes something.
    if run.play == "scan":
        facts["problems"] = [one for one in facts["problems"] if not looked or not coverage.replaces(one["path"])]
    elif run.play == "migrate":
        facts["problems"] = [one for one in facts["problems"] if one["play"] == "scan" and not coverage.replaces(one["path"])]
    elif run.play != "status":
        facts["problems"] = [one for one in facts["problems"] if one["play"] == "scan"]
    fresh = told.problems_of(run, results)
    facts["problems"] = [one for one in facts["problems"] if one["message"] not in {new["message"] for new in fresh}] + fresh
    if looked:
        scan = {"paths": list(run.paths), "files": (results.found.get("summary") or {}).get("files") or 0}
        others = [one for one in facts["scans"] if one["paths"] != scan["paths"] and not all(map(coverage.replaces, one["paths"]))]
        facts["scans"] = [*others, scan]
    if run.paths:
        facts["paths"] = {**known.get("paths", {}), run.play: list(run.paths)}
    return facts


def merged(kept: HostFile, news: Told, coverage: Coverage, run: Run, n: int) -> t.Iterator[tuple[bytes, Facts]]:
    """The images of a host with what a run has told of them, sorted by their exact names.

    Results and retired originals are told of with the image that they come from.

    :param n: number of the run.
    """
    belongs: dict[bytes, bytes] = {}
    for image, entry in _beside(kept.images(), news.records):
        current = _records(entry, news.records.get(image) or [], run, n, at_work=news.at_work).get("record")
        if current is not None and image_state.in_place(current):
            belongs.update(dict.fromkeys(_results(current) - {image}, image))
    given = {*(news.looks or ()), *news.plans, *news.attempts, *news.records}
    for image, entry in _beside(kept.images(), given):
        entry = _records(entry, news.records.get(image) or [], run, n, at_work=news.at_work)
        current = entry.get("record")
        if image in belongs and (current is None or not (image_state.in_place(current) or image_state.unfinished(current))):
            continue
        entry = _attempted(_looked(image, entry, news, coverage, run, n), news.attempts.get(image), run, n)
        if any(key in entry for key in ("seen", "plan", "tried", "record", "failed")) and not _is_gone(entry):
            yield image, {"path": show(image), "path_base64": encode_exact(image), **entry}


def _beside(entries: t.Iterator[tuple[bytes, Facts]], given: t.Iterable[bytes]) -> t.Iterator[tuple[bytes, Facts]]:
    """What is kept, and an empty entry for each further image that was told of, sorted."""
    fresh = iter(sorted(given))
    following = next(fresh, None)
    for image, entry in entries:
        while following is not None and following < image:
            yield following, {}
            following = next(fresh, None)
        if following == image:
            following = next(fresh, None)
        yield image, entry
    while following is not None:
        yield following, {}
        following = next(fresh, None)


def _results(record: Facts) -> set[bytes]:
    return {name(record, role) for role in ("dest", "retired") if record.get(role)}


def _records(entry: Facts, listed: list[Facts], run: Run, n: int, *, at_work: bool | None) -> Facts:
    """The last record that has not failed decides; one that has failed after it is the last attempt."""
    known = {one["record"]: one for one in (entry.get("record"), entry.get("failed")) if one is not None}
    for one in listed:
        before = known.get(one["record"])
        same = before is not None and all(before.get(key) == one.get(key) for key in ("state", "time"))
        since = before["n"] if before is not None and same else n
        running = bool(before is not None and same and before.get("running")) if at_work is None else at_work
        known[one["record"]] = told.record(one, since, run.moment, running=running)
    ordered = [known[identifier] for identifier in sorted(known)]
    current = next((one for one in reversed(ordered) if one["state"] != "failed"), None)
    last = ordered[-1] if ordered and ordered[-1]["state"] == "failed" else None
    return {**entry, **_present(record=current, failed=last)}


def _looked(image: bytes, entry: Facts, news: Told, coverage: Coverage, run: Run, n: int) -> Facts:
    """An entry with the look at its image, and the plan."""
    entry = dict(entry)
    result = entry.get("record") if "record" in entry and image_state.in_place(entry["record"]) else None
    if news.looks is not None:
        look = news.looks.get(image)
        was = entry.get("seen")
        if look is not None:
            entry["seen"] = told.seen(look, n, run.moment, coverage.limit)
            _contradict(entry, was, image in news.plans, n)
        elif coverage.includes(image, was):
            entry["seen"] = {**(was or {}), "gone": True, "n": n}
            entry.pop("plan", None)
            entry.pop("tried", None)
        beside = news.looks.get(name(result, "dest")) if result is not None and name(result, "dest") != image else None
        if beside is not None:
            now = told.seen(beside, n, run.moment, None)
            entry["result"] = told.packed(**{key: now.get(key) for key in ("n", "used_by", "domains", "reason", "message")})
            if (entry.get("tried") or {}).get("play") in ("rollback", "cleanup"):
                del entry["tried"]
    if image in news.plans:
        entry.pop("plan", None)
        entry.update(_present(plan=told.plan(news.plans[image], n, run.moment, run.speed)))
    return entry


def _contradict(entry: Facts, was: Facts | None, planned: bool, n: int) -> None:
    """Drop what a look, or the plan that was made with it, says is no longer so."""
    tried, now = entry.get("tried"), entry["seen"]
    if tried is None:
        return
    other_file = was is not None and "mtime" in was and was["mtime"] != now.get("mtime")
    free = tried["reason"] == "in-use" and "used_by" not in now
    foreseen = planned and tried["reason"] not in _FOUND_BY_TRYING
    if other_file or free or foreseen or tried["play"] in ("rollback", "cleanup"):
        del entry["tried"]


def _attempted(entry: Facts, result: Facts | None, run: Run, n: int) -> Facts:
    if result is None:
        return entry
    entry.setdefault("seen", told.first_seen(result, run.moment))
    entry.pop("tried", None)
    entry.update(_present(tried=told.attempt(result, run.play, n, run.moment)))
    if result.get("lost"):
        entry["lost"] = told.damage.of_result(result)
    return entry


def _is_gone(entry: Facts) -> bool:
    """Whether a scan has not found the image any more, and there is nothing to be remembered of it: records will be told of again."""
    return bool((entry.get("seen") or {}).get("gone")) and not entry.keys() & {"tried", "record", "failed"}


def _present(**facts: t.Any) -> Facts:
    return {key: value for key, value in facts.items() if value is not None}
