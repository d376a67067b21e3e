# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point the disks of defined domains to another image, as ``virsh edit`` would, and back again.

A definition is read with its passwords and without live state, edited as text, defined and read back. Nothing of it but the
disk's path and driver type changes, and a definition that already says so is not touched.
"""

import os
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from .._directories import real_path
from .._errors import ImageInUse, QcowError, VerificationFailed
from .._paths import show
from . import api, domain_xml, option_text, xml_text
from .inventory import DomainUse, Inventory, Move, domains_of


class Repoint(NamedTuple):
    """What is to happen, or did, to one definition. ``before`` and ``after`` are exact and hold passwords: never show them."""

    domain: str
    uuid: str
    active: bool
    before: str
    after: str
    changes: Tuple[domain_xml.Change, ...]

    @property
    def targets(self) -> Tuple[str, ...]:
        """The disks concerned."""
        return tuple(sorted({change.target for change in self.changes}))

    @property
    def changed(self) -> bool:
        """Do the two differ in meaning?"""
        return xml_text.canonical(self.before) != xml_text.canonical(self.after)

    def diff(self) -> Dict[str, str]:
        """What the disks name before and after, as Ansible shows a diff."""
        texts = [
            "".join(domain_xml.drawn(self.domain, change) + "\n" for change in changes)
            for changes in (domain_xml.reverse(self.before, self.changes), self.changes)
        ]
        header = "domain {0}".format(self.domain)
        return {"before_header": header, "after_header": header, "before": texts[0], "after": texts[1]}


def obstacles(answer: Inventory, uses: Iterable[DomainUse], move: Optional[Move] = None) -> List[str]:
    """Why these uses cannot follow the image, each with the way out; empty where they can. Running is not one of them.

    :param move: what becomes of the image, where that is known.
    """
    found = []
    for use in uses:
        if use.where.startswith("snapshot:"):
            name = use.where.partition(":")[2]
            found.append(
                "Snapshot {0} of domain {1} remembers {2} for {3}: reverting to it would need the old image. "
                "Merge and delete the snapshot first (virsh blockcommit, virsh snapshot-delete {1} {0}; "
                "--metadata if only its metadata is left).".format(name, use.domain, show(use.path), use.target)
            )
        elif use.where.startswith("checkpoint:"):
            name = use.where.partition(":")[2]
            found.append(
                "Checkpoint {0} of domain {1} belongs to {2} ({3}). Delete it first (virsh checkpoint-delete {1} {0}); "
                "the next backup is a full one.".format(name, use.domain, show(use.path), use.target)
            )
        elif use.where == "other" and not stays_right(use, move):
            found.append(_to_be_edited(use, move))
    for uuid in domains_of(uses):
        known = answer.domains[uuid]
        if known.managed_save:
            found.append(
                "Domain {0} has a saved memory state that continues on the old image. Start it and shut it down, or drop the state "
                "(virsh managedsave-remove {0}).".format(known.name)
            )
        if not known.persistent:
            found.append("Domain {0} is transient: it has no definition to change. Change what creates it.".format(known.name))
    return found


def stays_right(use: DomainUse, move: Optional[Move]) -> bool:
    """Whether what a domain says outside its disks is true of the result too: it has the image's name, and no other format is stated."""
    return move is not None and move.src == move.dest and use.declared_format in (None, move.format)


def _to_be_edited(use: DomainUse, move: Optional[Move]) -> str:
    said = use.text or ""
    text = "Domain {0} names {1} outside its disks, in <{2}>: {3}. Nothing here edits that. ".format(
        use.domain, show(use.path), use.device, said
    )
    if use.declared_format not in (None, move.format if move is not None else "qcow2"):
        text += "It states the format {0}, so a result under the same name would not help. Shut".format(use.declared_format)
    else:
        text += "Let the result keep the name (keep_name=true). Or shut"
    text += " the domain down, migrate the image with domains=ignore, and "
    new = None if move is None else option_text.replaced(said, use.path, move.dest, use.declared_format, move.format)
    if new is None or new == said:
        return (
            text
            + "change the name, and the format wherever it is stated, by hand before the domain starts again (virsh edit {0}).".format(
                use.domain
            )
        )
    return text + "before the domain starts again, write there: {1} (virsh edit {0}).".format(use.domain, new)


def plan(connection: api.Connection, answer: Inventory, moves: Iterable[Move], domains: Optional[Iterable[str]] = None) -> List[Repoint]:
    """What has to change for these moves; nothing is changed. Definitions that already agree are in it, unchanged.

    ``domains`` (names or UUIDs) limits it. Live state, snapshots and whatever is not in the definition is left out here:
    :func:`obstacles` speaks of it.

    :raises QcowError: a definition cannot be read, or cannot name the new file.
    """
    limit = None if domains is None else set(domains)
    wanted: Dict[str, List[domain_xml.Change]] = {}
    for move in moves:
        for use in answer.users_of(move.src) + (answer.users_of(move.dest) if move.dest != move.src else []):
            if use.where != "definition" or (limit is not None and not limit & {use.domain, use.uuid}):
                continue
            changes = wanted.setdefault(use.uuid, [])
            change = _change(answer, use, move)
            if change not in changes:
                changes.append(change)
    plans = []
    for uuid, changes in wanted.items():
        handle = api.domain(connection, uuid)
        before = api.definition(connection, handle)
        try:
            after = domain_xml.repoint(before, changes)
        except (KeyError, ValueError) as error:
            raise QcowError(
                "The definition of {0} is not what it was a moment ago: {1}.".format(handle.name(), error),
                reason="changed",
                hint="Nothing was changed. Run again.",
            ) from error
        plans.append(Repoint(handle.name(), uuid, bool(handle.isActive()), before, after, tuple(changes)))
    return sorted(plans, key=lambda item: item.domain)


def _change(answer: Inventory, use: DomainUse, move: Move) -> domain_xml.Change:
    path = api.describe(move.dest)
    if use.volume is not None:
        pool = api.pool_for(answer.pools, move.dest, use.pool)
        if pool is not None:
            return domain_xml.Change(use.target, use.depth, path, move.format, pool.name, os.path.basename(path), not move.alone)
    elif real_path(use.path) == real_path(move.dest):
        # It is there already, under a name of its own (a link, another mount): the name is the operator's.
        path = api.describe(use.path)
    return domain_xml.Change(use.target, use.depth, path, move.format, None, None, not move.alone)


def apply(connection: api.Connection, planned: Repoint, *, running: bool = False) -> bool:
    """Define what was planned and read it back; true where something changed. ``running``: the domain may be active (its live state
    was moved by a block job, or is about to end).

    :raises ImageInUse: the domain runs and may not.
    :raises QcowError: the definition is no longer the one that was planned for.
    :raises VerificationFailed: libvirt made something else of it; the old definition is back.
    """
    if not planned.changed:
        return False
    handle = api.domain(connection, planned.uuid)
    if handle.isActive() and not running:
        raise ImageInUse(
            "Domain {0} is {1}: its disks cannot be moved under it.".format(planned.domain, api.state_name(connection, handle)),
            hint="Its definition was left as it was. Shut it down first.",
        )
    now = api.definition(connection, handle)
    if xml_text.canonical(now) != xml_text.canonical(planned.before):
        raise QcowError(
            "The definition of {0} was changed by another program in the meantime.".format(planned.domain),
            reason="changed",
            hint="It was left as it is. Run again.",
        )
    _define(connection, planned.domain, planned.after)
    found = api.definition(connection, api.domain(connection, planned.uuid))
    if xml_text.canonical(found) != xml_text.canonical(planned.after):
        _define(connection, planned.domain, planned.before)
        raise VerificationFailed(
            "libvirt did not take the new definition of {0} as it was given.".format(planned.domain),
            hint="The old definition is in force again.",
            difference=difference(planned.after, found),
        )
    return True


def agree(connection: api.Connection, planned: Repoint, cleaned: str) -> bool:
    """After a block job moved a running domain: make its definition what was planned; true where something changed. ``cleaned`` is the
    definition of now without what the job left in it; edits that somebody else made meanwhile are kept.

    :raises VerificationFailed: libvirt made something else of it.
    """
    after = domain_xml.repoint(cleaned, planned.changes)
    if xml_text.canonical(after) == xml_text.canonical(planned.after):
        after = planned.after
    before = api.definition(connection, api.domain(connection, planned.uuid))
    return apply(connection, planned._replace(before=before, after=after), running=True)


def restore(connection: api.Connection, xml: str, *, running: bool = False) -> bool:
    """Put a recorded definition in force again; true where something changed.

    :raises ImageInUse: the domain runs and may not.
    :raises VerificationFailed: what libvirt has afterwards is not the recorded definition.
    :raises QcowError: the record is no domain definition, or libvirt refuses it.
    """
    try:
        name, uuid = domain_xml.identity(xml)
    except ValueError as error:
        raise QcowError("The recorded definition cannot be read: {0}.".format(error), reason="state") from error
    try:
        handle = connection.handle.lookupByUUIDString(uuid)
    except connection.library.libvirtError:
        handle = None  # somebody undefined it: defining brings it back
    if handle is not None:
        if handle.isPersistent() and api.definition(connection, handle) == xml:
            return False
        if handle.isActive() and not running:
            raise ImageInUse("Domain {0} is running.".format(name), hint="Its definition was left as it was. Shut it down first.")
    _define(connection, name, xml)
    found = api.definition(connection, api.domain(connection, uuid))
    if xml_text.canonical(found) != xml_text.canonical(xml):
        raise VerificationFailed(
            "libvirt did not take the recorded definition of {0} as it was given.".format(name),
            hint="The record is intact; compare it with virsh dumpxml --inactive --security-info {0}.".format(name),
            difference=difference(xml, found),
        )
    return True


def _define(connection: api.Connection, name: str, xml: str) -> None:
    with api.reported(connection, "libvirt refuses the definition of {0}".format(name), hint="The definition was left as it was."):
        connection.handle.defineXML(xml)


def difference(wanted: str, found: str) -> List[str]:
    """The lines in which two definitions differ in meaning, secrets masked; each begins with ``-`` (missing) or ``+`` (unasked for)."""
    left, right = (xml_text.canonical(domain_xml.mask(xml)).splitlines() for xml in (wanted, found))
    missing = ["-" + line.strip() for line in left if line not in right]
    return (missing + ["+" + line.strip() for line in right if line not in left])[:20]
