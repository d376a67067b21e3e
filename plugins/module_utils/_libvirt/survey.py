# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asks libvirt about all domains of a host, running or not.

Where libvirt cannot be asked (no libvirt-python, daemon down), the definitions it keeps as files still say who uses what. Such an
answer is marked incomplete: it is good for a report, and no ground to change anything on.
"""

import glob
import os
from typing import Any, List, Optional, Tuple

from .._directories import real_path
from .._errors import QcowError
from .._paths import to_path
from . import api, domain_xml, xml_text
from .inventory import DEFAULT_URI, DEFINITIONS, Domain, DomainUse, Inventory, Mention
from .option_text import masked_text

# Where libvirt's QEMU and storage drivers keep what they know besides definitions (as root): running domains, snapshots, checkpoints, pools.
_RUNNING = "run/libvirt/qemu/*.xml"
_SNAPSHOTS = "var/lib/libvirt/qemu/{0}/*/*.xml"
_POOLS = "etc/libvirt/storage/*.xml"


def survey(uri: str = DEFAULT_URI, root: str = "/") -> Inventory:
    """Ask libvirt about all domains, running or not; without libvirt, read the files it keeps below ``root``.

    :raises ToolFailed: libvirt answers and then fails.
    :raises QcowError: what it answers is not readable.
    """
    try:
        connection = api.connect(uri, readonly=True)
    except QcowError as error:
        return _from_files(root, str(error))
    try:
        return survey_connection(connection)
    finally:
        api.close(connection)


def survey_connection(connection: api.Connection) -> Inventory:
    """The same over a connection that is open already (a read-only one is enough).

    :raises ToolFailed: libvirt fails.
    """
    answer = Inventory("libvirt", complete=True)
    answer.pools = api.pools(connection)
    library = connection.library
    with api.reported(connection, "The domains cannot be listed"):
        handles = connection.handle.listAllDomains()
    for handle in handles:
        try:
            texts = [("definition", handle.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE))]
            if handle.isActive():
                texts.append(("live", handle.XMLDesc()))
            snapshots = [(snapshot.getName(), snapshot.getXMLDesc()) for snapshot in _all(library, handle, "listAllSnapshots")]
            checkpoints = [(checkpoint.getName(), checkpoint.getXMLDesc()) for checkpoint in _all(library, handle, "listAllCheckpoints")]
            known = Domain(
                name=handle.name(),
                uuid=handle.UUIDString(),
                state=api.state_name(connection, handle),
                active=bool(handle.isActive()),
                persistent=bool(handle.isPersistent()),
                managed_save=_managed_save(library, handle),
                snapshots=tuple(sorted(name for name, unused in snapshots)),
                checkpoints=tuple(sorted(name for name, unused in checkpoints)),
            )
        except library.libvirtError as error:
            if error.get_error_code() == library.VIR_ERR_NO_DOMAIN:
                continue  # it ended between the list and now
            raise QcowError("libvirt does not describe a domain: {0}.".format(api.message(error)), reason="libvirt") from error
        texts += [("snapshot:" + name, xml) for name, xml in snapshots]
        texts += [("checkpoint:" + name, xml) for name, xml in checkpoints]
        for where, xml in texts:
            _take_in(answer, known, xml, where)
    return answer


def _all(library: Any, handle: Any, method: str) -> List:
    """What the domain has of a kind that not every libvirt and not every driver knows (checkpoints came with 5.6)."""
    unsupported = (library.VIR_ERR_NO_SUPPORT, library.VIR_ERR_OPERATION_UNSUPPORTED)
    if not hasattr(handle, method):
        return []
    try:
        return list(getattr(handle, method)())
    except library.libvirtError as error:
        if error.get_error_code() in unsupported:
            return []
        raise


def _managed_save(library: Any, handle: Any) -> bool:
    try:
        return bool(handle.hasManagedSaveImage())
    except library.libvirtError as error:
        if error.get_error_code() == library.VIR_ERR_NO_SUPPORT:
            return False
        raise


def _from_files(root: str, reason: str) -> Inventory:
    definitions = _texts(root, DEFINITIONS)
    if not definitions:
        return Inventory("none", complete=True)
    answer = Inventory("files", complete=False, reason=reason)
    running = dict(_texts(root, _RUNNING))
    for _path, xml in _texts(root, _POOLS):
        pool = api.pool_of_xml(xml, active=False)
        if pool is not None:
            answer.pools.append(pool)
    for name, xml in definitions:
        own, uuid = domain_xml.identity(xml)
        snapshots = _texts(root, _SNAPSHOTS.format("snapshot"), own)
        checkpoints = _texts(root, _SNAPSHOTS.format("checkpoint"), own)
        known = Domain(
            name=own,
            uuid=uuid,
            state="running" if name in running else "unknown",
            active=name in running,
            persistent=True,
            managed_save=os.path.exists(os.path.join(root, "var/lib/libvirt/qemu/save", own + ".save")),
            snapshots=tuple(key for key, unused in snapshots),
            checkpoints=tuple(key for key, unused in checkpoints),
        )
        _take_in(answer, known, xml, "definition")
        if name in running:
            _take_in(answer, known, running[name], "live")
        for key, text in snapshots:
            _take_in(answer, known, text, "snapshot:" + key)
        for key, text in checkpoints:
            _take_in(answer, known, text, "checkpoint:" + key)
    return answer


def _texts(root: str, pattern: str, directory: Optional[str] = None) -> List[Tuple[str, str]]:
    """``(file name without .xml, text)`` of the files that match; those of one directory where the pattern has one to choose."""
    found = []
    for path in sorted(glob.glob(os.path.join(root, pattern))):
        if directory is not None and os.path.basename(os.path.dirname(path)) != directory:
            continue
        try:
            with open(path, "rb") as file:
                text = file.read().decode("utf-8")
            xml_text.parse(text)
        except (OSError, ValueError):
            continue
        found.append((os.path.basename(path)[: -len(".xml")], text))
    return found


def _take_in(answer: Inventory, known: Domain, xml: str, where: str) -> None:
    """Add what a text of this domain names.

    :raises QcowError: libvirt's text is not XML that we understand.
    """
    try:
        disks, mentions = domain_xml.read_disks(xml), domain_xml.read_mentions(xml) if where == "definition" else []
    except ValueError as error:
        raise QcowError("The {0} of domain {1} cannot be read: {2}.".format(where, known.name, error), reason="libvirt") from error
    uses = []
    for disk in disks:
        for depth, layer in enumerate(disk.layers):
            path = to_path(layer.path) if layer.path else None
            if layer.pool is not None and layer.volume is not None:
                path = api.volume_path(answer.pools, layer.pool, layer.volume)
            if path is not None and path.startswith(b"/"):
                uses.append(
                    DomainUse(
                        known.name,
                        known.uuid,
                        disk.device,
                        disk.target,
                        layer.format,
                        known.state,
                        where,
                        depth,
                        path,
                        layer.pool,
                        layer.volume,
                    )
                )
    named = [Mention(known, said, frozenset(map(real_path, said.words())), masked_text(said.value)) for said in mentions]
    answer.add(known, uses, named)
