# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Takes what a run has told of a host into what is kept of it.

Every run of any play does that. Nothing is compared by clocks, of which each host has its own: what was told by a later run is later.
"""

from __future__ import annotations

import os
import shutil
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import encode_exact, show
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_file, image_state, told
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, HostFile, name
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import Replacing, locked
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Coverage, Run, Told

_FOUND_BY_TRYING = ("verification-failed", "storage", "process", "error", "tool-failed")
"""Reasons of failures that no plan foresees: a plan that sees nothing in the way does not make up for them."""


def keep(directory: str, host: str, run: Run, results: Results) -> None:
    """Take a run into the file of a host.

    What was damaged in the file is kept beside it.

    :param directory: of the reports; it is there.
    :raises OSError: the file cannot be written; it is as it was then.
    """
    with locked(directory, host):
        path = os.path.join(directory, host_file.name_of(host))
        try:
            damaged = _merge(directory, HostFile(path), host, run, results)
        except OSError:
            raise
        except Exception as error:  # either of them is not what it should be
            whole = f"{path} cannot be used ({type(error).__name__}: {error})."
            try:
                damaged = _merge(directory, HostFile(path, ignored=whole), host, run, results)
            except OSError:
                raise
            except Exception as other:
                raise OSError(f"what the modules have returned cannot be used ({type(other).__name__}: {other})") from other
        if damaged:
            os.replace(path + _NEW_BAD, path + _BAD)


_BAD, _NEW_BAD = ".bad", ".bad.new"


def _merge(directory: str, kept: HostFile, host: str, run: Run, results: Results) -> bool:
    """:return: whether the old file was damaged; it is kept then."""
    last, name_ = kept.highest(), host_file.name_of(host)
    damage = kept.unreadable
    if damage is not None:
        shutil.copyfile(os.path.join(directory, name_), os.path.join(directory, name_ + _NEW_BAD))
        damage = f"{damage} What it was is in {name_}{_BAD}. Run vmimage.qcow.scan for this host, on all its paths."
    facts = _facts({**kept.facts, "runs": last}, host, run, results, damage)
    with Replacing(directory, name_) as replaced:
        replaced.stream.write(host_file.dump(facts))
        entries = merged(kept, told.told_by(results), Coverage(run, results), run, facts["runs"]) if results.reached else kept.images()
        for _name, entry in entries:
            replaced.stream.write(host_file.dump(entry))
    return damage is not None


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


def _facts(known: Facts, host: str, run: Run, results: Results, damage: str | None) -> Facts:
    """What is kept of the host itself.

    :param damage: of what is known, in words.
    """
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
    if damage is not None:
        facts["problems"] = [*facts["problems"], {"play": "scan", "path": None, "reason": "report", "message": damage}]
    if not results.reached:
        facts["unreached_since"] = known.get("unreached_since") or run.moment
        facts["unreached"] = next(str(result.get("msg") or "").strip() for result in results if result.get("unreachable"))
        return facts
    facts.update(unreached_since=None, unreached=None)
    coverage = Coverage(run, results)
    looked = results.found.get("images") is not None
    if looked or results.done.get("records") is not None:  # the module was not stopped before it saw anything
        facts["known_at"] = run.moment
    everything = looked and coverage.limit is None and all(coverage.replaces(path) for scan in facts["scans"] for path in scan["paths"])
    facts["problems"] = [one for one in facts["problems"] if _holds(one, run.play, coverage, looked, everything)]
    fresh = told.problems_of(run, results)
    facts["problems"] = [one for one in facts["problems"] if one["message"] not in {new["message"] for new in fresh}] + fresh
    if looked:
        scan = {"paths": list(run.paths), "files": (results.found.get("summary") or {}).get("files") or 0}
        others = [one for one in facts["scans"] if one["paths"] != scan["paths"] and not all(map(coverage.replaces, one["paths"]))]
        facts["scans"] = [*others, scan]
    if run.paths:
        facts["paths"] = {**known.get("paths", {}), run.play: list(run.paths)}
    return facts


def _holds(problem: Facts, play: str, coverage: Coverage, looked: bool, everything: bool) -> bool:
    """Whether a run leaves a problem of its host as it is.

    :param everything: whether all that was ever looked at has been looked at now.
    """
    if problem["reason"] == "report":
        return not (play == "scan" and everything)
    if play in ("status", "stop"):
        return True
    if play == "scan":  # it shows where things stand; but it runs none of the operator's tasks
        return problem["reason"] == "hook" or not looked or not coverage.replaces(problem["path"])
    return problem["play"] == "scan" and (play != "migrate" or not coverage.replaces(problem["path"]))


def merged(kept: HostFile, news: Told, coverage: Coverage, run: Run, n: int) -> t.Iterator[tuple[bytes, Facts]]:
    """The images of a host with what a run has told of them, sorted by their exact names.

    Results and retired originals are told of with the image that they come from.

    :param n: number of the run.
    """
    belongs: dict[bytes, Facts] = {}
    for image, entry in _beside(kept.images(), news.records):
        current = _records(entry, image, news, run, n).get("record")
        if current is not None and image_state.in_place(current):
            for result in _results(current) - {image}:
                belongs[result] = current
    given = {*(news.looks or ()), *news.plans, *news.attempts, *news.records}
    for image, entry in _beside(kept.images(), given):
        entry = _records(entry, image, news, run, n)
        current = entry.get("record")
        entry = _attempted(_looked(image, entry, news, coverage, run, n), news.attempts.get(image), run, n)
        own = current is not None and (image_state.in_place(current) or image_state.unfinished(current))
        if image in belongs and not own and not _took_the_name(entry.get("seen") or {}, belongs[image], image):
            continue
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


def _took_the_name(seen: Facts, record: Facts, image: bytes) -> bool:
    """Whether a version 1 image has been found under the name of a result since."""
    original = seen.get("format") == "qcow" and not seen.get("retired") and not seen.get("gone")
    return original and name(record, "dest") == image and seen["n"] >= record["n"]


_RECORD_IS_GONE = (
    "The record of this migration is not in the state directory any more, or another state directory was given. "
    "Without it, it can be neither rolled back nor cleaned up. Restore the state directory from a backup, or name the right one."
)


def _still_there(record: Facts, listed: list[Facts], all_told: bool) -> Facts | None:
    """A record that is kept, if it is on the host; of one that is not, only that its result has its name."""
    if not all_told or any(one["record"] == record["record"] for one in listed):
        return record
    if image_state.unfinished(record) or not image_state.in_place(record):
        return None
    return record if record["state"] == "cleaned" else {**record, "gone": _RECORD_IS_GONE, "reversible": False}


def _records(entry: Facts, image: bytes, news: Told, run: Run, n: int) -> Facts:
    """The last record that has not failed decides; one that has failed after it is the last attempt."""
    listed, at_work, was = news.records.get(image) or [], news.at_work, entry.get("record")
    kept = [_still_there(one, listed, news.all_records) for one in (was, entry.get("failed")) if one is not None]
    known = {one["record"]: one for one in kept if one is not None}
    # Names of records have the time of the host, whose clock may have been set back: what was told by a later run is later.
    order = dict(entry.get("order") or [(one["record"], one["n"]) for one in known.values()])
    for one in listed:
        order.setdefault(one["record"], n)
        before = known.get(one["record"])
        same = before is not None and all(before.get(key) == one.get(key) for key in ("state", "time"))
        since = before["n"] if before is not None and same else n
        running = bool(before is not None and same and before.get("running")) if at_work is None else at_work
        known[one["record"]] = told.record(one, since, run.moment, running=running)
    ordered = sorted(known.values(), key=lambda one: (order.get(one["record"], 0), one["record"]))
    current = next((one for one in reversed(ordered) if one["state"] != "failed"), None)
    last = ordered[-1] if ordered and ordered[-1]["state"] == "failed" else None
    entry = {key: value for key, value in entry.items() if key not in ("record", "failed")}
    if was is not None and (current is None or current["record"] != was["record"]):
        entry.pop("lost", None)
    if was is not None and (current is None or current["n"] != was["n"]):
        entry.pop("result", None)
    return {**entry, **_present(record=current, failed=last, order=[*order.items()] if len(order) > 1 else None)}


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
            if result is None:
                entry.pop("tried", None)
        if result is not None:
            _look_beside(entry, result, news.looks, coverage, run, n)
    if image in news.plans:
        entry.pop("plan", None)
        entry.update(_present(plan=told.plan(news.plans[image], n, run.moment, run.speed)))
    return entry


def _look_beside(entry: Facts, record: Facts, looks: told.Named, coverage: Coverage, run: Run, n: int) -> None:
    """What a scan has found, or has not found, of the result of a migration and of its retired original."""
    dest, retired = name(record, "dest"), name(record, "retired") if record.get("retired") else None
    look, tried, shown = looks.get(dest), entry.get("tried") or {}, show(dest)
    if look is not None:
        now = told.seen(look, n, run.moment, None)
        entry["result"] = told.packed(**{key: now.get(key) for key in ("n", "used_by", "domains", "reason", "message")})
        if now.get("format") == "qcow":
            entry["result"].update(reason="missing", message=f"{shown}: a QCOW version 1 image has the name of the result.")
        if tried.get("play") in ("rollback", "cleanup") or (tried.get("reason") == "start-failed" and now.get("runs")):
            del entry["tried"]
    elif record.get("format") == "qcow2" and not image_state.unfinished(record) and coverage.includes(dest, {"format": "qcow2"}):
        entry["result"] = {"n": n, "reason": "missing", "message": f"{shown}: the result of the migration is not there any more."}
    if retired is not None:
        entry.setdefault("result", {"n": n}).pop("no_way_back", None)
        if retired not in looks and coverage.includes(retired, {"format": "qcow"}):
            entry["result"]["no_way_back"] = True


def _contradict(entry: Facts, was: Facts | None, planned: bool, n: int) -> None:
    """Drop what a look, or the plan that was made with it, says is no longer so."""
    tried, now = entry.get("tried"), entry["seen"]
    if tried is None:
        return
    if now.get("format") != "qcow" and tried["play"] == "migrate" and "record" in entry and image_state.in_place(entry["record"]):
        return  # the look is at the result, which has the name of the image
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
