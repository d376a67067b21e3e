# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which libvirt domains use an image: asked once for the whole host, then answered per image from memory.

Where libvirt cannot be asked (no libvirt-python, daemon down), the definitions it keeps as files still say who uses what. Such an
answer is marked incomplete: it is good for a report, and no ground to change anything on.
"""

import glob
import os
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from .._directories import real_path, status_of
from .._errors import QcowError
from .._paths import show, to_path
from . import api, domain_xml, xml_text
from .option_text import masked_text

# Where libvirt's QEMU and storage drivers keep what they know (as root): definitions, running domains, snapshots, checkpoints, pools.
_DEFINITIONS = "etc/libvirt/qemu/*.xml"
_RUNNING = "run/libvirt/qemu/*.xml"
_SNAPSHOTS = "var/lib/libvirt/qemu/{0}/*/*.xml"
_POOLS = "etc/libvirt/storage/*.xml"


class DomainUse(NamedTuple):
    """One place where one domain names the image.

    ``target`` is the guest's disk (``vda``), ``device`` disk, cdrom, floppy or lun; for ``where`` = ``other`` they are the element that
    names the path, and ``text`` is what it says, passwords masked. ``where``: ``definition``, ``live``, ``snapshot:NAME``,
    ``checkpoint:NAME`` or ``other``; ``depth`` 0 is the disk itself, 1 and more a backing file that the XML declares. ``declared_format``
    is the driver type, or what the element states; ``None`` where there is none.
    """

    domain: str
    uuid: str
    device: str
    target: str
    declared_format: Optional[str]
    state: str
    where: str
    depth: int
    path: bytes
    pool: Optional[str]
    volume: Optional[str]
    text: Optional[str] = None


class Domain(NamedTuple):
    """A domain of the host: ``state`` as virsh names it, and what ties it to the images it has now."""

    name: str
    uuid: str
    state: str
    active: bool
    persistent: bool
    managed_save: bool
    snapshots: Tuple[str, ...]
    checkpoints: Tuple[str, ...]


class _Mention(NamedTuple):
    domain: Domain
    said: domain_xml.Mention
    paths: FrozenSet[bytes]  # that it may name, without symbolic links


class Inventory:
    """What a host's libvirt knows about images.

    ``source``: ``libvirt`` (asked), ``files`` (read behind its back) or ``none`` (no libvirt here). ``complete`` false: the answer
    may lack users, ``reason`` says why.
    """

    def __init__(self, source: str, *, complete: bool, reason: Optional[str] = None) -> None:
        self.source = source
        self.complete = complete
        self.reason = reason
        self.domains: Dict[str, Domain] = {}
        self.pools: List[api.Pool] = []
        self.uses: List[DomainUse] = []
        self._mentions: List[_Mention] = []
        self._by_name: Dict[bytes, List[DomainUse]] = {}
        self._by_inode: Dict[Tuple[int, int], List[DomainUse]] = {}

    def users_of(self, path: bytes) -> List[DomainUse]:
        """Every use of that file, under whatever name: by real path, and by device and inode while the file is there."""
        if not self.uses and not self._mentions:
            return []
        found = list(self._by_name.get(real_path(path), ()))
        found += [use for use in self._by_inode.get(_inode(path) or (0, 0), ()) if use not in found]
        text, real = show(path), real_path(path)
        for known, said, paths in self._mentions:
            if real in paths or said.names(text):
                format_name, element = said.stated_format(text), said.element
                found.append(
                    DomainUse(
                        known.name,
                        known.uuid,
                        element,
                        element,
                        format_name,
                        known.state,
                        "other",
                        0,
                        path,
                        None,
                        None,
                        masked_text(said.value),
                    )
                )
        return found

    def pool_of(self, path: bytes) -> Optional[api.Pool]:
        """The directory pool in which the file is a volume."""
        return api.pool_for(self.pools, path)

    def add(self, known: Domain, xml: str, where: str) -> None:
        """Take in what a text of this domain names (its definition, live state, a snapshot or a checkpoint).

        :raises QcowError: libvirt's text is not XML that we understand.
        """
        try:
            disks, mentions = domain_xml.read_disks(xml), domain_xml.read_mentions(xml) if where == "definition" else []
        except ValueError as error:
            raise QcowError("The {0} of domain {1} cannot be read: {2}.".format(where, known.name, error), reason="libvirt") from error
        self.domains[known.uuid] = known
        self._mentions += [_Mention(known, said, frozenset(real_path(word) for word in said.words())) for said in mentions]
        for disk in disks:
            for depth, layer in enumerate(disk.layers):
                path = to_path(layer.path) if layer.path else None
                if layer.pool is not None and layer.volume is not None:
                    path = api.volume_path(self.pools, layer.pool, layer.volume)
                if path is not None and path.startswith(b"/"):
                    self._index(
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

    def _index(self, use: DomainUse) -> None:
        if use in self.uses:
            return
        self.uses.append(use)
        self._by_name.setdefault(real_path(use.path), []).append(use)
        inode = _inode(use.path)
        if inode is not None:
            self._by_inode.setdefault(inode, []).append(use)


def _inode(path: bytes) -> Optional[Tuple[int, int]]:
    try:
        status = status_of(real_path(path))
    except (QcowError, OSError):
        return None
    return status.st_dev, status.st_ino


def survey(uri: str = api.DEFAULT_URI, root: str = "/") -> Inventory:
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
            answer.add(known, xml, where)
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
    definitions = _texts(root, _DEFINITIONS)
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
        answer.add(known, xml, "definition")
        if name in running:
            answer.add(known, running[name], "live")
        for key, text in snapshots:
            answer.add(known, text, "snapshot:" + key)
        for key, text in checkpoints:
            answer.add(known, text, "checkpoint:" + key)
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


def domains_of(uses: Iterable[DomainUse]) -> List[str]:
    """The UUIDs of the domains in these uses, each once, in their order."""
    found: List[str] = []
    for use in uses:
        if use.uuid not in found:
            found.append(use.uuid)
    return found
