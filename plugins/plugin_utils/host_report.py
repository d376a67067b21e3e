# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What a role's run on one host amounts to: lines for the terminal, and what is left to do."""

from __future__ import annotations

import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils import next_command
from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import count, duration, size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.plan_files import refusal
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible

Facts = t.Dict[str, t.Any]

PLAYS = ("scan", "migrate", "rollback", "cleanup", "status", "stop")

_LISTED = 20
"""Images that one line names."""

DEFERRED = {
    "window": "the window closed",
    "stopped": "the run was stopped",
    "space": "not all of them fit",
    "in-use": "in use",
    "unplanned": "not among the images that the run was given",
    "limit": "the limit of a run is reached",
}
"""Why images are left to another run, by the reason in their results."""

_FAILED = {"migrate": "FAILED", "rollback": "REFUSED", "cleanup": "KEPT"}
_WOULD = {"migrate": "would refuse", "rollback": "would refuse", "cleanup": "would keep"}


class Results(t.NamedTuple):
    """What the modules of one role have returned, as registered; empty where one was not run.

    ``hooks`` has in ``failed`` what stopped the operator's tasks: the task that failed, the file that is not there, or only why. ``again`` says that
    the same run was told before they were run.
    """

    found: Facts = {}
    planned: Facts = {}
    done: Facts = {}
    hooks: Facts = {}

    @property
    def reached(self) -> bool:
        """Whether the host could be reached all the time."""
        return not any(result.get("unreachable") for result in self)


def ran(result: t.Any) -> Facts:
    """A registered result; empty where the task was skipped."""
    return {} if not isinstance(result, dict) or result.get("skipped") else result


def lines(play: str, results: Results, *, check_mode: bool) -> list[str]:
    """What to show on the terminal."""
    if not results.reached:
        return ["NOT REACHED"]
    told = _LINES[play](results, check_mode)
    return [visible(line) for line in told]


def problems(play: str, results: Results, host: str = "", *, fail_on_found: bool = False) -> list[str]:
    """Why the run on this host is no success: what could not be looked at, what was refused or failed, and what stopped all of it."""
    if not results.reached:
        message = next(str(result.get("msg")) for result in results if result.get("unreachable"))
        return [f"The host could not be reached: {message.strip()}"]
    said: dict[str, None] = {}
    main = results.found if play == "scan" else results.done
    for result in results:
        said.update(dict.fromkeys(error["msg"] for error in result.get("errors") or []))
    said.update(dict.fromkeys(entry["msg"] for entry in results.done.get("recovered") or [] if entry.get("failed")))
    said.update(dict.fromkeys(image["msg"] for image in results.done.get("images") or [] if image.get("failed")))
    looked = _refusal("status", results.found) if play == "stop" and results.found else None
    said.update({stopped: None for stopped in (_refusal(play, main), looked) if stopped is not None})
    said.update(dict.fromkeys(_hook_failed(host, failure) for failure in results.hooks.get("failed") or []))
    if fail_on_found:
        said.update(dict.fromkeys(_guarded(results.found)))
    return [visible(line) for line in said]


def _hook_failed(host: str, failure: Facts) -> str:
    """What has become of an image or a host when a task of the operator failed, and the way back."""
    what = hook_failure(failure)
    if "file" in failure or "_before_" in failure.get("option", ""):
        return f"{what} Nothing was changed on this host."
    return f"{what} To undo its migration: {next_command.rollback(host, failure['record'])}" if _can_be_undone(failure) else what


def hook_failure(failure: Facts) -> str:
    """What kept the operator's tasks from their end."""
    if "file" in failure:
        return f"{failure['option']}: there is no file {failure['file']}."
    if "task" not in failure:
        return str(failure.get("msg")).strip()
    what = f"{failure['option']}, task {failure['task']!r}: {str(failure['msg']).strip().rstrip('.')}."
    return f"{failure['src']}: {what}" if failure["src"] else what


def _can_be_undone(failure: Facts) -> bool:
    return failure.get("option") == "migrate_after_image_tasks" and bool(failure.get("record"))


def ways_back(results: Results, host: str) -> list[str]:
    """Failures of the operator's tasks that name a command: Ansible would show it in JSON, where it cannot be copied."""
    failed = results.hooks.get("failed") or []
    return [visible(_hook_failed(host, failure)) for failure in failed if _can_be_undone(failure)]


def ending(left: list[str], lines: list[str], *, check_mode: bool) -> str:
    """What the failure of a host says at the end of a playbook: what its lines have not said, and how much they have."""
    said: set[str] = set()
    for line in lines:
        for word in (*_FAILED.values(), *_WOULD.values(), "would not start:", "NOT LOOKED AT"):
            line = line.removeprefix(word + " ")
        said.update((line, line.partition(": ")[2]))
    words = [problem for problem in left if problem not in said]
    if len(words) < len(left):
        listed = count(len(left) - len(words), "problem")
        words.append(f"The run would end with {listed}, listed above." if check_mode else f"{listed}, listed above.")
    return " ".join(words)


def counts(play: str, host: str, results: Results, left: list[str]) -> Facts:
    """What one host adds to the total of a run: numbers of images, and bytes."""
    images = results.done.get("images") or []
    candidates = results.found.get("candidates") or []
    deferred: dict[str, int] = {}
    for image in images:
        if image["action"] == "defer":
            deferred[image["reason"]] = deferred.get(image["reason"], 0) + 1
    summary = results.done.get("summary") or {}
    sizes = {image["path"]: image["allocated_size"] or 0 for image in results.found.get("images") or []}
    return {
        "host": host,
        "state": "unreached" if not results.reached else "failed" if left else "left" if deferred or candidates else "done",
        "problems": len(left),
        "changed": sum(image["changed"] and not image["failed"] for image in images),
        "failed": sum(image["failed"] for image in images),
        "deferred": deferred,
        "bytes_before": summary.get("bytes_before", 0),
        "bytes_after": summary.get("bytes_after", 0),
        "bytes_returned": summary.get("bytes_returned", 0),
        "to_migrate": len(candidates),
        "to_migrate_bytes": sum(sizes.get(image["src"], 0) for image in candidates),
        "running": int(bool(results.done.get("running"))),
        "migrated": summary.get("migrated", 0),
        "interrupted": summary.get("interrupted", 0),
        "stopped": int(play == "stop" and bool(results.done.get("running"))),
        "not_done": results.done.get("left") or 0,
        "checks_failed": len({_hook_failed(host, one) for one in results.hooks.get("failed") or [] if "_after_" in one.get("option", "")}),
        "to_refuse": sum(image["action"] == "refuse" for image in results.planned.get("images") or []),
    }


def told(play: str, host: str, results: Results, left: list[str], *, check_mode: bool) -> Facts:
    """What a role is told of its run on one host."""
    said = lines(play, results, check_mode=check_mode) + ways_back(results, host)
    return {
        "lines": said,
        "problems": left,
        "reached": results.reached,
        "ending": ending(left, said, check_mode=check_mode),
        "counts": counts(play, host, results, left),
    }


def _guarded(found: Facts) -> t.Iterator[str]:
    paths = [candidate["src"] for candidate in found.get("candidates") or []]
    if paths:
        yield f"{len(paths)} QCOW version 1 image(s) found: {_list(paths)}. Migrate them with vmimage.qcow.migrate."


def _scanned(results: Results, check_mode: bool) -> list[str]:
    return (_looked_at(results.found) if results.found or not results.planned else []) + _foreseen(results.planned)


def _looked_at(found: Facts) -> list[str]:
    summary = found.get("summary")
    if not summary:
        return [f"NOT LOOKED AT {refusal(found) or ''}".rstrip()]
    told = [f"{count(summary['files'], 'file')} in {_directories(summary['directories'])}, {len(found['images'])} reported"]
    names = {"qcow": "QCOW v1", "unknown": "raw or unknown"}
    told += [f"{number:6d} {names.get(name, name)}" for name, number in sorted(summary["formats"].items())]
    for image in found["images"]:
        if image["error"] or image["format"] == "qcow":
            told.append(_found(image))
            told += [f"  {_user(user)}" for user in image["users"] if user["where"] != "live" or user["depth"] > 0]
            told += [f"  {_DOMAINS[image['domains']['action']]}: {reason}" for reason in (image["domains"] or {}).get("reasons") or []]
            told += [f"  overlay {overlay['path']}" for overlay in image["dependents"]]
            told += [f"  link {link['path']}" for link in image["links"]]
            told += [f"  named in {hit['file']}, line {hit['line']}: {hit['text']}" for hit in image["references"]]
    return told + (_searched(found) if found.get("candidates") else [])


def _foreseen(planned: Facts) -> list[str]:
    """What a migration would refuse."""
    plan = refusal(planned)
    if plan is not None:
        return [f"the migration would not start: {plan}"]
    return [f"would refuse {_named(image)}" for image in planned.get("images") or [] if image["action"] == "refuse"]


def _directories(number: int) -> str:
    return "1 directory" if number == 1 else f"{number} directories"


_DOMAINS = {"follow": "follows", "running": "runs", "refuse": "STANDS IN THE WAY"}


def _found(image: Facts) -> str:
    if image["error"]:
        return str(image["error"])
    words = [", ".join(image["reasons"]), f"{size(image['virtual_size'])} virtual", f"{size(image['allocated_size'])} on disk"]
    return f"{image['path']}: {', '.join(words + (['in use'] if image['in_use'] else []))}"


def _user(user: Facts) -> str:
    words = [f"domain {user['domain']}, {user['device']} {user['target']} ({user['declared_format'] or 'no format'})", user["state"]]
    if user["where"] != "definition":
        words.append(user["where"])
    if user["snapshots"]:
        words.append("snapshots: " + " ".join(user["snapshots"]))
    if user["managed_save"]:
        words.append("saved memory state")
    return ", ".join(words)


def _migrated(results: Results, check_mode: bool) -> list[str]:
    done = results.done
    if not done:
        return []  # a task of the operator was against it
    images = done.get("images") or []
    told = []
    summary = done.get("summary") or {}
    if "files" in summary:
        told.append(f"{count(summary['files'], 'file')} looked at, {len(images)} to migrate")
    else:
        told.append(f"{count(len(images), 'image')} in the plan" if images else "nothing to migrate")
    told += [error["msg"] for error in done.get("errors") or []]
    stopped = refusal(done)
    told += _stopped(done, check_mode) + _recovered(done)
    deferred: dict[str, list[str]] = {}
    for image in images:
        if image["failed"]:
            # What has stopped all of them has been said.
            told += [] if image["msg"] == stopped else [_refused("migrate", image, check_mode)]
        elif image["action"] == "defer" and image["reason"] == "in-use":
            told.append(f"deferred {_named(image)}")
        elif image["action"] == "defer":
            deferred.setdefault(image["reason"], []).append(image["src"])
        elif not image["changed"]:
            told.append(f"unchanged {image['src']}: {', '.join(image['reasons'])}")
        else:
            told.append(_converted(image, check_mode))
            told += [f"  link {link['path']} {'would lead' if check_mode else 'leads'} to it" for link in image["links"]]
            told += [f"  overlay {path} {'would rest' if check_mode else 'rests'} on it" for path in image["repointed"]]
    told += [f"{len(paths)} deferred: {DEFERRED.get(reason, reason)}: {_list(paths)}" for reason, paths in deferred.items()]
    return told + (_searched(done) if any(image["changed"] for image in images) else [])


def _refused(play: str, image: Facts, check_mode: bool) -> str:
    what = _named(image) if play == "migrate" else image["msg"]  # which of the files of a record it is about, the message says
    return f"{(_WOULD if check_mode else _FAILED)[play]} {what}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _searched(done: Facts) -> list[str]:
    """Where overlays and links were looked for: whoever has them elsewhere must say so before the image loses its name."""
    places = [place["path"] + (" and below" if place["recurse"] else "") for place in done.get("searched") or []]
    if not places:
        return []
    return [f"overlays and links were looked for in {_list(places)}, and not elsewhere (backing_dirs)"]


def _converted(image: Facts, check_mode: bool) -> str:
    after = image["after"].get("allocated_size", image["after"].get("file_size")) or 0
    sizes = f"{size(image['before'].get('allocated_size') or 0)} -> {size(after)}"
    if check_mode:
        return f"would migrate {image['src']} -> {image['dest']}: {sizes} at most"
    return f"migrated {image['src']} -> {image['dest']}: {sizes}, {image['seconds']:.2f} s, {'verified' if image['verified'] else 'NOT verified'}"


def _named(image: Facts) -> str:
    return str(image["msg"]) if image["msg"].startswith(f"{image['src']}: ") else f"{image['src']}: {image['msg']}"


def _recovered(done: Facts) -> list[str]:
    return [f"interrupted run, {entry['src']}: {entry.get('msg') or entry.get('unfinished')}" for entry in done.get("recovered") or []]


def _rolled_back(results: Results, check_mode: bool) -> list[str]:
    done = results.done
    images = done.get("images") or []
    told = [f"{count(len(images), 'record')} looked at", *_recovered(done), *_stopped(done, check_mode)]
    for image in images:
        if image["failed"]:
            told.append(_refused("rollback", image, check_mode))
        elif not image["changed"]:
            told.append(f"unchanged {image['src']}: {', '.join(image['reasons'])}")
        else:
            kept = f", newer image kept as {image['kept']}" if image["kept"] else ""
            told.append(f"{'would roll back' if check_mode else 'rolled back'} {image['dest']} -> {image['src']}{kept}")
    return told


def _cleaned(results: Results, check_mode: bool) -> list[str]:
    done = results.done
    images = done.get("images") or []
    back = size((done.get("summary") or {}).get("bytes_returned") or 0)
    looked_at = f"{count(len(images), 'record')} looked at, {back} {'would come' if check_mode else 'came'} back"
    told = [looked_at, *_recovered(done), *_stopped(done, check_mode)]
    for image in images:
        if image["failed"]:
            told.append(_refused("cleanup", image, check_mode))
        elif image["changed"]:
            told.append(
                f"{'would delete' if check_mode else 'deleted'} {image['retired']}: {size(image['returns'])}, {', '.join(image['reasons'])}"
            )
        else:
            told.append(f"unchanged {image['src']}: {', '.join(image['reasons'])}")
    return told


def _stopped(done: Facts, check_mode: bool) -> list[str]:
    stopped = refusal(done)
    return [] if stopped is None else [f"{'would not start:' if check_mode else 'FAILED'} {stopped}"]


def _status(results: Results, check_mode: bool) -> list[str]:
    now = results.done
    failure = _refusal("status", now)
    if failure is not None:
        return [f"FAILED {failure}"]
    if now["running"] is not None:
        return [running(now["running"], now["stopping"])]
    numbers = now["summary"]
    told = ["no run"] + [f"{numbers[name]} {name}" for name in ("interrupted", "migrated") if numbers[name]]
    last = now["last_run"] or {}
    if last.get("stopped") and last["left"]:
        told.append(f"the last run was stopped with {count(last['left'], 'image')} left")
    return ["; ".join(told), *now["domains"]]


def running(facts: Facts, stopping: str | None) -> str:
    """How far a run is, in one line."""
    words = {
        "recovering": "finishes what an interrupted run left",
        "planning": f"plans {count(facts['images'], 'image')}",
        "ending": "ends",
    }
    told = [words.get(facts["stage"]) or f"{facts['done']} of {count(facts['images'], 'image')} done"]
    if facts["stage"] == "working":
        told += [f"{facts['failed']} failed"] if facts["failed"] else []
        told += [] if facts["percent"] is None else [f"{facts['percent']} %"]
        told += [] if facts["seconds_left"] is None else [f"{duration(facts['seconds_left'])} left"]
    if stopping is not None:
        told.append("stopping now" if stopping == "now" else "stopping after the current image")
    current = [
        f"{image['path']} {image['stage']}" + ("" if image["percent"] is None else f" {image['percent']} %") for image in facts["current"]
    ]
    return ", ".join(told) + (f": {', '.join(current)}" if current else "")


def _ended(results: Results, check_mode: bool) -> list[str]:
    failure = _refusal("stop", results.done)
    return [str(results.done["msg"]) if failure is None else f"FAILED {failure}"]


def _refusal(play: str, main: Facts) -> str | None:
    """Why a whole call has failed. A module that returns no images says that it has done its work by another key."""
    return None if {"status": "summary", "stop": "ended"}.get(play) in main else refusal(main)


_LINES = {"scan": _scanned, "migrate": _migrated, "rollback": _rolled_back, "cleanup": _cleaned, "status": _status, "stop": _ended}
