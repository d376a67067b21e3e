# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's domain XML as text: which disks it names, and the same text with some of them moved.

Pure: no libvirt, no files. An edit replaces attribute values where they stand, so comments, metadata, unknown namespaces, the order of
attributes and their quotes survive.
"""

import re
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from . import option_text
from .xml_text import Edit, Element, parse, parse_bytes

# Where a source keeps its path, by the type of its disk or backing store.
_PATH_ATTRIBUTE = {"file": "file", "block": "dev", "dir": "dir"}

_DISK_PLACES = (("devices", "domain"), ("devices", "inactiveDomain"), ("disks", "domainsnapshot"), ("disks", "domaincheckpoint"))

# What only XMLDesc with VIR_DOMAIN_XML_SECURE shows (libvirt's src/conf/domain_conf.c), as attribute or element.
_SECRET_ATTRIBUTES = ("passwd", "password")
_SECRET_ELEMENTS = ("cookie", "dhCert", "session")


class DiskSource(NamedTuple):
    """One image of a disk: the disk's own, or a backing store below it."""

    kind: str
    path: Optional[str]
    format: Optional[str]
    pool: Optional[str]
    volume: Optional[str]


class Disk(NamedTuple):
    """A disk as declared: ``target`` is the guest's name for it (``vda``), ``layers`` the image first, then what the XML names below."""

    target: str
    device: str
    layers: Tuple[DiskSource, ...]


class Change(NamedTuple):
    """Layer ``depth`` of disk ``target`` is to be ``path`` with driver ``format``.

    ``pool`` and ``volume``: where the source is declared as a volume and the new file is one too. ``backing`` false: the new image
    stands alone, so a declared chain below it ends there. ``kind``: ``file`` or ``block``, where it is no volume.
    """

    target: str
    depth: int
    path: str
    format: str
    pool: Optional[str] = None
    volume: Optional[str] = None
    backing: bool = True
    kind: str = "file"


def drawn(domain: str, change: Change) -> str:
    """One layer of a disk on a line, as diff mode shows it."""
    where = "{0}, backing file {1}".format(change.target, change.depth) if change.depth else change.target
    what = change.path if change.volume is None else "volume {0} of pool {1}".format(change.volume, change.pool)
    return "domain {0}, {1}: {2} ({3})".format(domain, where, what, change.format)


def identity(xml: str) -> Tuple[str, str]:
    """Name and UUID of a domain."""
    found = {element.name: element.text.strip() for element in reversed(parse(xml).children)}
    return found.get("name", ""), found.get("uuid", "")


def _layer(element: Element, declared: Optional[Element]) -> DiskSource:
    source = element.child("source")
    kind = element.attributes.get("type", "file")
    attributes = source.attributes if source is not None else {}
    volume = kind == "volume"
    return DiskSource(
        kind=kind,
        path=attributes.get(_PATH_ATTRIBUTE.get(kind, "")),
        format=declared.attributes.get("type") if declared is not None else None,
        pool=attributes.get("pool") if volume else None,
        volume=attributes.get("volume") if volume else None,
    )


def _stores(disk: Element) -> List[Element]:
    """The elements that hold a layer each: the disk, then its declared backing stores."""
    stores = [disk]
    below = disk.child("backingStore")
    while below is not None and below.child("source") is not None:
        stores.append(below)
        below = below.child("backingStore")
    return stores


def _declared(store: Element) -> Optional[Element]:
    return store.child("driver" if store.name == "disk" else "format")


def _target(disk: Element) -> str:
    target = disk.child("target")
    return target.attributes.get("dev", "") if target is not None else disk.attributes.get("name", "")


def _is_disk(element: Element) -> bool:
    """Whatever metadata calls a disk is none: only the place libvirt gives it counts."""
    above = element.parent
    if element.name != "disk" or above is None or above.parent is None:
        return False
    return (above.name, above.parent.name) in _DISK_PLACES


def _disk_elements(root: Element) -> List[Element]:
    return [element for element in root.walk() if _is_disk(element)]


def read_disks(xml: str) -> List[Disk]:
    """Every disk with a source: of a domain, or of the domains and disks a snapshot or checkpoint remembers.

    :raises ValueError: see :func:`parse`.
    """
    found = []
    for disk in _disk_elements(parse(xml)):
        layers = tuple(_layer(store, _declared(store)) for store in _stores(disk) if store.child("source") is not None)
        if layers:
            found.append(Disk(_target(disk), disk.attributes.get("device", "disk"), layers))
    return found


class Mention(NamedTuple):
    """A text outside disks that could be a path: the element, its value, and what stands beside that and names no file."""

    element: str
    value: str
    beside: str

    def names(self, path: str) -> bool:
        """Does it name exactly this path (and not one that merely begins or ends like it)?"""
        return re.search(r"(?<![\w./-])" + re.escape(path) + r"(?![\w./-])", self.value) is not None

    def words(self) -> Set[bytes]:
        """What may be absolute paths in it, escapes undone."""
        value = self.value.encode("utf-8", "surrogateescape")
        words = {word for reading in option_text.readings(value) for word in option_text.absolute_words(reading)}
        return {part for word in words for part in option_text.parts(word)}

    def stated_format(self, path: str) -> Optional[str]:
        """The format that it states, or the element, for the image at this path."""
        line = "{0} {1}".format(self.value, self.beside).encode("utf-8", "surrogateescape")
        found = option_text.stated_in_options(line, path.encode("utf-8", "surrogateescape"))
        return None if found is None else line[slice(*found)].decode("ascii").lower()


def read_mentions(xml: str) -> List[Mention]:
    """Everything outside disks that could be a path: QEMU arguments, NVRAM, kernel, channels.

    Metadata and descriptions are words about the domain; QEMU never sees them.

    :raises ValueError: see :func:`parse`.
    """
    found = []
    pending = [parse(xml)]
    while pending:
        element = pending.pop()
        if _is_disk(element) or element.name in ("metadata", "title", "description"):
            continue
        pending.extend(reversed(element.children))
        values = [value for value in list(element.attributes.values()) + [element.text.strip()] if "/" in value]
        found += [Mention(element.name, value, _beside(element)) for value in values]
    return found


def _beside(element: Element) -> str:
    """QEMU's arguments are one command, without those that have a file of their own; of another element its attributes count."""
    facts = ["{0}={1}".format(name, value) for name, value in element.attributes.items()]
    if element.name.endswith("arg") and element.parent is not None:
        facts = [child.attributes.get("value", "") for child in element.parent.children]
    return " ".join(fact for fact in facts if "/" not in fact and "file.driver=" not in fact)


def repoint(xml: str, changes: Iterable[Change]) -> str:
    """The text with the changes made: source and driver type together. The same text where nothing has to change.

    :raises ValueError: see :func:`parse`.
    :raises KeyError: a change names a disk or layer that the text does not declare.
    """
    data = xml.encode("utf-8")
    disks = {_target(disk): disk for disk in _disk_elements(parse_bytes(data))}
    edit = Edit(data)
    ended = set()
    for change in sorted(changes, key=lambda item: item.depth):
        if change.target in ended:
            continue  # the chain ends above this layer
        if not change.backing:
            ended.add(change.target)
        disk = disks[change.target]
        stores = _stores(disk)
        if change.depth >= len(stores):
            raise KeyError("{0} declares no layer {1}".format(change.target, change.depth))
        _change(edit, stores[change.depth], change)
    return edit.result().decode("utf-8")


def _change(edit: Edit, store: Element, change: Change) -> None:
    source = store.child("source")
    if source is None:
        raise KeyError("{0} has no source".format(change.target))
    if change.volume is not None and change.pool is not None:
        kind, wanted = "volume", {"pool": change.pool, "volume": change.volume}
    else:
        kind, wanted = change.kind, {_PATH_ATTRIBUTE[change.kind]: change.path}
    if store.attributes.get("type", "file") != kind:
        edit.set(store, "type", kind)
    obsolete = {"file", "dev", "dir", "pool", "volume", "mode"} - set(wanted)
    for name in sorted(obsolete & set(source.attributes)):
        edit.remove_attribute(source, name)
    for name, value in wanted.items():
        edit.set(source, name, value)
    declared = _declared(store)
    if declared is not None:
        edit.set(declared, "type", change.format)
    elif store.name == "disk":
        edit.insert(source.start, "<driver name='qemu' type='{0}'/>".format(change.format))
    else:
        edit.insert(source.start, "<format type='{0}'/>".format(change.format))
    # The encryption of QCOW (v1) ends with the format: what is written is not encrypted that way.
    for holder in (store, source):
        encryption = holder.child("encryption")
        if encryption is not None and encryption.attributes.get("format") in ("qcow", "default"):
            edit.remove(encryption)
    below = store.child("backingStore")
    if below is not None and not change.backing and below.children:
        edit.replace(below, "<backingStore/>")


def reverse(xml: str, changes: Iterable[Change]) -> List[Change]:
    """The changes that lead back to what this text says of the same layers.

    :raises KeyError: a change names a disk that the text does not declare.
    """
    disks = {disk.target: disk for disk in read_disks(xml)}
    back = []
    for change in changes:
        layer = disks[change.target].layers[change.depth]
        kind = layer.kind if layer.kind in _PATH_ATTRIBUTE else "file"
        back.append(Change(change.target, change.depth, layer.path or "", layer.format or "raw", layer.pool, layer.volume, True, kind))
    return back


def disk_elements(xml: str, targets: Iterable[str]) -> Dict[str, str]:
    """The exact text of the disks with these targets, for :func:`put_back`."""
    data = xml.encode("utf-8")
    wanted = set(targets)
    return {
        _target(disk): data[disk.start : disk.end].decode("utf-8") for disk in _disk_elements(parse_bytes(data)) if _target(disk) in wanted
    }


def put_back(xml: str, disks: Dict[str, str]) -> str:
    """The text with these disks (target to text) as they were; whatever else changed since is kept.

    :raises KeyError: it has no such disk any more.
    """
    data = xml.encode("utf-8")
    found = {_target(disk): disk for disk in _disk_elements(parse_bytes(data))}
    edit = Edit(data)
    for target, text in disks.items():
        edit.replace(found[target], text)
    return edit.result().decode("utf-8")


def without_chain_end(xml: str, target: str) -> str:
    """The text without an empty ``<backingStore/>`` of that disk: libvirt adds one to the definition when it pivots a block job."""
    data = xml.encode("utf-8")
    edit = Edit(data)
    for disk in _disk_elements(parse_bytes(data)):
        below = disk.child("backingStore")
        if _target(disk) == target and below is not None and not below.children:
            edit.remove(below)
    return edit.result().decode("utf-8")


def mask(xml: str) -> str:
    """The text with passwords and other secrets replaced, for people to see."""
    data = xml.encode("utf-8")
    edit = Edit(data)
    for element in parse_bytes(data).walk():
        for name in _SECRET_ATTRIBUTES:
            if name in element.attributes:
                edit.set(element, name, "********")
        if element.name in _SECRET_ELEMENTS and not element.children and element.close > element.body:
            edit.replace(element, "<{0}>********</{0}>".format(element.name))
    return edit.result().decode("utf-8")
