# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deletes a retired original, once it has been retired for long enough and its successor is found sound."""

import calendar
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional

from .._errors import DamagedImage, ImageChanged, QcowError, StateError
from .._host.files import inode_at, remove_durably
from .._host.in_use import WRITER, find_users, require_unused
from .._host.qemu_img import QemuImg
from .._image.extent import SECTOR
from .record import Record, State
from .source import Source, open_layer

NOOP = "noop"
DELETE = "delete"


class Removal(NamedTuple):
    """What a cleanup of one record will do; ``returns`` is the space in bytes that its filesystem gets back."""

    record: Record
    action: str  # NOOP or DELETE
    reasons: List[str]  # in words
    returns: int = 0


def plan_cleanup(record: Record, *, min_age: float, now: float) -> Removal:
    """Look at a retired original and at the result that took its place, and decide. Changes nothing.

    :param min_age: seconds for which it must have been retired. :param now: seconds since 1970.
    :raises QcowError: where it is old enough, but must not be deleted.
    """
    retired = record.file("retired")
    if record.state != State.DONE or retired is None:
        words = {State.CLEANED: "deleted before", State.ROLLED_BACK: "rolled back", State.DONE: "the original was not retired"}
        return Removal(record, NOOP, [words.get(record.state, "unfinished")])
    age = now - retired_at(record)
    if age < min_age:
        return Removal(record, NOOP, ["retired for {0:.1f} of {1:.1f} days".format(age / 86400, min_age / 86400)])
    if inode_at(retired) is None:
        return Removal(record, NOOP, ["the retired original was removed by other means"])
    if not record.facts.get("verified"):
        raise StateError(
            "the result was never verified against it", retired, reason="unverified", hint="It was kept. Delete it by hand if you are sure."
        )
    _require_sound(record)
    return Removal(
        record, DELETE, ["retired for {0:.1f} days, and the migrated image is sound".format(age / 86400)], _returns(record, retired)
    )


def retired_at(record: Record) -> float:
    """When the original was retired, in seconds since 1970."""
    return float(calendar.timegm(time.strptime(record.facts.get("retired_time") or record.facts["time"], "%Y-%m-%dT%H:%M:%SZ")))


def _returns(record: Record, retired: bytes) -> int:
    """The space that deleting the original returns.

    :raises ImageChanged: it is not the file that was retired. :raises ImageInUse: somebody has it open.
    """
    was = record.facts["src"]
    with Source(retired) as source:
        if not source.identity.is_recorded(was):
            raise ImageChanged(
                "is not the file that was retired, or was written after that", retired, hint="It was kept. Compare it with the result."
            )
        require_unused(source.fd, "the retired original", retired, "It was kept. Stop what uses it and run again.")
        status = os.fstat(source.fd)
    return status.st_blocks * SECTOR if status.st_nlink == 1 else 0


def _require_sound(record: Record) -> None:
    """The result is there, opens, has its format and size, and its tables make sense; ``qemu-img``, where it is, must agree.

    It may be in use: then only we look, without locks, at what is always consistent on storage.

    :raises QcowError: something is wrong with it.
    """
    dest, format_name = record.path_of("dest"), record.facts["format"]
    kept = "The retired original was kept."
    if inode_at(dest) is None:
        raise QcowError("the migrated image is gone", dest, reason="missing", hint=kept)
    try:
        with Source(dest) as source:
            found = source.identify().format
            if format_name != "raw" and found != format_name:
                raise DamagedImage("the migrated image is not {0} any more".format(format_name), dest, hint=kept)
            layer = open_layer(format_name, source.fd, dest)
            expected = (record.facts.get("after") or {}).get("virtual_size", 0)
            if layer.virtual_size < expected:
                raise DamagedImage(
                    "its virtual size is {0} bytes, it was {1} when it was made".format(layer.virtual_size, expected), dest, hint=kept
                )
            for _extent in layer.extents():
                pass
            written = any(use.kind == WRITER for use in find_users(source.fd))
    except OSError as error:
        raise DamagedImage("the migrated image cannot be read: {0}".format(error.strerror), dest, hint=kept) from error
    tool = QemuImg.find() if format_name == "qcow2" and not written else None
    if tool is not None:
        answer = tool.check(dest, format_name)
        if answer.corruptions or answer.errors:
            raise DamagedImage("qemu-img check finds it damaged: {0}".format(answer), dest, hint=kept)


def clean(removal: Removal) -> None:
    """Delete a retired original; the record says so before and after.

    :raises QcowError: it could not be deleted.
    """
    record = removal.record
    retired = record.path_of("retired")
    record.note(State.CLEANING)
    try:
        remove_durably(retired, inode=record.facts["src"]["ino"])
    except QcowError:
        if inode_at(retired) is not None:
            record.note(State.DONE)
        raise
    record.note(State.CLEANED, returned=removal.returns)


def summary(results: List[Dict[str, Any]]) -> Dict[str, int]:
    """How a cleanup ended: numbers of records, and the bytes that came back."""
    return {
        "records": len(results),
        "changed": sum(result["changed"] for result in results),
        "unchanged": sum(not result["changed"] and not result["failed"] for result in results),
        "failed": sum(result["failed"] for result in results),
        "bytes_returned": sum(result["returns"] for result in results if result["changed"]),
    }


def describe(removal: Optional[Removal]) -> Dict[str, Any]:
    """The keys of a result that only a cleanup has."""
    if removal is None:
        return {"returns": 0, "retired_time": None}
    facts = removal.record.facts
    return {"returns": removal.returns, "retired_time": facts.get("retired_time") or facts.get("time")}
