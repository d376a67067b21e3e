# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's domains: who uses an image, what stands in the way, and following it to its result and back.

A record holds the disks that were changed, not whole definitions: no password of a graphics console gets into
it, and a rollback keeps what somebody changed elsewhere in the definition meanwhile.
"""

import os
import time
from typing import TYPE_CHECKING, AbstractSet, Any, Dict, FrozenSet, Iterable, List, Optional, Tuple

from .._errors import ImageInUse, QcowError, ToolMissing
from .._libvirt.inventory import DEFAULT_URI, DomainUse, Inventory, Move, domains_of, is_installed
from .._paths import encode_exact, show
from .record import Record
from .references import Updater

if TYPE_CHECKING:
    from .._libvirt import api
    from .domain_definitions import PendingPivot

FOLLOW = "follow"
REFUSE = "refuse"
IGNORE = "ignore"

FACT = "domains"
"""Where a record holds the disks that were changed."""

# Asking libvirt about all domains again for each of thousands of images would cost more than the images. Whether a domain runs is
# asked anew whenever its definition is about to change.
_FRESH_SECONDS = 10.0


def ask(uri: str) -> Inventory:
    """What libvirt knows. All that asks it and changes its definitions is imported here, and only where there is libvirt."""
    if not is_installed():
        return Inventory("none", complete=True)
    from .._libvirt.survey import survey
    from . import domain_definitions  # noqa: F401  # an import that failed later would leave a migration half done

    return survey(uri)


class Domains(Updater):
    """Points the definitions of libvirt domains. A host without libvirt has none, and nothing is done.

    :param raw_allowed: a v1 image may be followed as an image although a domain declares it raw.
    """

    fact = FACT

    def __init__(self, uri: str = DEFAULT_URI, *, raw_allowed: bool = False) -> None:
        self.uri = uri
        self.pending: List[PendingPivot] = []
        self._raw_allowed = raw_allowed
        self._only: Optional[FrozenSet[str]] = None
        self._survey = None  # type: Optional[Inventory]
        self._asked = 0.0

    def survey(self) -> Inventory:
        """What libvirt knows, at most seconds old."""
        if self._survey is None or time.monotonic() - self._asked > _FRESH_SECONDS:
            self._survey = ask(self.uri)
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

    def against(self, src: bytes, move: Optional[Move] = None) -> List[str]:
        """Why the domains that use this v1 image could not follow it; for the plan, before anything is converted.

        :param move: what is to become of it, where that is known.
        """
        answer = self.survey()
        uses = answer.users_of(src)
        if not uses:
            return []
        if not answer.complete:
            return ["{0} Domain {1} uses the image and could not be pointed to the result.".format(answer.reason, uses[0].domain)]
        raw = [] if self._raw_allowed else [why + " Or set allow_declared_raw=true, which corrects it." for why in declared_raw(uses)]
        from .._libvirt.redefine import obstacles

        return raw + obstacles(answer, uses, move)

    def refresh_pools(self, paths: List[bytes]) -> "List[api.Refreshed]":
        """Make the active pools that hold these files look again: once, when a whole batch is done, because a refresh reads every volume.

        :raises ToolFailed: libvirt cannot list its pools.
        """
        if self.survey().source != "libvirt":
            return []
        from .domain_definitions import refresh_pools

        return refresh_pools(self.uri, paths)

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
                pending.pivot(record)
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
        from .._libvirt.redefine import obstacles
        from .domain_definitions import follow

        against = obstacles(answer, concerned, Move(src, dest, record.facts["format"]))
        if against:
            raise ImageInUse(" ".join(against), src, reason="domain")
        follow(self.uri, record, answer, self._only)

    def restore(self, record: Record) -> None:
        """See :class:`Updater`. A domain that was undefined since has nothing to be pointed back.

        :raises ImageInUse: a domain runs.
        :raises ToolMissing: libvirt cannot be asked.
        """
        from .domain_definitions import restore

        restore(self.uri, record)

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
        from .._libvirt.redefine import obstacles

        return found + obstacles(answer, [use for use in uses if use.where.startswith(("snapshot:", "checkpoint:"))])


class RefusingDomains(Domains):
    """An image that a domain uses is not migrated, and a migration that domains have followed is not undone."""

    def against(self, src: bytes, move: Optional[Move] = None) -> List[str]:
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
