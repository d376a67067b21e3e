# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's domains as keepers of references: who uses an image, what stands in the way, and following the result and back.

A record holds the disks that were changed, not whole definitions: no password of a graphics console gets into
it, and a rollback keeps what somebody changed elsewhere in the definition meanwhile.
"""

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .._errors import ImageInUse, ToolMissing
from .._libvirt import api, domain_xml, redefine
from .._libvirt.inventory import DomainUse, Survey, domains_of, survey
from .._paths import encode_exact, show
from .record import Record
from .references import Keeper

# Asking libvirt about all domains again for each of thousands of images would cost more than the images. Whether a domain runs is
# asked anew whenever its definition is about to change.
_FRESH_SECONDS = 10.0


class Domains(Keeper):
    """Points the definitions of libvirt domains. A host without libvirt has none, and nothing is done."""

    fact = "domains"

    def __init__(self, uri: str = api.DEFAULT_URI, *, raw_allowed: bool = False) -> None:
        self.uri = uri
        self._raw_allowed = raw_allowed
        self.live: List[Any] = []  # running domains that wait for results, see .visits.Moving
        self._survey = None  # type: Optional[Survey]
        self._asked = 0.0

    def survey(self) -> Survey:
        """What libvirt knows, at most seconds old."""
        if self._survey is None or time.monotonic() - self._asked > _FRESH_SECONDS:
            self._survey = survey(self.uri)
            self._asked = time.monotonic()
        return self._survey

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

    def against(self, src: bytes) -> List[str]:
        """Why the domains that use this v1 image could not follow it; for the plan, before anything is converted."""
        answer = self.survey()
        uses = answer.users_of(src)
        if uses and not answer.complete:
            return ["{0} Domain {1} uses the image and could not be pointed to the result.".format(answer.reason, uses[0].domain)]
        return ([] if self._raw_allowed else declared_raw(uses)) + redefine.obstacles(answer, uses)

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

    def repoint(self, record: Record) -> None:
        """See :class:`Keeper`.

        :raises ImageInUse: a domain runs, or cannot follow for another reason.
        :raises ToolMissing: a domain uses the image, and libvirt cannot be asked to change it.
        """
        src, dest = record.path_of("src"), record.path_of("dest")
        for moving in self.live:
            if moving.src == src:
                self._remember(record, [moving.planned])
                moving.switch(dest)
                self.forget()
        answer = self.survey()
        uses = answer.users_of(src) + answer.users_of(dest)
        if uses and not answer.complete:
            raise ToolMissing(
                "domain {0} uses the image, and libvirt cannot be asked to change that: {1}".format(uses[0].domain, answer.reason), path=src
            )
        if answer.source != "libvirt" or not uses:
            return
        against = redefine.obstacles(answer, answer.users_of(src))
        if against:
            raise ImageInUse(" ".join(against), src, reason="domain")
        with _one_at_a_time(record):
            self._follow(record, answer)

    def _follow(self, record: Record, answer: Survey) -> None:
        src, dest = record.path_of("src"), record.path_of("dest")
        connection = api.connect(self.uri, readonly=False)
        try:
            flattened = bool(record.facts.get("chain")) and not record.facts.get("backing")
            move = redefine.Move(src, dest, record.facts["format"], flattened)
            planned = [item for item in redefine.plan(connection, answer, [move]) if item.changed]
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
        """See :class:`Keeper`. A domain that was undefined since has nothing to be pointed back.

        :raises ImageInUse: a domain runs.
        :raises ToolMissing: libvirt cannot be asked.
        """
        connection = api.connect(self.uri, readonly=False)
        try:
            for entry in record.facts[self.fact]:
                wanted = self._wanted(connection, entry)
                if wanted is not None:
                    redefine.restore(connection, wanted)
            if any(change["volume"] for entry in record.facts[self.fact] for change in entry["back"]):
                api.refresh_pools(connection, [record.path_of("src"), record.path_of("dest")])
        finally:
            api.close(connection)

    def _wanted(self, connection: api.Connection, entry: Dict[str, Any]) -> Optional[str]:
        """What the definition of now is to become; ``None`` where the domain is gone."""
        try:
            handle = connection.handle.lookupByUUIDString(entry["uuid"])
        except connection.library.libvirtError as error:
            if error.get_error_code() == connection.library.VIR_ERR_NO_DOMAIN:
                return None
            raise
        return _back(api.definition(connection, handle), entry)

    def obstacles(self, record: Record) -> List[str]:
        """See :class:`Keeper`."""
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


def active(answer: Survey, uses: List[DomainUse]) -> List[str]:
    """The UUIDs of the running domains among these uses."""
    return [uuid for uuid in domains_of(uses) if answer.domains[uuid].active]


def overlay_path(src: bytes, identifier: str) -> bytes:
    """Where a running domain writes while the image below it is converted."""
    return os.path.join(os.path.dirname(src), b".vmimage-qcow." + identifier.encode("ascii") + b".overlay")
