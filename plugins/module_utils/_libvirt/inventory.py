# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which libvirt domains use an image: asked once for the whole host (see ``survey``), then answered per image from memory.

What asks libvirt and changes its definitions is not imported where there is none: see :func:`is_installed`.
"""

import glob
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from .._directories import real_path, status_of
from .._errors import QcowError
from .._paths import show

if TYPE_CHECKING:
    from . import api, domain_xml

DEFAULT_URI = "qemu:///system"

DEFINITIONS = "etc/libvirt/qemu/*.xml"
"""Where libvirt's QEMU driver keeps the definitions of domains (as root), below the root directory."""


def is_installed() -> bool:
    """Whether this host may have domains: libvirt can be asked, or has left definitions."""
    return "libvirt" in sys.modules or find_spec("libvirt") is not None or bool(glob.glob(os.path.join("/", DEFINITIONS)))


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


class Mention(NamedTuple):
    """A text outside disks that may name images."""

    domain: Domain
    said: "domain_xml.Mention"
    paths: FrozenSet[bytes]  # that it may name, without symbolic links
    text: str  # what it says, passwords masked


class Move(NamedTuple):
    """The image at ``src`` is now ``dest``, in ``format`` (libvirt's driver type). ``alone``: the result has no backing file."""

    src: bytes
    dest: bytes
    format: str
    alone: bool = False


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
        self._mentions: List[Mention] = []
        self._by_name: Dict[bytes, List[DomainUse]] = {}
        self._by_inode: Dict[Tuple[int, int], List[DomainUse]] = {}

    def users_of(self, path: bytes) -> List[DomainUse]:
        """Every use of that file, under whatever name: by real path, and by device and inode while the file is there."""
        if not self.uses and not self._mentions:
            return []
        found = list(self._by_name.get(real_path(path), ()))
        found += [use for use in self._by_inode.get(_inode(path) or (0, 0), ()) if use not in found]
        text, real = show(path), real_path(path)
        for known, said, paths, shown in self._mentions:
            if real in paths or said.names(text):
                format_name, element = said.stated_format(text), said.element
                found.append(
                    DomainUse(known.name, known.uuid, element, element, format_name, known.state, "other", 0, path, None, None, shown)
                )
        return found

    def add(self, known: Domain, uses: Iterable[DomainUse], mentions: Iterable[Mention] = ()) -> None:
        """Take in what a text of this domain names (its definition, live state, a snapshot or a checkpoint)."""
        self.domains[known.uuid] = known
        self._mentions.extend(mentions)
        for use in uses:
            self._index(use)

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


def domains_of(uses: Iterable[DomainUse]) -> List[str]:
    """The UUIDs of the domains in these uses, each once, in their order."""
    found: List[str] = []
    for use in uses:
        if use.uuid not in found:
            found.append(use.uuid)
    return found
