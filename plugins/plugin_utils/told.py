# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What one run has told of a host, taken from the results of its modules: looks, plans, attempts and records of images by their exact names."""

from __future__ import annotations

import hashlib
import json
import math
import os
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import encode_exact, show, to_path
from ansible_collections.vmimage.qcow.plugins.plugin_utils import damage
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, name
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results, hook_failure
from ansible_collections.vmimage.qcow.plugins.plugin_utils.plan_files import refusal

Named = t.Dict[bytes, Facts]


class Run(t.NamedTuple):
    """A run of a role on a host, as far as its results do not say it."""

    play: str
    moment: str
    """When it ended on this host, in UTC."""
    paths: t.Sequence[str] = ()
    """That were asked for."""
    limits: Facts = {}
    """How a scan was limited: ``exclude``, ``one_filesystem``, ``report``."""
    speed: float = 2e8
    """Bytes a second that the times of plans are estimated with."""
    id: str = ""
    started: str = ""
    given: Facts = {}
    """On the command line, see :func:`.next_command.given`."""


class Told(t.NamedTuple):
    """Results by the exact names of images; what is ``None`` was not asked for, or failed as a whole."""

    looks: Named | None
    plans: Named
    attempts: Named
    records: dict[bytes, list[Facts]]
    all_records: bool
    """Whether a record that is not among these is on the host no more."""
    at_work: bool | None
    """Whether another run was at work on the host; ``None``: nobody has asked."""


def told_by(results: Results) -> Told:
    """What the modules have returned; the entries are the modules' own, not copies."""
    found, planned, done = results.found, results.planned, results.done
    records: dict[bytes, list[Facts]] = {}
    listed = found.get("records") if done.get("records") is None else done["records"]
    for entry in listed or []:
        records.setdefault(name(entry, "src"), []).append(entry)
    attempts: Named = {}
    stuck = [dict(entry, reason="unfinished") for entry in done.get("recovered") or [] if entry.get("failed")]
    for entry in [*stuck, *(done.get("images") or [])]:
        if entry.get("src"):
            attempts[name(entry, "src")] = entry
    looks = None if found.get("images") is None else {name(image): image for image in found["images"] if not _unseen(image)}
    plans = {name(image, "src"): image for image in planned.get("images") or []}
    return Told(looks, plans, attempts, records, listed is not None, _at_work(found, done))


def _at_work(found: Facts, done: Facts) -> bool | None:
    """Whether another run was at work; whoever changes something keeps others out, and knows."""
    if "running" in done:
        return bool(done["running"])
    return done.get("reason") == "locked" if done else found.get("running")


def _unseen(image: Facts) -> bool:
    """A file or directory of which nothing is known but that it could not be read: a problem of the host, and no image."""
    return bool(image.get("error")) and image.get("format") == "unknown"


def problems_of(run: Run, results: Results) -> list[Facts]:
    """What concerns the host and no single image of it."""
    found, planned, done = results.found, results.planned, results.done
    listed: dict[str, Facts] = {}

    def add(message: t.Any, reason: str, path: str | None = None) -> None:
        listed.setdefault(str(message), {"play": run.play, "path": path, "reason": reason, "message": str(message)})

    images = {image.get("error") for image in found.get("images") or [] if not _unseen(image)}
    for error in [*(found.get("errors") or []), *(done.get("errors") or [])]:
        if error["msg"] not in images:
            add(error["msg"], "unreadable", error.get("path"))
    for image in [*(done.get("images") or []), *(done.get("recovered") or [])]:
        if image.get("failed") and not image.get("src"):
            add(image["msg"], image.get("reason") or "error")
    main = found if run.play == "scan" else done
    stopped = refusal(main) if "msg" in main and (run.play == "scan" or "running" not in main) else None
    if stopped is not None:
        add(stopped, main.get("reason") or "error")
    plan = refusal(planned)
    if plan is not None:
        add(f"The plan cannot be carried out: {plan}", planned.get("reason") or "error")
    for failure in results.hooks.get("failed") or []:
        add(hook_failure(failure), "hook", failure.get("src") or None)
    return list(listed.values())


class Coverage:
    """Which images a scan would have found, had they been there."""

    def __init__(self, run: Run, results: Results) -> None:
        # The trees that were asked for come first among those that were searched; only the host knows what "~" is.
        walked = [name(place) for place in results.found.get("searched") or [] if place.get("recurse")]
        absolute = [_folder(to_path(path)) for path in run.paths if path.startswith("/")]
        walked = [real for real in walked if _folder(real) not in absolute]
        homes = [next((real for real in walked if real.endswith(_after_home(path))), None) for path in run.paths if path.startswith("~")]
        self._paths = absolute + [_folder(real) for real in homes if real]
        self._closed = [_folder(name(error)) for error in results.found.get("errors") or [] if error.get("path")]
        narrow = {key: run.limits[key] for key in ("exclude", "one_filesystem") if run.limits.get(key)}
        self.limit = hashlib.sha256(json.dumps([narrow, list(run.paths)]).encode()).hexdigest()[:8] if narrow else None
        """Tells apart how scans were limited; ``None``: not at all."""
        self._only_v1 = run.limits.get("report") == "v1"

    def includes(self, image: bytes, seen: Facts | None) -> bool:
        """Whether the scan says something of an image that it has not found: that it is gone.

        :param seen: the latest look at it. A scan that is limited says it only of what was found under the same limits.
        """
        whole = self.limit is None or (seen or {}).get("limit") == self.limit
        if not whole or (self._only_v1 and seen is not None and seen.get("format") != "qcow"):
            return False
        return _below(image, self._paths) and not _below(image, self._closed)

    def replaces(self, path: str | None) -> bool:
        """Whether what an earlier scan could not look at has been looked at now."""
        return path is None or _below(to_path(path), self._paths)


def _after_home(path: str) -> bytes:
    within = path.rstrip("/").partition("/")[2]
    return b"/" + to_path(within) if within else b""


def _folder(path: bytes) -> bytes:
    return os.path.normpath(path).rstrip(b"/") + b"/"


def _below(path: bytes, folders: list[bytes]) -> bool:
    return any((path + b"/").startswith(folder) for folder in folders)


def seen(image: Facts, n: int, moment: str, limit: str | None) -> Facts:
    """What is kept of a look at an image."""
    chain = [name(member) for member in image.get("chain") or []]
    backing = image.get("backing")
    if backing and not chain:
        chain = [os.path.normpath(os.path.join(os.path.dirname(name(image)), name(backing, "name")))]
    check = image.get("check") or {}
    damaged = check.get("verdict") == "damaged"
    reasons = image.get("reasons") or []
    return packed(
        n=n,
        at=moment,
        limit=limit,
        format=image.get("format"),
        retired="retired original" in reasons,
        producer=image.get("producer"),
        virtual_size=image.get("virtual_size"),
        bytes=image.get("allocated_size"),
        mtime=image.get("mtime"),
        below=names(chain),
        runs=any(user.get("state") == "running" for user in image.get("users") or []),
        used_by=[f"{use.get('who')} ({use.get('how') or use.get('kind')})" for use in image.get("in_use") or []],
        domains=sorted({str(user["domain"]) for user in image.get("users") or []}),
        fingerprint=image.get("fingerprint"),
        damage=damage.of_check(check) if damaged else None,
        reason="damaged"
        if damaged
        else reasons[-1]
        if image.get("error") and len(reasons) > 1
        else "error"
        if image.get("error")
        else None,
        message=image.get("error"),
    )


def plan(image: Facts, n: int, moment: str, speed: float) -> Facts | None:
    """What is kept of a plan; ``None`` where there is nothing to do."""
    if image.get("failed"):
        return packed(n=n, at=moment, reason=image.get("reason") or "error", message=image.get("msg"), damage=damage.of_result(image))
    if not image.get("changed"):
        return None
    seconds = math.ceil((image.get("copy_bytes") or 0) / speed)
    space = (image.get("after") or {}).get("file_size") or 0
    return packed(n=n, at=moment, reason="planned", seconds=seconds, bytes=space)


def attempt(image: Facts, play: str, n: int, moment: str) -> Facts | None:
    """What is kept of an attempt that failed, was refused or was deferred; ``None`` for one that went well."""
    deferred = image.get("action") == "defer"
    if not image.get("failed") and not deferred:
        return None
    reason = image.get("reason") or ("deferred" if deferred else "error")
    return packed(
        n=n,
        at=moment,
        play=play,
        deferred=deferred,
        reason=reason,
        message=image.get("msg"),
        damage=None if deferred else damage.of_result(image),
    )


def first_seen(image: Facts, moment: str) -> Facts:
    """What the result of a conversion says of an image that no scan has found yet; older than anything else that is known of it."""
    before = image.get("before") or {}
    chain = [name(member) for member in image.get("chain") or []]
    sizes = {"virtual_size": before.get("virtual_size"), "bytes": before.get("allocated_size")}
    return packed(n=0, at=moment, format="qcow", below=names(chain), **sizes)


_OF_RECORD = (
    "record",
    "format",
    "dest",
    "dest_base64",
    "retired",
    "retired_base64",
    "state",
    "time",
    "began",
    "verified",
    "fingerprint",
    "seconds",
)
_MORE_OF_RECORD = ("domains", "returned", "error", "unfinished", "reversible")


def record(entry: Facts, n: int, moment: str, *, running: bool) -> Facts:
    """What is kept of a record.

    :param running: whether a run was at work on the host; a status says of each record whether that run is at it.
    """
    before, after = entry.get("before") or {}, entry.get("after") or {}
    return packed(
        n=n,
        at=moment,
        running=bool(entry["in_progress"]) if "in_progress" in entry else running and bool(entry.get("unfinished")),
        virtual_size=before.get("virtual_size"),
        bytes=before.get("allocated_size"),
        bytes_after=after.get("allocated_size"),
        **{key: entry.get(key) for key in _OF_RECORD + _MORE_OF_RECORD},
    )


def names(paths: t.Iterable[bytes]) -> list[Facts]:
    """Names of files as they are kept."""
    return [packed(path=show(path), path_base64=encode_exact(path)) for path in paths]


def packed(**facts: t.Any) -> Facts:
    """Facts without what says nothing."""
    return {key: value for key, value in facts.items() if value is not None and value is not False and value != []}
