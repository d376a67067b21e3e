# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image opened for migration, and all below it: once, by descriptor, so that nobody can swap a file between looking and reading."""

import os
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .._directories import real_path
from .._errors import DamagedImage, ImageChanged, PassphraseError, UnsupportedImage
from .._host.files import FileIdentity, identity, open_source
from .._host.in_use import Guard
from .._image.chain import FOREIGN, Key, Member, Rules, follow
from .._image.detect import HEAD, Identity, identify, reader_at
from .._image.extent import COMPRESSED, Extent, Layer, chain_extents, thin_extents
from .._image.findings import DAMAGED, ERROR, WARNING, Finding, Report
from .._image.qcow1 import Damage, OnDamage, Qcow1
from .._image.qcow1_check import check
from .._image.qcow2 import Qcow2
from .._image.raw import Raw
from .._paths import show

# Looking at an image takes neither verification, nor decryption, nor qemu-img: these are imported where an image needs them.
if TYPE_CHECKING:
    from .._verify.reader import Reader
    from .foreign_base import ForeignBase

LostRanges = Mapping[int, Sequence[Tuple[int, int]]]
"""By place in the chain (0: the image itself) the guest ranges ``(start, length)`` that were given up, in bytes."""


def identity_of(member: Member) -> FileIdentity:
    """The identity that a file of a chain had when the chain was resolved; only its content's, see :meth:`.FileIdentity.same_content`."""
    return FileIdentity(member.key[0], member.key[1], member.size, member.mtime_ns, 0)


class Source:
    """An open image. Use as a context manager; its descriptors are closed at its end.

    :param path: symbolic links are not followed as last component.
    :param expected: the identity the file had when it was planned for.
    :param below: the other files of its chain; see :meth:`attach`.
    :raises ImageChanged: where one is another file now.
    :raises QcowError: where one cannot be opened.
    """

    def __init__(self, path: bytes, expected: Optional[FileIdentity] = None, below: Sequence[Member] = ()) -> None:
        self.path = path
        self.fd = open_source(path)
        self.layers: List[Layer] = []
        self.members: Tuple[Member, ...] = ()
        self.recognised: List[str] = []
        self.warnings: List[str] = []  # what the check found that is no error
        self._below: List[int] = []
        self._foreign: Optional[ForeignBase] = None  # the last of the layers, until it is fetched
        try:
            self.identity = identity(self.fd)
            if expected is not None and not self.identity.same_content(expected):
                raise ImageChanged("the file is not the one that was planned for", path, hint="Nothing was changed. Run again.")
            self.attach(below)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *dummy: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for fd in [self.fd] + self._below:
            os.close(fd)
        self._below = []

    def attach(self, below: Sequence[Member]) -> None:
        """Open the other files of the chain, each found to be what it was when the chain was resolved.

        A base that was replaced under its own name meanwhile may be given with the name it has now.
        """
        for member in below:
            fd = open_source(member.real)
            self._below.append(fd)
            if not identity(fd).same_content(identity_of(member)):
                raise ImageChanged(
                    "the backing file is not the one that was planned for", member.path, hint="Nothing was changed. Run again."
                )
        self.members = self.members + tuple(below)

    def follow(self, rules: Rules) -> List[Member]:
        """Resolve the chain and open all of it; what was opened before an error stays.

        :return: its files, the image itself first.
        :raises QcowError: see :func:`.chain.follow`.
        """
        found: List[Member] = []
        for member, fd in follow(self.path, self.fd, open_source, rules):
            if found:
                self._below.append(fd)
                self.members = self.members + (member,)
            found.append(member)
        return found

    def pairs(self) -> Iterator[Tuple[Member, int]]:
        """The other files of the chain with their descriptors."""
        return zip(self.members, self._below)

    def identify(self) -> Identity:
        """What the file is, by content."""
        read_at = reader_at(self.fd)
        return identify(read_at(HEAD, 0), self.identity.size, read_at)

    def open_qcow1(self, on_damage: Optional[OnDamage] = None) -> Qcow1:
        """The image itself as QCOW v1, alone.

        :raises DamagedImage: see :class:`Qcow1`.
        :raises UnsupportedImage: backing files and encryption.
        """
        image = Qcow1(self.fd, self.path, on_damage)
        if image.backing_name is not None:
            raise UnsupportedImage("the image has a backing file", self.path, hint="Nothing was changed.")
        if image.header.crypt_method:
            raise UnsupportedImage("the image is encrypted", self.path, hint="Nothing was changed.")
        self.layers = [image]
        return image

    def open_layers(self, damage: Optional[Dict[int, List[Damage]]] = None) -> Qcow1:
        """The image and all below it as layers, locked where they are encrypted.

        :param damage: collects what is damaged, by place in the chain; if not given, the first damage met is an error.
        """
        image = Qcow1(self.fd, self.path, _collector(damage, 0))
        self.layers, self._foreign = [image], None
        for place, (member, fd) in enumerate(zip(self.members, self._below), 1):
            if member.format == "qcow":
                self.layers.append(Qcow1(fd, member.path, _collector(damage, place)))
            elif member.format in FOREIGN:
                self._foreign = _foreign_base(fd, member, self.layers[-1].virtual_size)
                self.layers.append(self._foreign)
            else:
                self.layers.append(open_layer(member.format, fd, member.path))
        return image

    def unlock(self, passphrase_files: Mapping[bytes, bytes], *, force: bool) -> None:
        """Give every encrypted layer its passphrase.

        :param passphrase_files: by the image's name without symbolic links; the entry ``b""`` is for all that have none of their own.
        :param force: take passphrases that look wrong.
        :raises PassphraseError: one is missing, or wrong by all appearances. :raises ToolMissing: nothing here can decrypt.
        """
        for layer in self.layers:
            if isinstance(layer, Qcow1) and layer.header.crypt_method:
                secret = passphrase_files.get(real_path(layer.path), passphrase_files.get(b""))
                if secret is None:
                    raise PassphraseError(
                        "the image is encrypted (legacy AES) and no passphrase was given",
                        layer.path,
                        hint="Give passphrase_file, or an entry in passphrase_files for a file of a chain. Nothing was changed.",
                    )
                from .._image import crypt

                verdict = crypt.unlock(layer, crypt.read_passphrase(secret), force=force)
                self.recognised.extend(verdict.recognised)

    def foreign_need(self, *, whole: bool) -> int:
        """Bytes on disk that :meth:`fetch_foreign` takes at most."""
        base = self._foreign
        return 0 if base is None else base.need(self._wanted(base, whole))

    def fetch_foreign(self, directory: bytes, *, whole: bool) -> None:
        """Read a base of a format that is not read here, with qemu-img, into a raw file without a name.

        :param whole: not only what the guest sees of it: what a new overlay rests on has to be known under that overlay, too, to prove it.
        """
        base = self._foreign  # what is read by qemu-img has nothing below it
        if base is not None:
            self._below.append(base.fetch(self._wanted(base, whole), directory))
            self.layers[-1], self._foreign = Raw(self._below[-1], base.path), None

    def _wanted(self, base: "ForeignBase", whole: bool) -> Iterator[Tuple[int, int]]:
        if whole:
            return base.ranges()
        return ((extent.start, extent.start + extent.length) for extent in self.extents() if extent.layer is base)

    def extents(self) -> Iterator[Extent]:
        """What the guest sees, as a stream of extents."""
        return self.layers[0].bulk_extents() if len(self.layers) == 1 else chain_extents(self.layers)

    def runs(self) -> Iterator[Extent]:
        """Which guest bytes are held at all; see :meth:`.extent.Layer.runs`."""
        return self.layers[0].runs() if len(self.layers) == 1 else self.extents()

    def thin_extents(self, unit: int) -> Iterator[Extent]:
        """What a new overlay over the same base has to hold; see :func:`~.extent.thin_extents`."""
        return thin_extents(self.layers, unit)

    def readers(self, lost: Optional[LostRanges] = None) -> "List[Reader]":
        """The same chain for verification, read by the second path."""
        return self.readers_below(lost, first=0)

    def readers_below(self, lost: Optional[LostRanges] = None, *, first: int = 1) -> "List[Reader]":
        """The chain from place ``first`` on; 1 leaves the image itself out."""
        from .._verify.qcow_readers import Qcow1Reader, open_reader
        from .._verify.reader import LostReader

        images: List[Reader] = []
        for place, layer in enumerate(self.layers[first:], first):
            given_up = list((lost or {}).get(place, ()))
            if isinstance(layer, Qcow1):
                image: Reader = Qcow1Reader(layer.fd, layer.path, layer.decrypt, lost=given_up)
                if given_up and place + 1 < len(self.layers):
                    images.append(LostReader(image.size, given_up))
            else:
                image = open_reader(layer.format, layer.fd, layer.path)
            images.append(image)
        return images


class Guards:
    """Keeps writers out of every file of a chain (context manager); as :class:`Guard`, which it is for an image that stands alone."""

    def __init__(self, source: Source) -> None:
        pairs = [(source.fd, source.path)] + [(fd, member.path) for fd, member in zip(source._below, source.members)]
        self._guards = [Guard(fd, path) for fd, path in pairs]
        self._entered: List[Guard] = []

    @property
    def warnings(self) -> List[str]:
        """Which kinds of writers cannot be kept out."""
        found: List[str] = []
        for guard in self._guards:
            found.extend(warning for warning in guard.warnings if warning not in found)
        return found

    def __enter__(self) -> "Guards":
        """:raises ImageInUse: a writer is there already."""
        try:
            for guard in self._guards:
                guard.__enter__()
                self._entered.append(guard)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *dummy: Any) -> None:
        self.release()

    def check(self) -> None:
        """See :meth:`Guard.check`."""
        for guard in self._entered:
            guard.check()

    def release(self) -> None:
        """End all guards."""
        while self._entered:
            self._entered.pop().release()


def _collector(damage: Optional[Dict[int, List[Damage]]], place: int) -> Optional[OnDamage]:
    return None if damage is None else damage.setdefault(place, []).append


def _foreign_base(fd: int, member: Member, size: int) -> "ForeignBase":
    from .foreign_base import ForeignBase

    return ForeignBase(fd, member.real, member.format, size)


def open_layer(format_name: str, fd: int, path: bytes) -> Layer:
    """One file as a layer of extents; ``format_name`` is qcow, qcow2 or raw."""
    layers = {"qcow": Qcow1, "qcow2": Qcow2, "raw": Raw}
    return layers[format_name](fd, path)


MAX_RANGES = 100
"""Damaged ranges named one by one in a message or result; the rest is counted."""

Losses = Dict[int, List[Damage]]
"""What salvage gives up, by place in the chain."""


def require_sound(source: Source, level: str, known: Set[Key], *, salvage: bool) -> Losses:
    """Open the layers of a chain, and make sure that nothing in their tables contradicts their files.

    What is suspect but no error goes into ``source.warnings``.

    :param level: of the structure check.
    :param known: files found sound before, which are not looked at again.
    :param salvage: go on past damage.
    :return: with ``salvage`` what is given up; else nothing.
    :raises DamagedImage: naming every damaged range (up to ``MAX_RANGES``) of the first damaged file.
    """
    found: Losses = {}
    source.open_layers(found)
    for place, layer in enumerate(source.layers):
        key = source.members[place - 1].key if place else source.identity[:2]
        if key in known and not salvage:
            continue
        if isinstance(layer, Qcow1) and not salvage:
            report = check(layer.fd, layer.path, level)
            _require_verdict(report, layer.path)
            source.warnings.extend(_in_words(finding) for finding in report.findings if finding.severity == WARNING)
            continue
        for extent in layer.extents():
            if salvage and extent.kind == COMPRESSED:
                layer.inflate(extent)
    return {place: _merged(damage) for place, damage in found.items() if damage}


def _merged(found: List[Damage]) -> List[Damage]:
    """Each damaged range once, neighbours of the same kind as one."""
    merged: List[Damage] = []
    for damage in sorted(set(found)):
        last = merged[-1] if merged else None
        if last is not None and damage.start <= last.start + last.length and damage.kind == last.kind and damage.what == last.what:
            merged[-1] = last._replace(length=max(last.length, damage.start + damage.length - last.start))
        else:
            merged.append(damage)
    return merged


def _require_verdict(report: Report, path: bytes) -> None:
    """Refuse an image in whose structure the check found errors, naming them (up to ``MAX_RANGES``)."""
    if report.verdict != DAMAGED:
        return
    errors = [finding for finding in report.findings if finding.severity == ERROR]
    total = sum(report.found[kind]["ranges"] for kind in {finding.kind for finding in errors})
    listed = errors[:MAX_RANGES]
    raise DamagedImage(
        "damaged in {0} place{1}: {2}{3}".format(
            total,
            "" if total == 1 else "s",
            "; ".join(_in_words(finding) for finding in listed),
            "; and {0} more".format(total - len(listed)) if total > len(listed) else "",
        ),
        path,
        hint="The image was not changed. Restore it from a backup, or set salvage=true to keep what can be read.",
        ranges=[{"start": f.start, "length": f.length, "offset": f.offset, "what": f.text} for f in listed],
    )


def _in_words(finding: Finding) -> str:
    place = "" if finding.offset is None else " (file offset {0})".format(finding.offset)
    if finding.start is None:
        return finding.text + place
    return "guest bytes {0}..{1}: {2}{3}".format(finding.start, finding.start + finding.length - 1, finding.text, place)


def ranges_of(lost: Losses) -> Dict[int, List[Tuple[int, int]]]:
    """What was given up as the second reading path takes it."""
    return {place: [(damage.start, damage.length) for damage in found] for place, found in lost.items()}


def listed(lost: Losses, paths: Sequence[bytes]) -> List[Dict[str, Any]]:
    """What salvage gives up, as results, reports and records list it: every range, with the file it is missing from.

    :param paths: the files of the chain, the image itself first.
    """
    return [
        {"path": show(paths[place]), "start": d.start, "length": d.length, "offset": d.offset, "what": d.what}
        for place, found in sorted(lost.items())
        for d in found
    ]
