# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What records say, as modules return it."""

from typing import Any, Dict, List

from .._errors import QcowError
from .._options import Params, absolute
from .._paths import encode_exact, show
from .record import Record, Records, State
from .results import RecordEntry

_SAYS = {
    State.PLANNED: "interrupted before the copy began; the original is as it was",
    State.COPYING: "interrupted during copy or verification; the original is as it was and the temporary file will be removed",
    State.VERIFIED: "interrupted with a proven result; it will be put in place if the original has not changed since",
    State.PUBLISHED: "interrupted with the result in place; what refers to it and the original's new name are left to do",
    State.REPOINTED: "interrupted with the result in place; the original is still to be renamed",
    State.RETIRED: "complete, but for the last line of its record",
    State.FAILED: "failed, and its temporary file could not be removed; that will be tried again",
    State.ROLLING_BACK: "interrupted during a rollback, which will be finished",
    State.CLEANING: "interrupted while its retired original was deleted",
}


def explain(record: Record) -> Dict[str, Any]:
    """What a record says, see :class:`.results.RecordEntry`."""
    src, dest, retired = record.file("src") or b"", record.file("dest") or b"", record.file("retired")
    entry = RecordEntry(
        record=record.id,
        src=show(src),
        src_base64=encode_exact(src),
        dest=show(dest),
        dest_base64=encode_exact(dest),
        retired=None if retired is None else show(retired),
        retired_base64=None if retired is None else encode_exact(retired),
        format=record.facts.get("format"),
        state=record.state,
        began=record.began,
        time=record.facts.get("time"),
        verified=bool(record.facts.get("verified")),
        fingerprint=record.facts.get("fingerprint"),
        before=record.facts.get("before") or {},
        after=record.facts.get("after") or {},
        seconds=record.facts.get("seconds"),
        domains=[domain["domain"] for domain in record.facts.get("domains") or ()],
        returned=record.facts.get("returned"),
        error=record.facts.get("error"),
        unfinished=_SAYS.get(record.state, "unfinished") if record.unfinished else None,
        reversible=record.state == State.DONE and not record.facts.get("device"),
    )
    return dict(entry._asdict())


LISTED = ("none", "unfinished", "all")
"""Which records a module returns."""


def records_of(params: Params) -> Dict[str, List[Dict[str, Any]]]:
    """What a module returns as ``records`` by its options ``state_dir`` and ``list_records``; nothing where they cannot be read."""
    try:
        return {"records": listed_records(Records(absolute(params["state_dir"], "state_dir")), params["list_records"])}
    except QcowError:
        return {}


def listed_records(records: Records, which: str) -> List[Dict[str, Any]]:
    """The records of a host, oldest first, as modules return them.

    :param which: one of :data:`LISTED`.
    """
    return [explain(record) for record in (() if which == "none" else records.all()) if which == "all" or record.unfinished]
