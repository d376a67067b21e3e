# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What has become of an image, by all that is known of it: the one place that decides it, for the page, the tables and all numbers."""

from __future__ import annotations

import typing as t

Facts = t.Dict[str, t.Any]

TO_MIGRATE = ("failed", "interrupted", "running", "left", "deferred")
"""The states of version 1 images that are still to migrate, the most pressing first. No other image has one of these."""

STATES = (*TO_MIGRATE, "migrated", "other")

_IN_PLACE = ("published", "repointed", "retired", "done", "cleaning", "cleaned")
_FINISHED = ("done", "failed", "rolled-back", "cleaned")


class State(t.NamedTuple):
    """What an image's row says first."""

    state: str
    reason: str | None = None
    message: str | None = None
    damage: Facts | None = None
    known_at: str | None = None


def in_place(record: Facts) -> bool:
    """Whether the result has its name."""
    return record["state"] in _IN_PLACE


def unfinished(record: Facts) -> bool:
    """Whether a run has not brought the migration, rollback or cleanup to its end."""
    return record["state"] not in _FINISHED


def state_of(entry: Facts) -> State | None:
    """The state of an image that is kept as in :mod:`.host_file`; ``None``: it is gone."""
    record, seen, tried = entry.get("record"), entry.get("seen") or {}, entry.get("tried")
    since = 0 if record is None else record["n"]
    if record is not None and unfinished(record):
        told = _failure(tried, since)
        message = told.message if told is not None else record.get("unfinished")
        running = bool(record.get("running"))
        return State("running" if running else "interrupted", None if running else "unfinished", message, None, record["at"])
    if record is not None and in_place(record) and not _is_new(seen, record):
        told = _failure(tried, since)
        beside = entry.get("result") or {}
        if told is not None:
            return told._replace(state="migrated", damage=entry.get("lost"))
        if record.get("gone"):
            return State("migrated", "state", record["gone"], entry.get("lost"), record["at"])
        return State("migrated", beside.get("reason"), beside.get("message"), entry.get("lost"), record["at"])
    return _of_original(entry, seen, since)


def _is_new(seen: Facts, record: Facts) -> bool:
    """Whether there is a version 1 image again under the name of one that was migrated and has not stayed there."""
    stays = not record.get("retired") and not record["state"].startswith("clean")
    later = seen.get("n", 0) > record["n"] or seen.get("n", 0) == record["n"] == 1
    return not stays and later and not seen.get("gone") and seen.get("format") == "qcow"


def _of_original(entry: Facts, seen: Facts, since: int) -> State | None:
    """Of an image that is not migrated, or not any more.

    :param since: number of the run that told of the record that says so.
    """
    record, plan, failed = entry.get("record"), entry.get("plan"), entry.get("failed")
    looked = seen.get("n", 0)
    last = max(since, (entry.get("tried") or {}).get("n", 0), (failed or {}).get("n", 0))
    if looked >= last and seen.get("gone"):
        return None
    if looked >= last and seen and (seen.get("format") != "qcow" or seen.get("retired")):
        return State("other", "retired" if seen.get("retired") else seen.get("reason"), seen.get("message"), None, seen["at"])
    told = _failure(entry.get("tried"), since) or _recorded_failure(failed, since, plan)
    if told is not None and told.state == "failed":
        return told
    if looked >= since and seen.get("reason"):
        return State(
            "failed", seen["reason"], seen.get("message") or (seen.get("damage") or {}).get("text"), seen.get("damage"), seen["at"]
        )
    if told is not None:
        return told
    if plan is not None and plan["n"] >= since:
        return State("left", plan["reason"], plan.get("message"), plan.get("damage"), plan["at"])
    if record is not None and looked <= since:
        return State("left", "rolled-back", None, None, record["at"])
    return State("left", None, None, None, seen.get("at"))


def _failure(tried: Facts | None, since: int) -> State | None:
    """The last attempt, unless a record says more."""
    if tried is None or tried["n"] < since:
        return None
    return State("deferred" if tried.get("deferred") else "failed", tried["reason"], tried.get("message"), tried.get("damage"), tried["at"])


def _recorded_failure(failed: Facts | None, since: int, plan: Facts | None) -> State | None:
    """A record that failed, where no later plan and no later record says otherwise."""
    if failed is None or failed["n"] < since or (plan is not None and failed["n"] <= plan["n"]):
        return None
    error = failed.get("error")
    return State("failed", "interrupted" if error == "interrupted" else "error", error, None, failed["at"])
