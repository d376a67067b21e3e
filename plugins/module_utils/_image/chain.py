# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backing chains, resolved by us: which file a header means, what that file is, and who else needs it.

Names are bytes and follow QEMU's rules (``block.c``): relative ones start from the directory of the name the image was reached under, not from
where a symbolic link leads. QEMU would also obey protocols and devices and guess formats; nothing of that happens here.
"""

import os
import posixpath
import re
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from .._access import Stranger
from .._directories import exists, real_directory, real_path, status_of
from .._errors import DamagedImage, QcowError, UnsafeImage, UnsupportedImage
from .._paths import show
from . import qcow1, qcow2
from .detect import HEAD, UNKNOWN, ReadAt, identify, reader_at
from .rights import unable_to_read, writers_of

MAX_DEPTH = 256
"""Files in a chain; QEMU itself follows until it runs out of descriptors."""

NATIVE = ("qcow", "qcow2", "raw")
"""Formats that are read here."""

FOREIGN = ("vmdk", "vdi", "vpc", "vhdx", "qed", "parallels")
"""Formats that only qemu-img reads, under these driver names."""

_NOT_IMAGES = ("gzip", "xz", "zstd", "bzip2", "zip", "7z", "squashfs", "iso")  # archives, and what a raw disk may well begin with

RELATIVE = "relative"
ABSOLUTE = "absolute"
EMPTY = "empty"
PROTOCOL = "protocol"
DEVICE = "device"
KERNEL = "kernel"

_KERNEL = (b"/proc", b"/sys")
_DEVICE = (b"/dev",)

Key = Tuple[int, int]
"""``(st_dev, st_ino)``: what a file is, whatever it is called."""

Opener = Callable[[bytes], int]
"""Opens a regular file for reading without following a symbolic link; raises QcowError."""


class Reference(NamedTuple):
    """What a header says about the backing file."""

    name: bytes
    format: Optional[str]  # QEMU's driver name, where the header states it


class Member(NamedTuple):
    """One file of a chain."""

    path: bytes  # the name it was reached under; what its own backing name is relative to
    real: bytes  # the same without symbolic links; what is opened
    key: Key
    size: int  # of the file, bytes
    mtime_ns: int
    format: str  # by content: one of NATIVE or FOREIGN
    reference: Optional[Reference]


class Rules(NamedTuple):
    """What may be followed. ``formats``: what somebody has declared files to be, by their name without symbolic links."""

    directories: Tuple[bytes, ...] = ()  # besides that of the image itself
    formats: Mapping[bytes, str] = {}
    raw_bases: bool = True  # take a base for raw that has no magic and of which nobody says what it is
    depth: int = MAX_DEPTH


def reference_of(read_at: ReadAt, format_name: str, path: bytes) -> Optional[Reference]:
    """What the header of an image says about its backing file; ``None`` where it has none.

    :param read_at: reads the image. :param format_name: what the file is by content.
    :raises DamagedImage: where the header cannot be true.
    :raises UnsupportedImage: where the image depends on files in a way that cannot be followed.
    """
    if format_name == "qcow":
        name = qcow1.read_backing_name(read_at, qcow1.parse_header(read_at(qcow1.HEADER_SIZE, 0), path), path)
        return None if name is None else Reference(name, None)
    if format_name == "qcow2":
        header = qcow2.parse_header(read_at(HEAD, 0), path)
        if not header.backing_offset or not header.backing_length:
            return None
        header = qcow2.parse_header(read_at(1 << 16, 0), path)  # its extensions may be that long
        name = read_at(header.backing_length, header.backing_offset)
        if len(name) < header.backing_length:
            raise DamagedImage("the backing file name lies outside the file", path)
        return Reference(name, header.backing_format) if name else None
    if format_name in FOREIGN:
        _require_alone(read_at, format_name, path)
    return None


def _require_alone(read_at: ReadAt, format_name: str, path: bytes) -> None:
    """Refuse images of other formats that need further files: qemu-img would open those by itself."""
    head = read_at(1 << 17, 0)
    problem = None
    if format_name == "vmdk":
        # Only a sparse extent with its descriptor inside stands alone; capacity 0 means "see the descriptor" (QEMU: block/vmdk.c).
        if head[:4] != b"KDMV" or not any(head[12:20]):
            problem = "it names its extents in a descriptor"
        elif b'parentFileNameHint="' in head:
            problem = "it has a parent"
    elif format_name == "qed" and head[16:24] != b"" and int.from_bytes(head[16:24], "little") & 1:
        problem = "it has a backing file"
    elif format_name == "vdi" and head[76:80] == b"\4\0\0\0":
        problem = "it is a differencing image"
    elif format_name == "vpc" and head[:8] == b"conectix" and head[60:64] == b"\0\0\0\4":
        problem = "it is a differencing image"
    if problem is not None:
        raise UnsupportedImage(
            "a {0} image that does not stand alone: {1}".format(format_name, problem),
            path,
            hint="Convert it to qcow2 by other means first.",
        )


class BackingName(NamedTuple):
    """What a backing file's name is, by its bytes alone."""

    kind: str  # one of the words above
    name: bytes  # cut at the first NUL, as QEMU does
    tail: bytes  # what followed the NUL
    climbs: bool  # has a component ".."
    text: str  # for a person

    @property
    def followable(self) -> bool:
        """Whether it can only ever name a file in a directory; the directory is for the caller to allow."""
        return self.kind in (RELATIVE, ABSOLUTE)


def classify_backing_name(stored: bytes) -> BackingName:
    """What a backing file's name would make QEMU open.

    QEMU takes everything before a colon for a protocol unless a slash comes first (``path_has_protocol``), so ``weird:name`` is one too.
    """
    name, nul, tail = stored.partition(b"\0")
    normal = re.sub(rb"/+", b"/", posixpath.normpath(name)) if name else b""
    climbs = b".." in name.split(b"/")
    if not name:
        kind, text = EMPTY, "the name is empty"
    elif re.match(rb"[^/]*:", name):
        kind, text = PROTOCOL, "{0} is a protocol or driver to QEMU, not a file: {1}".format(show(name.split(b":")[0]) + ":", show(name))
    elif _below(normal, _KERNEL):
        kind, text = KERNEL, "{0} shows the kernel's or a program's state, not a disk".format(show(name))
    elif _below(normal, _DEVICE):
        kind, text = DEVICE, "{0} is a device".format(show(name))
    elif name.startswith(b"/"):
        kind, text = ABSOLUTE, show(name)
    else:
        kind, text = RELATIVE, show(name)
    return BackingName(kind, name, tail if nul else b"", climbs, text)


def _below(name: bytes, roots: tuple) -> bool:
    return any(name == root or name.startswith(root + b"/") for root in roots)


def locate(image: bytes, name: bytes) -> bytes:
    """The path that a backing name means.

    :param image: the name under which the image was reached.
    :raises UnsafeImage: where it is not a file name.
    """
    if b"\0" in name:
        raise UnsafeImage("the backing file name contains a NUL byte: {0}".format(show(name)), image, hint="Nothing was followed.")
    if classify_backing_name(name).kind == PROTOCOL:
        raise UnsafeImage(
            "the backing file {0} is not a file name: to QEMU it is the protocol {1}".format(show(name), show(name.split(b":")[0])),
            image,
            hint="It is never followed. Nothing was changed. If it is meant as a file, rename that file.",
            backing=show(name),
        )
    return os.path.join(os.path.dirname(image), name)


def allowed(path: bytes, directories: Tuple[bytes, ...]) -> bool:
    """Whether a path, all symbolic links resolved, lies below one of the directories."""
    real = real_path(path)
    for directory in directories:
        parent = real_path(directory or b".")
        if real.startswith(parent if parent.endswith(b"/") else parent + b"/"):
            return True
    return False


def follow(path: bytes, fd: int, open_file: Opener, rules: Rules) -> Iterator[Tuple[Member, int]]:
    """The files of an image's chain, the image itself first, each only after it was found to be safe to look at.

    :param fd: the image, open for reading.
    :return: each file with its descriptor: what was examined is what is read. All but the first are the caller's to close.
    :raises UnsafeImage: protocols, devices, files outside the allowed directories, loops, content that contradicts a declared ``raw``.
    :raises DamagedImage: a header that cannot be true. :raises UnsupportedImage: a format that cannot be read.
    :raises QcowError: reason ``missing-base`` or what ``open_file`` raises.
    """
    directories = _real_directories((os.path.dirname(path) or b".",) + tuple(rules.directories))
    member = _examine(path, path, fd, None, rules, is_base=False)
    seen = {member.key: member.path}
    yield member, fd
    while member.reference is not None:
        below = locate(member.path, member.reference.name)
        # Resolved once: what is judged here is opened by that very name, and by no symbolic link that appears in it afterwards.
        nearest, real = member, real_path(below)
        _require_safe(below, real, member, directories)
        writers = writers_of(fd, member.real)
        fd = _open_base(real, nearest, open_file)
        try:
            _require_right(unable_to_read(writers, fd, real), real, nearest)
            known = rules._replace(raw_bases=rules.raw_bases and not writers)
            member = _examine(below, real, fd, member.reference.format, known, is_base=True)
            if member.key in seen:
                raise UnsafeImage(
                    "the backing chain is a loop: {0} leads back to {1}".format(show(nearest.path), show(seen[member.key])),
                    path,
                    hint="Nothing was changed. No program can read this image; restore it from a backup.",
                )
            seen[member.key] = member.path
            if len(seen) > rules.depth:
                raise UnsafeImage("the backing chain is more than {0} files deep".format(rules.depth), path, hint="Nothing was changed.")
        except BaseException:
            os.close(fd)
            raise
        yield member, fd


def _real_directories(directories: Iterable[bytes]) -> Tuple[bytes, ...]:
    found = []
    for directory in directories:
        try:
            found.append(real_directory(directory).rstrip(b"/") + b"/")
        except (OSError, UnsafeImage):
            continue  # nothing can lie in it; whose it is must not keep others' images from being read
    return tuple(found)


def _require_right(writer: Optional[Stranger], real: bytes, above: Member) -> None:
    if writer is not None:
        raise UnsafeImage(
            "{0} can write this image but could not read the backing file {1} that it names".format(writer, show(real)),
            above.path,
            hint="It was not read and nothing was changed. If you trust this image, give it and its directory to root (chown), "
            "or let them read the backing file.",
            backing=show(real),
        )


def _require_safe(below: bytes, real: bytes, above: Member, directories: Tuple[bytes, ...]) -> None:
    if classify_backing_name(real).kind in (KERNEL, DEVICE):
        raise UnsafeImage(
            "the backing file {0} is a device or belongs to the kernel".format(show(below)),
            above.path,
            hint="It is never followed. Nothing was changed.",
        )
    if not exists(real):
        raise QcowError(
            "the backing file {0} does not exist".format(show(below)),
            above.path,
            reason="missing-base",
            hint=_hint_for_missing(below),
            backing=show(below),
        )
    if not real.startswith(directories):
        raise UnsafeImage(
            "the backing file {0} lies outside the directories in which backing files may lie".format(show(real)),
            above.path,
            hint="It was not opened and nothing was changed. If you trust this image, name that directory in backing_dirs.",
            backing=show(real),
        )


def _hint_for_missing(path: bytes) -> str:
    """What may have happened: a writer that shortened a name leaves the tail of the old one behind it (VirtualBox does)."""
    directory, name = os.path.split(path)
    for length in range(len(name) - 1, 0, -1):
        if os.path.isfile(os.path.join(directory, name[:length])):
            return (
                "Nothing was changed. There is a file {0}: the name in the header may end in the remains of an older, longer one. "
                "If that is the base, give it the name the header asks for (a link will do) and run again.".format(show(name[:length]))
            )
    return "Nothing was changed. Restore the base under that name (a link will do) and run again."


def _open_base(real: bytes, above: Member, open_file: Opener) -> int:
    try:
        return open_file(real)
    except QcowError as error:
        raise type(error)("its backing file: {0}".format(error), above.path, reason=error.reason, hint="Nothing was changed.") from error


def _examine(path: bytes, real: bytes, fd: int, recorded: Optional[str], rules: Rules, *, is_base: bool) -> Member:
    status, read_at = os.fstat(fd), reader_at(fd)
    kind = identify(read_at(HEAD, 0), status.st_size, read_at)
    declared = rules.formats.get(real_path(path))
    format_name = _decide(path, kind.format, kind.version, recorded, declared, rules, is_base=is_base)
    reference = reference_of(read_at, format_name, path)
    return Member(path, real, (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns, format_name, reference)


def _decide(
    path: bytes, found: str, version: Optional[int], recorded: Optional[str], declared: Optional[str], rules: Rules, *, is_base: bool
) -> str:
    """What a file is read as: its content decides, and whoever contradicts it is not believed but stopped."""
    correct = "what declares it: the type in a domain's definition (allow_declared_raw=true disregards it) or backing_formats"
    sayings = [(recorded, "its overlay records it as", "the overlay (qemu-img rebase -u -F)"), (declared, "it is declared as", correct)]
    for said, who, what in sayings:
        if said == "raw" and (found in NATIVE + FOREIGN or version is not None):
            raise UnsafeImage(
                "{0} raw, but its content says {1}: a guest may have written it into its own disk".format(
                    who, "QCOW version {0}".format(version) if version is not None else found
                ),
                path,
                reason="declared-raw",
                hint="It was left as it is. Find out which is true. If it is an image, correct {0}.".format(what),
            )
    if found in NATIVE + FOREIGN:
        return found
    if version is not None:
        raise UnsupportedImage("the magic says QCOW, but there is no version {0}".format(version), path)
    for said, _who, _what in sayings:
        if said == "raw":
            return "raw"
        if said is not None:
            raise DamagedImage("is said to be {0}, but its content is not".format(said), path, hint="Nothing was changed.")
    if found == UNKNOWN:
        if not is_base or rules.raw_bases:
            return "raw"
        raise UnsafeImage(
            "the format of the base is unknown", path, reason="format-unknown", hint="If it is raw, declare it in backing_formats."
        )
    what = "an archive or another container" if found in _NOT_IMAGES else "an image that cannot be read here"
    raise UnsupportedImage(
        "the backing file looks like {0} ({1})".format(what, found),
        path,
        hint="If it is a raw disk, declare it in backing_formats. Nothing was changed.",
    )


class GraphNode(NamedTuple):
    """An image in a graph. ``base`` is the key of its backing file, ``None`` where it has none or it could not be found."""

    key: Key
    path: bytes
    format: str
    base: Optional[Key]
    reference: Optional[Reference]


class Graph:
    """Who rests on whom, over any number of trees. Files are told apart by what they are, not by their names."""

    def __init__(self) -> None:
        self.nodes: Dict[Key, GraphNode] = {}
        self._over: Dict[Key, List[Key]] = {}

    def add(self, path: bytes, key: Key, read_at: ReadAt) -> Optional[GraphNode]:
        """Take an image in, as far as its header can be read; ``None`` for what is no image of ours. Never raises for what it finds."""
        if key in self.nodes:
            return self.nodes[key]
        kind = identify(read_at(HEAD, 0), 0)
        if kind.format not in ("qcow", "qcow2"):
            return None
        try:
            reference = reference_of(read_at, kind.format, path)
        except QcowError:
            reference = None
        node = GraphNode(key, path, kind.format, _key_of_base(path, reference), reference)
        self.nodes[key] = node
        if node.base is not None:
            self._over.setdefault(node.base, []).append(key)
        return node

    def dependents(self, key: Key) -> List[GraphNode]:
        """The images whose backing file this one is, by name."""
        return sorted((self.nodes[over] for over in self._over.get(key, ())), key=lambda node: node.path)


def _key_of_base(path: bytes, reference: Optional[Reference]) -> Optional[Key]:
    """What a backing name leads to, by name alone: the file is not opened."""
    if reference is None:
        return None
    try:
        status = status_of(real_path(locate(path, reference.name)))
    except (QcowError, OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
