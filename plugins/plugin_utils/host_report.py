# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What a role's run on one host amounts to: lines for the terminal, and what is left to do."""

from __future__ import annotations

import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import count, size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.plan_files import refusal
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible

Facts = t.Dict[str, t.Any]

PLAYS = ("scan", "migrate", "rollback", "cleanup")

_LISTED = 20
"""Images that the message of a failed guard names."""


class Results(t.NamedTuple):
    """What the modules of one role have returned, as registered; empty where one was not run."""

    found: Facts = {}
    planned: Facts = {}
    done: Facts = {}

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
    told = {"scan": _scanned, "migrate": _migrated, "rollback": _rolled_back, "cleanup": _cleaned}[play](results, check_mode)
    return [visible(line) for line in told]


def problems(play: str, results: Results, *, fail_on_found: bool = False) -> list[str]:
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
    stopped = refusal(main)
    if stopped is not None:
        said[stopped] = None
    if fail_on_found:
        said.update(dict.fromkeys(_guarded(results.found)))
    return [visible(line) for line in said]


def _guarded(found: Facts) -> t.Iterator[str]:
    paths = [candidate["src"] for candidate in found.get("candidates") or []]
    if paths:
        listed = ", ".join(paths[:_LISTED]) + (" and more" if len(paths) > _LISTED else "")
        yield f"{len(paths)} QCOW version 1 image(s) found: {listed}. Migrate them with vmimage.qcow.migrate."


def _scanned(results: Results, check_mode: bool) -> list[str]:
    found = results.found
    summary = found.get("summary")
    if not summary:
        return ["NOT LOOKED AT"]
    told = [f"{summary['files']} files in {summary['directories']} directories, {len(found['images'])} reported"]
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
    told += _searched(found) if found.get("candidates") else []
    plan = refusal(results.planned)
    if plan is not None:
        told.append(f"THE PLAN CANNOT BE CARRIED OUT: {plan}")
    refused = [image for image in results.planned.get("images") or [] if image["action"] == "refuse"]
    told += [f"WOULD BE REFUSED {_named(image)}" for image in refused if plan is None]
    return told


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
    images = done.get("images") or []
    told = []
    summary = done.get("summary") or {}
    if "files" in summary:
        told.append(f"{count(summary['files'], 'file')} looked at, {len(images)} to migrate")
    else:
        told.append(f"{count(len(images), 'image')} in the plan" if images else "nothing to migrate")
    told += [error["msg"] for error in done.get("errors") or []]
    stopped = refusal(done)
    if stopped is not None:
        told.append(f"{'WOULD FAIL' if check_mode else 'FAILED'} {stopped}")
    told += _recovered(done)
    for image in images:
        if image["failed"]:
            # What has stopped all of them has been said.
            told += [] if image["msg"] == stopped else [f"{'WOULD BE REFUSED' if check_mode else 'FAILED'} {_named(image)}"]
        elif image["action"] == "defer":
            told.append(f"deferred {_named(image)}" if image["reason"] == "in-use" else f"deferred {image['src']}")
        elif not image["changed"]:
            told.append(f"unchanged {image['src']}: {', '.join(image['reasons'])}")
        else:
            told.append(_converted(image, check_mode))
            told += [f"  link {link['path']} {'would lead' if check_mode else 'leads'} to it" for link in image["links"]]
            told += [f"  overlay {path} {'would rest' if check_mode else 'rests'} on it" for path in image["repointed"]]
    return told + (_searched(done) if any(image["changed"] for image in images) else [])


def _searched(done: Facts) -> list[str]:
    """Where overlays and links were looked for: whoever has them elsewhere must say so before the image loses its name."""
    places = [place["path"] + (" and below" if place["recurse"] else "") for place in done.get("searched") or []]
    if not places:
        return []
    listed = ", ".join(places[:_LISTED]) + (f" and {len(places) - _LISTED} more" if len(places) > _LISTED else "")
    return [f"overlays and links were looked for in {listed}, and not elsewhere (backing_dirs)"]


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
    told = [f"{len(images)} records looked at", *_recovered(done), *_stopped(done)]
    for image in images:
        if image["failed"]:
            told.append(f"REFUSED {image['msg']}")
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
    told = [f"{len(images)} records looked at, {back} {'would come' if check_mode else 'came'} back", *_recovered(done), *_stopped(done)]
    for image in images:
        if image["failed"]:
            told.append(f"KEPT {image['msg']}")
        elif image["changed"]:
            told.append(
                f"{'would delete' if check_mode else 'deleted'} {image['retired']}: {size(image['returns'])}, {', '.join(image['reasons'])}"
            )
        else:
            told.append(f"unchanged {image['src']}: {', '.join(image['reasons'])}")
    return told


def _stopped(done: Facts) -> list[str]:
    stopped = refusal(done)
    return [] if stopped is None else [f"FAILED {stopped}"]
