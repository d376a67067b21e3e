# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's domains: who uses an image, what stands in the way, and following it to its result and back.

A record holds the disks that were changed, not whole definitions: no password of a graphics console gets into
it, and a rollback keeps what somebody changed elsewhere in the definition meanwhile.
"""

import fcntl
import os
import time
from contextlib import contextmanager
from typing import AbstractSet, Any, Dict, FrozenSet, Iterable, Iterator, List, Optional, Tuple

from .._errors import ImageInUse, QcowError, ToolMissing
from .._host.files import open_source
from .._host.in_use import find_users
from .._libvirt import api, control, domain_xml, redefine
from .._libvirt.inventory import DomainUse, Inventory, domains_of, survey
from .._paths import encode_exact, show
from .record import Record
from .references import Updater
from .request import Request

FOLLOW = "follow"
REFUSE = "refuse"
IGNORE = "ignore"

_CLOSING_SECONDS = 30.0
_LOOK_SECONDS = 0.1
# Asking libvirt about all domains again for each of thousands of images would cost more than the images. Whether a domain runs is
# asked anew whenever its definition is about to change.
_FRESH_SECONDS = 10.0


class PendingPivot:
    """One disk of a running domain that writes to a snapshot's overlay: it pivots to the result when that is there."""

    def __init__(self, connection: api.Connection, snapshot: control.Snapshot, planned: redefine.Repoint, request: Request) -> None:
        self.planned = planned
        self.src = request.src
        self.done = False
        self.snapshot = snapshot._replace(overlays=tuple(item for item in snapshot.overlays if item.target in planned.targets))
        self._connection, self._bandwidth = connection, request.bandwidth

    def pivot(self, dest: bytes) -> None:
        """Bring the result up to date, pivot to it, and make the definition say so.

        :raises QcowError: the domain runs on, on its overlay or on the result.
        """
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


class Domains(Updater):
    """Points the definitions of libvirt domains. A host without libvirt has none, and nothing is done.

    :param raw_allowed: a v1 image may be followed as an image although a domain declares it raw.
    """

    fact = "domains"

    def __init__(self, uri: str = api.DEFAULT_URI, *, raw_allowed: bool = False) -> None:
        self.uri = uri
        self.pending: List[PendingPivot] = []
        self._raw_allowed = raw_allowed
        self._only: Optional[FrozenSet[str]] = None
        self._survey = None  # type: Optional[Inventory]
        self._asked = 0.0

    def survey(self) -> Inventory:
        """What libvirt knows, at most seconds old."""
        if self._survey is None or time.monotonic() - self._asked > _FRESH_SECONDS:
            self._survey = survey(self.uri)
            self._asked = time.monotonic()
        return self._survey

    def restrict(self, uuids: Iterable[str]) -> None:
        """Change no other domains than these from here on."""
        self._only = frozenset(uuids)

    def forget(self) -> None:
        """Ask again: domains have been stopped, started or moved."""
        self._survey = None

    def running(self, path: bytes) -> Dict[str, str]:
        """The running domains that use the image: their names by their UUIDs."""
        answer = self.survey()
        return {uuid: answer.domains[uuid].name for uuid in active(answer, answer.users_of(path))}

    def definitions(self, path: bytes) -> List[DomainUse]:
        """Where definitions name the image."""
        return [use for use in self.survey().users_of(path) if use.where == "definition"]

    def declared_formats(self) -> Tuple[Tuple[bytes, str], ...]:
        """What definitions declare files to be, so that a backing file is taken for nothing else. Where they disagree, raw is the safe one."""
        if self._raw_allowed:
            return ()
        found = {(use.path, use.declared_format) for use in self.survey().uses if use.where == "definition" and use.declared_format}
        return tuple(sorted(found, key=lambda item: (item[1] == "raw", item)))

    def users(self, path: bytes) -> List[Dict[str, Any]]:
        """Who uses the image, for results and reports."""
        return [described(use) for use in self.survey().users_of(path)]

    def against(self, src: bytes, move: Optional[redefine.Move] = None) -> List[str]:
        """Why the domains that use this v1 image could not follow it; for the plan, before anything is converted.

        :param move: what is to become of it, where that is known.
        """
        answer = self.survey()
        uses = answer.users_of(src)
        if uses and not answer.complete:
            return ["{0} Domain {1} uses the image and could not be pointed to the result.".format(answer.reason, uses[0].domain)]
        raw = [] if self._raw_allowed else [why + " Or set allow_declared_raw=true, which corrects it." for why in declared_raw(uses)]
        return raw + redefine.obstacles(answer, uses, move)

    def refresh_pools(self, paths: List[bytes]) -> List[api.Refreshed]:
        """Make the active pools that hold these files look again: once, when a whole batch is done, because a refresh reads every volume.

        :raises ToolFailed: libvirt cannot list its pools.
        """
        if self.survey().source != "libvirt":
            return []
        connection = api.connect(self.uri, readonly=False)
        try:
            return api.refresh_pools(connection, paths)
        finally:
            api.close(connection)

    def refreshed(self, paths: List[bytes]) -> List[str]:
        """As :meth:`refresh_pools`; what has not been refreshed is told in words, because it undoes nothing of what was done."""
        try:
            pools = self.refresh_pools(paths) if paths else []
        except QcowError as error:
            return [str(error)]
        return ["pool {0} was not refreshed: {1}".format(pool.name, pool.reason) for pool in pools if pool.reason not in (None, "inactive")]

    def repoint(self, record: Record) -> None:
        """See :class:`Updater`.

        :raises ImageInUse: a domain runs, or cannot follow for another reason.
        :raises ToolMissing: a domain uses the image, and libvirt cannot be asked to change it.
        """
        src, dest = record.path_of("src"), record.path_of("dest")
        for pending in self.pending:
            if pending.src == src:
                self._remember(record, [pending.planned])
                pending.pivot(dest)
                self.forget()
        answer = self.survey()
        uses = answer.users_of(src) + answer.users_of(dest)
        if uses and not answer.complete:
            raise ToolMissing(
                "domain {0} uses the image, and libvirt cannot be asked to change that: {1}".format(uses[0].domain, answer.reason), path=src
            )
        if answer.source != "libvirt" or not uses:
            return
        concerned = [use for use in answer.users_of(src) if self._only is None or use.uuid in self._only]
        against = redefine.obstacles(answer, concerned, redefine.Move(src, dest, record.facts["format"]))
        if against:
            raise ImageInUse(" ".join(against), src, reason="domain")
        with _one_at_a_time(record):
            self._follow(record, answer)

    def _follow(self, record: Record, answer: Inventory) -> None:
        src, dest = record.path_of("src"), record.path_of("dest")
        connection = api.connect(self.uri, readonly=False)
        try:
            flattened = bool(record.facts.get("chain")) and not record.facts.get("backing")
            move = redefine.Move(src, dest, record.facts["format"], flattened)
            planned = [item for item in redefine.plan(connection, answer, [move], self._only) if item.changed]
            if planned:
                self._remember(record, planned)
            for item in planned:
                redefine.apply(connection, item)
            if any(change.volume for item in planned for change in item.changes):
                api.refresh_pools(connection, [src, dest])  # such a domain starts only when its pool knows the volume
        finally:
            api.close(connection)

    def _remember(self, record: Record, planned: List[redefine.Repoint]) -> None:
        """What a crash in the middle left of an earlier attempt stays: those definitions have been changed already."""
        known = {entry["uuid"]: entry for entry in record.facts.get(self.fact) or []}
        for item in planned:
            entry = {
                "domain": item.domain,
                "uuid": item.uuid,
                "before": domain_xml.disk_elements(item.before, item.targets),
                "after": domain_xml.disk_elements(item.after, item.targets),
                "back": [change._asdict() for change in domain_xml.reverse(item.before, item.changes)],
            }
            known.setdefault(item.uuid, entry)
        record.note(record.state, **{self.fact: [known[uuid] for uuid in sorted(known)]})

    def restore(self, record: Record) -> None:
        """See :class:`Updater`. A domain that was undefined since has nothing to be pointed back.

        :raises ImageInUse: a domain runs.
        :raises ToolMissing: libvirt cannot be asked.
        """
        connection = api.connect(self.uri, readonly=False)
        try:
            for entry in record.facts[self.fact]:
                known = api.find_definition(connection, entry["uuid"])
                if known is not None:
                    redefine.restore(connection, _back(known[0], entry))
            if any(change["volume"] for entry in record.facts[self.fact] for change in entry["back"]):
                api.refresh_pools(connection, [record.path_of("src"), record.path_of("dest")])
        finally:
            api.close(connection)

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :class:`Updater`."""
        answer = self.survey()
        if answer.source != "libvirt":
            return [answer.reason or "libvirt is not on this host any more"]
        found = []
        for entry in record.facts.get(self.fact) or []:
            known = answer.domains.get(entry["uuid"])
            if known is not None and known.active:
                found.append("domain {0} is {1}: shut it down first".format(known.name, known.state))
            if known is not None and known.managed_save:
                found.append("domain {0} has a saved memory state that continues on the migrated image".format(known.name))
        uses = answer.users_of(record.path_of("dest"))
        return found + redefine.obstacles(answer, [use for use in uses if use.where.startswith(("snapshot:", "checkpoint:"))])


class RefusingDomains(Domains):
    """An image that a domain uses is not migrated, and a migration that domains have followed is not undone."""

    def against(self, src: bytes, move: Optional[redefine.Move] = None) -> List[str]:
        """See :meth:`Domains.against`."""
        return ["It is used by domain {0} ({1}).".format(use.domain, use.target) for use in self.survey().users_of(src)]

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :class:`Updater`."""
        return ["domain {0} was pointed to the result".format(entry["domain"]) for entry in record.facts.get(self.fact) or []]


class IgnoredDomains(Domains):
    """Leaves domains to the operator. What an earlier run has begun to re-point is taken back all the same when its result is."""

    def survey(self) -> Inventory:
        """See :meth:`Domains.survey`."""
        return Inventory("none", complete=True)


class LostDomains(IgnoredDomains):
    """For rollbacks on hosts whose libvirt is gone: definitions stay as they are."""

    def restore(self, record: Record) -> None:
        """See :class:`Updater`."""

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :class:`Updater`."""
        return []


@contextmanager
def _one_at_a_time(record: Record) -> Iterator[None]:
    """Two workers whose images belong to one domain must not change its definition at once."""
    fd = os.open(os.path.dirname(record.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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


def described(use: DomainUse) -> Dict[str, Any]:
    """A use as results and reports state it."""
    facts = use._asdict()
    facts.update(path=show(use.path), path_base64=encode_exact(use.path))
    return dict(facts)


def declared_raw(uses: List[DomainUse]) -> List[str]:
    """A v1 image that a domain declares raw is what its guest wrote there, or a mistake: never to be followed as an image."""
    return [
        "Domain {0} declares {1} ({2}) as raw, but it begins like a QCOW image. Its guest may have written that to be given another file of the "
        "host. If it is an image by mistake of the definition, correct the type there first (virsh edit {0}).".format(
            use.domain, show(use.path), use.target
        )
        for use in uses
        if use.declared_format == "raw" and use.where in ("definition", "live")
    ]


def active(answer: Inventory, uses: List[DomainUse]) -> List[str]:
    """The UUIDs of the running domains among these uses."""
    return [uuid for uuid in domains_of(uses) if answer.domains[uuid].active]


def overlay_path(src: bytes, identifier: str) -> bytes:
    """Where a running domain writes while the image below it is converted."""
    return os.path.join(os.path.dirname(src), b".vmimage-qcow." + identifier.encode("ascii") + b".overlay")
