# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definitions of domains, changed as records say and back, on a host that has libvirt."""

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Any, Dict, FrozenSet, Iterator, List, Optional

from .._host.files import open_source
from .._host.in_use import find_users
from .._libvirt import api, control, domain_xml, redefine
from .._libvirt.inventory import Inventory, Move
from .domain_references import FACT
from .record import Record
from .request import Request

_CLOSING_SECONDS = 30.0
_LOOK_SECONDS = 0.1


class PendingPivot:
    """One disk of a running domain that writes to a snapshot's overlay: it pivots to the result when that is there."""

    def __init__(self, connection: api.Connection, snapshot: control.Snapshot, planned: redefine.Repoint, request: Request) -> None:
        self.planned = planned
        self.src = request.src
        self.done = False
        self.snapshot = snapshot._replace(overlays=tuple(item for item in snapshot.overlays if item.target in planned.targets))
        self._connection, self._bandwidth = connection, request.bandwidth

    def pivot(self, record: Record) -> None:
        """Bring the result up to date, pivot to it, and make the definition say so.

        :raises QcowError: the domain runs on, on its overlay or on the result.
        """
        dest = record.path_of("dest")
        remember(record, [self.planned])
        moved = {layer.target: dest for layer in self.snapshot.overlays}
        control.pivot(self._connection, self.snapshot, moved, bandwidth=self._bandwidth)
        self.done = True
        now = api.definition(self._connection, api.domain(self._connection, self.snapshot.uuid))
        redefine.agree(self._connection, self.planned, control.definition_after(self.snapshot, now))
        _wait_until_closed(self.src)


def _wait_until_closed(path: bytes) -> None:
    """QEMU closes the old image a moment after the pivot has been reported. Who has it open for longer will be named by whoever needs it free."""
    fd = open_source(path)
    try:
        end = time.monotonic() + _CLOSING_SECONDS
        while find_users(fd) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
    finally:
        os.close(fd)


def follow(uri: str, record: Record, answer: Inventory, only: Optional[FrozenSet[str]]) -> None:
    """Point definitions to a record's result, and note in it what they were; one worker of the host at a time.

    :param only: the UUIDs of the domains that may be changed, where not all of them may.
    """
    with _one_at_a_time(record):
        _follow(uri, record, answer, only)


def _follow(uri: str, record: Record, answer: Inventory, only: Optional[FrozenSet[str]]) -> None:
    src, dest = record.path_of("src"), record.path_of("dest")
    connection = api.connect(uri, readonly=False)
    try:
        flattened = bool(record.facts.get("chain")) and not record.facts.get("backing")
        move = Move(src, dest, record.facts["format"], flattened)
        planned = [item for item in redefine.plan(connection, answer, [move], only) if item.changed]
        if planned:
            remember(record, planned)
        for item in planned:
            redefine.apply(connection, item)
        if any(change.volume for item in planned for change in item.changes):
            api.refresh_pools(connection, [src, dest])  # such a domain starts only when its pool knows the volume
    finally:
        api.close(connection)


def remember(record: Record, planned: List[redefine.Repoint]) -> None:
    """Note what is about to be changed. What a crash in the middle left of an earlier attempt stays: those definitions have been changed already."""
    known = {entry["uuid"]: entry for entry in record.facts.get(FACT) or []}
    for item in planned:
        entry = {
            "domain": item.domain,
            "uuid": item.uuid,
            "before": domain_xml.disk_elements(item.before, item.targets),
            "after": domain_xml.disk_elements(item.after, item.targets),
            "back": [change._asdict() for change in domain_xml.reverse(item.before, item.changes)],
        }
        known.setdefault(item.uuid, entry)
    record.note(record.state, **{FACT: [known[uuid] for uuid in sorted(known)]})


def restore(uri: str, record: Record) -> None:
    """Point definitions back as the record says. A domain that was undefined since has nothing to be pointed back.

    :raises ImageInUse: a domain runs.
    :raises ToolMissing: libvirt cannot be asked.
    """
    connection = api.connect(uri, readonly=False)
    try:
        for entry in record.facts[FACT]:
            known = api.find_definition(connection, entry["uuid"])
            if known is not None:
                redefine.restore(connection, _back(known[0], entry))
        if any(change["volume"] for entry in record.facts[FACT] for change in entry["back"]):
            api.refresh_pools(connection, [record.path_of("src"), record.path_of("dest")])
    finally:
        api.close(connection)


def _back(now: str, entry: Dict[str, Any]) -> str:
    """A definition with the recorded disks as they were before.

    A disk that still is what we made of it gets its old text back. One that changed since (another image of its chain was migrated after this
    one, or somebody edited it) gets back only the layers of this image, so that records may be undone in any order.
    """
    present = domain_xml.disk_elements(now, entry["before"])
    whole = {target for target, text in present.items() if text == entry["after"][target]}
    now = domain_xml.put_back(now, {target: entry["before"][target] for target in whole})
    for facts in entry["back"]:
        change = domain_xml.Change(**facts)
        if change.target in present and change.target not in whole:
            try:
                now = domain_xml.repoint(now, [change])
            except KeyError:
                pass  # that layer is not declared any more
    return now


@contextmanager
def _one_at_a_time(record: Record) -> Iterator[None]:
    """Two workers whose images belong to one domain must not change its definition at once."""
    fd = os.open(os.path.dirname(record.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def refresh_pools(uri: str, paths: List[bytes]) -> List[api.Refreshed]:
    """Make the active pools that hold these files look again.

    :raises ToolFailed: libvirt cannot list its pools.
    """
    connection = api.connect(uri, readonly=False)
    try:
        return api.refresh_pools(connection, paths)
    finally:
        api.close(connection)
