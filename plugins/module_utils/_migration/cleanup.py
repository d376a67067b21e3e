# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deletes a retired original, once it has been retired for long enough and its successor is found sound."""

import calendar
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional

from .._errors import DamagedImage, ImageChanged, QcowError, StateError
from .._fingerprint import BLOCK
from .._host.files import inode_at
from .._host.in_use import WRITER, find_users, require_unused
from .._host.qemu_img import QemuImg
from .._host.renames import remove_durably
from .._image.extent import SECTOR, Layer
from .._image.qcow1 import Qcow1
from .._image.qcow2 import Qcow2
from .._image.raw import Raw
from .._paths import show
from .._verify.compare import guest_blocks
from .._verify.qcow_readers import open_reader
from .moved_files import MovedFiles, way_out
from .new_dependents import NewDependents
from .plan import NATIVE
from .record import TIME, Record, State
from .source import Source

NOOP = "noop"
DELETE = "delete"


class Removal(NamedTuple):
    """What a cleanup of one record will do; ``returns`` is the space in bytes that its filesystem gets back."""

    record: Record
    action: str  # NOOP or DELETE
    reasons: List[str]  # in words
    returns: int = 0


def plan_cleanup(record: Record, *, min_age: float, now: float, dependents: NewDependents, moved: Optional[MovedFiles] = None) -> Removal:
    """Look at a retired original and at the result that took its place, and decide. Changes nothing.

    :param min_age: seconds for which it must have been retired. :param now: seconds since 1970.
    :param dependents: finds the images that rest on the original by the name that it has now.
    :param moved: settles which file is which.
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
    needed_by = dependents.naming(record, retired)  # whoever owns them: what is deleted is gone
    if needed_by:
        raise StateError(
            "the retired original is the backing file of {0}".format(", ".join(show(path) for path in needed_by)),
            retired,
            reason="needed",
            hint=_KEPT + " Give these overlays another backing file (qemu-img rebase), or remove them.",
        )
    moved = moved or MovedFiles()
    _require_sound(record, retired, moved)
    reasons = ["retired for {0:.1f} days, and the migrated image is sound".format(age / 86400)]
    return Removal(record, DELETE, reasons, _returns(record, retired, moved))


def retired_at(record: Record) -> float:
    """When the original was retired, in seconds since 1970."""
    return float(calendar.timegm(time.strptime(record.facts.get("retired_time") or record.facts["time"], TIME)))


def _returns(record: Record, retired: bytes, moved: MovedFiles) -> int:
    """The space that deleting the original returns.

    :raises ImageChanged: it is not the file that was retired. :raises ImageInUse: somebody has it open.
    """
    with Source(retired) as source:
        if not moved.is_original(record, source):
            raise ImageChanged(
                "is not the file that was retired, or was written after that",
                retired,
                hint="It was kept. Compare it with the result." + way_out(record, "src", source),
            )
        require_unused(source.fd, "the retired original", retired, "It was kept. Stop what uses it and run again.")
        status = os.fstat(source.fd)
    return status.st_blocks * SECTOR if status.st_nlink == 1 else 0


_KEPT = "The retired original was kept."


def _require_sound(record: Record, retired: bytes, moved: MovedFiles) -> None:
    """The result is there, is the file that was published with what guests have written to it since, opens, has its format and size, and its
    tables make sense; ``qemu-img``, where it is, must agree.

    It may be in use: then only we look, without locks, at what is always consistent on storage.

    :raises QcowError: something is wrong with it.
    """
    dest, format_name = record.path_of("dest"), record.facts["format"]
    if inode_at(dest) is None:
        raise QcowError("the migrated image is gone", dest, reason="missing", hint=_KEPT)
    try:
        with Source(dest) as source:
            unchanged = source.identity.is_recorded(record.facts["result"])
            if source.identity.ino != record.facts["result"]["ino"] and not moved.is_result(record, source):
                raise ImageChanged(
                    "the migrated image was replaced by another file, or was moved and has been written since it was made",
                    dest,
                    hint=_KEPT + " Compare the two. If it is the migrated image, set moved_files=accept.",
                )
            found = source.identify().format
            if format_name != "raw" and found != format_name:
                raise DamagedImage("the migrated image is not {0} any more".format(format_name), dest, hint=_KEPT)
            layer: Layer = Raw(source.fd, dest) if format_name == "raw" else Qcow2(source.fd, dest, content=False)
            expected = (record.facts.get("after") or {}).get("virtual_size", 0)
            if layer.virtual_size < expected:
                raise DamagedImage(
                    "its virtual size is {0} bytes, it was {1} when it was made".format(layer.virtual_size, expected), dest, hint=_KEPT
                )
            _require_same_chain(record, layer, dest)
            for _extent in layer.extents():
                pass
            readable = not isinstance(layer, Qcow2) or layer.has_readable_content
            if not readable and record.facts.get("engine") == NATIVE:
                raise ImageChanged("the migrated image is encrypted, or compressed with zstd, and was not", dest, hint=_KEPT)
            if readable and not unchanged:
                _require_something_left(retired, source.fd, dest, format_name)
            written = any(use.kind == WRITER for use in find_users(source.fd))
            checkable = isinstance(layer, Qcow2) and not layer.header.crypt_method and not written
            tool = QemuImg.find() if checkable else None
            answer = None if tool is None else tool.check(dest, format_name, fd=source.fd)
    except OSError as error:
        raise DamagedImage("the migrated image cannot be read: {0}".format(error.strerror), dest, hint=_KEPT) from error
    if answer is not None and (answer.corruptions or answer.errors):
        raise DamagedImage("qemu-img check finds it damaged: {0}".format(answer), dest, hint=_KEPT)


def _require_same_chain(record: Record, layer: Layer, dest: bytes) -> None:
    """Whether the result still stands alone, or still does not."""
    had, has = record.facts.get("backing") is not None, isinstance(layer, Qcow2) and layer.backing_name is not None
    if had != has:
        words = (
            "the migrated image has a backing file now, and had none" if has else "the migrated image had a backing file, and has none now"
        )
        raise ImageChanged(words, dest, hint=_KEPT + " Delete the original by hand if you are sure.")


def _require_something_left(retired: bytes, fd: int, dest: bytes, format_name: str) -> None:
    """A result that was written since holds at least one block as the original does: guests do not change all that they have.

    Ends at the first such block, which is mostly the first. Nothing is said of encrypted images, and of results that only qemu-img reads.

    :raises ImageChanged: nothing of the original is left in it.
    """
    with Source(retired) as source:
        if Qcow1(source.fd, retired).header.crypt_method:
            return
        chain = [open_reader("qcow", source.fd, retired)]
        reader, there, anything = open_reader(format_name, fd, dest), bytearray(BLOCK), False
        for block, data in guest_blocks(chain):
            if not any(data):
                continue
            anything = True
            there[:] = bytes(BLOCK)
            with memoryview(there) as view:
                reader.fill(block, view, lowest=True)
            if there == data:
                return
    if anything:
        raise ImageChanged(
            "nothing of what the original holds is left in the migrated image: guests do not write all of a disk anew",
            dest,
            hint=_KEPT + " Look at the migrated image; roll back, or delete the original by hand if you are sure.",
        )


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
