# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What else was seen of a host: the images that rest on an image, and the symbolic links that lead to it."""

import os
import re
import stat
import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from .._access import is_stranger, user_name
from .._directories import is_directory, real_path, status_of
from .._errors import QcowError, StateError, UnsafeImage
from .._host import tree
from .._host.files import looked_at
from .._host.symbolic_links import SymbolicLinks
from .._image.chain import Graph, GraphNode, Key, locate
from .._image.detect import QCOW_MAGIC
from .._image.rights import owner_unable_to_read
from .._paths import show
from .domain_references import Domains
from .record import named
from .request import Request, is_overlay, is_retired

_MOST_NAMED = 10  # anybody can make any number of overlays, or of directories that cannot be read
_QEMU_USERS = ("libvirt-qemu", "qemu")


class Searched(NamedTuple):
    """A directory that was looked through. ``limited``: ``exclude`` or ``one_filesystem`` may have left out a part. ``error`` says what could not be
    looked at, in words.
    """

    path: bytes
    recurse: bool
    limited: bool = False
    error: Optional[str] = None

    def as_result(self) -> Dict[str, Any]:
        """As results state it."""
        return named(self.path, recurse=self.recurse, limited=self.limited, error=self.error)


def unsearched(searched: Iterable[Searched]) -> List[str]:
    """What a module warns of."""
    return [
        "Overlays and links could not be looked for everywhere. {0}".format(directory.error)
        for directory in searched
        if directory.error is not None
    ]


class SeenImages:
    """The images of our formats that have been seen so far, the symbolic links, and the directories that were looked through for them."""

    def __init__(self, domains: Optional[Domains] = None) -> None:
        """:param domains: whose images count, whoever owns them."""
        self.graph = Graph()
        self.links = SymbolicLinks()
        self.domains = domains
        self.reference_dirs: Tuple[bytes, ...] = ()  # links in them count, too
        self.searched: Dict[bytes, Searched] = {}
        self.told: Tuple[bytes, ...] = ()  # what cannot be looked at below these is told by others
        self.exclude: Tuple[bytes, ...] = ()  # see tree.walk
        self.one_filesystem = False
        self._whole: Set[bytes] = set()  # real paths of the trees that were walked with all that is in them
        self._objections: Dict[Key, str] = {}
        self._asked_libvirt = False

    def add(self, found: tree.Found) -> None:
        """Take in what a walk has found, from the bytes that it has read already; not retired originals, nor what a running domain writes."""
        if found.key is not None and not is_retired(found.path) and not is_overlay(found.path):
            node = self.graph.add(found.path, found.key, found.read_at)
            if node is not None and node.reference is not None:
                self.links.add_named(os.path.join(os.path.dirname(node.path), node.reference.name))

    def has_walked(self, paths: Iterable[bytes]) -> None:
        """Whoever walked these trees, by :attr:`exclude` and :attr:`one_filesystem`, has handed what is there to :meth:`add` and :attr:`links`."""
        for path in filter(is_directory, paths):
            self._has_walked(path, None)

    def _has_walked(self, path: bytes, error: Optional[str]) -> None:
        limited = bool(self.exclude or self.one_filesystem)
        self.searched[path] = Searched(path, True, limited, error)
        if not limited:
            self._whole.add(real_path(path).rstrip(b"/") + b"/")

    def look_around(self, requests: List[Request]) -> None:
        """See what could rest on an image that would lose its name, and what could lead to it: what lies beside it, all below the backing directories,
        where software that makes linked clones keeps them, and what libvirt knows.
        """
        losing = [request for request in requests if request.retire]
        trees = {path: None for backing_dirs in {request.backing_dirs for request in losing} for path in backing_dirs}
        if losing:
            trees.update(dict.fromkeys(self.reference_dirs))
        for request in losing:
            trees.update(dict.fromkeys(_clones_of(request.src)))
        self.look_at(trees, {os.path.dirname(request.src): None for request in losing})

    def look_at(self, trees: Iterable[bytes], directories: Iterable[bytes]) -> None:
        """See the images and links below trees, in directories, and what libvirt knows of: images of domains, and what lies in directory pools."""
        self._walk(trees, recurse=True)
        self._walk(directories, recurse=False)
        if self.domains is not None and not self._asked_libvirt:
            self._asked_libvirt = True
            known = self.domains.survey()
            self._walk([pool.path for pool in known.pools if is_directory(pool.path)], recurse=False)
            named = {use.path for use in known.uses}
            for path in sorted(named):
                self.links.add_named(path)
                self.node(real_path(path))

    def _walk(self, paths: Iterable[bytes], *, recurse: bool) -> None:
        for path in paths:
            known = self.searched.get(path)
            if (known is not None and known.recurse >= recurse) or (real_path(path).rstrip(b"/") + b"/").startswith(tuple(self._whole)):
                continue
            counts, errors = tree.Counts(), []
            limits: Dict[str, Any] = {"exclude": self.exclude, "one_filesystem": self.one_filesystem} if recurse else {}
            for found in tree.walk([path], prefix=QCOW_MAGIC, recurse=recurse, counts=counts, **limits):
                self.add(found)
                if found.error is not None and not any(_is_at_or_below(found.path, told) for told in self.told):
                    errors.append("{0}: {1}".format(show(found.path), found.error))
            self.links.add(counts.links)
            error = "; ".join(errors[:_MOST_NAMED]) or None
            if recurse:
                self._has_walked(path, error)
            else:
                self.searched[path] = Searched(path, False, False, error)

    def node(self, path: bytes) -> Optional[GraphNode]:
        """The image of that name; ``None`` where there is none. It is opened only where it has not been seen."""
        try:
            status = status_of(path)
        except (QcowError, OSError):
            return None
        known = self.graph.nodes.get((status.st_dev, status.st_ino))
        if known is not None or not stat.S_ISREG(status.st_mode):
            return known
        found = next(tree.walk([path]))
        return None if found.key is None else self.graph.add(path, found.key, found.read_at)

    def base(self, key: Key) -> Optional[Key]:
        """What an image rests on; ``None`` where it has no backing file, or does not count as one that has."""
        node = self.graph.nodes.get(key)
        return None if node is None or node.base is None or self._objection(node) else node.base

    def dependents(self, key: Key) -> Tuple[List[GraphNode], List[str]]:
        """The images that rest on an image, and in words those that say so but do not count."""
        naming = self.graph.dependents(key)
        ignored = [words for words in map(self._objection, naming) if words]
        if len(ignored) > _MOST_NAMED:
            ignored[_MOST_NAMED:] = ["and {0} more files like that".format(len(ignored) - _MOST_NAMED)]
        return [node for node in naming if not self._objection(node)], ignored

    def _objection(self, overlay: GraphNode) -> str:
        if overlay.key not in self._objections:
            words = _objection(overlay)
            used = words and self.domains is not None and self.domains.users(overlay.path)
            self._objections[overlay.key] = "" if used else words
        return self._objections[overlay.key]


def _objection(overlay: GraphNode) -> str:
    """Why an image does not count as resting on its backing file; empty where it does, or where its rights cannot be found out.

    Its owner counts, who made it, and not everybody who can write it: whoever could read the image may have a guest that needs it, and anybody else
    could keep any image from being migrated, by an overlay that names it. The users of QEMU are given the right to read when a guest starts.
    """
    try:
        with looked_at(overlay.path) as fd:
            owner = os.fstat(fd).st_uid
            if not is_stranger(owner) or user_name(owner) in _QEMU_USERS:
                return ""
            real = real_path(locate(overlay.path, overlay.reference.name if overlay.reference else b""))
            with looked_at(real) as base:
                exchanged = (_key_of(fd), _key_of(base)) != (overlay.key, overlay.base)
                outsider = owner_unable_to_read(fd, base, real)
    except (UnsafeImage, FileNotFoundError, NotADirectoryError):
        exchanged, outsider = True, None
    except (QcowError, OSError):
        return ""
    if exchanged:
        return "{0} named this image as its backing file, but was exchanged or removed since; it is left as it is".format(
            show(overlay.path)
        )
    if outsider is None:
        return ""
    return (
        "{0} names this image as its backing file, but {1}, who owns it, cannot read this image: it is left as it is, and loses its backing file"
    ).format(show(overlay.path), outsider)


def _key_of(fd: int) -> Key:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


_RECENT_SECONDS = 60.0


class RecentLooks:
    """What lies beside images that are about to lose their name, looked at again where that was more than a minute ago: a batch may take hours."""

    def __init__(self, domains: Domains) -> None:
        """:param domains: whose images count, whoever owns them."""
        self._domains = domains
        self._began = time.monotonic()
        self._looks: Dict[bytes, Tuple[float, SeenImages]] = {}

    def require_nothing_new(self, path: bytes, expected: Iterable[bytes], *, links: bool) -> None:
        """See that nothing rests on an image, or leads to it, but what is expected to.

        :param expected: the overlays and links that the plan knows. :param links: whether links matter.
        :raises StateError: reason ``needed``, naming what does.
        """
        directory, now = os.path.dirname(path), time.monotonic()
        when, around = self._looks.get(directory, (self._began, None))
        if now - when > _RECENT_SECONDS:
            around = SeenImages(self._domains)
            around.look_at([], [directory])
            self._looks[directory] = (now, around)
        node = around.node(path) if around is not None else None
        if around is None or node is None:
            return
        names = set(map(_in_real_directory, expected))
        found = [overlay.path for overlay in around.dependents(node.key)[0]]
        found += [link.path for link in around.links.to([path]).get(path, ())] if links else []
        new = [name for name in found if _in_real_directory(name) not in names]
        if new:
            raise StateError(
                "since it was planned, {0} began to rest on it or to lead to it".format(", ".join(map(show, new[:_MOST_NAMED]))),
                path,
                reason="needed",
                hint="Nothing was changed. Run again: they are then migrated with it, or follow it.",
            )


def _is_at_or_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _in_real_directory(path: bytes) -> bytes:
    directory, name = os.path.split(path)
    return os.path.join(real_path(directory), name)


def _clones_of(base: bytes) -> List[bytes]:
    """The trees in which software that makes linked clones of an image keeps them, by the names that it gives.

    Proxmox VE (``PVE/Storage/Plugin.pm``): ``images/100/base-100-disk-0``, clones in ``images/101``. OpenStack Nova (``nova/virt/libvirt``):
    ``instances/_base/<hash>``, ``instances/<uuid>/disk``.
    """
    directory, name = os.path.split(base)
    above, last = os.path.split(directory)
    template = re.match(rb"base-(\d+)-disk-\d+", name)
    return [above] if last == b"_base" or (template is not None and template.group(1) == last) else []


_TEMPLATE = re.compile(rb"(?:^|[/._-])(?:base|template|golden|master|parent|backing)s?(?=[/._-]|\d*$)", re.IGNORECASE)


def looks_like_template(path: bytes) -> bool:
    """Whether the names of a file and its directory are such as people give to what linked clones are made from."""
    return _TEMPLATE.search(b"/".join(path.split(b"/")[-2:])) is not None


SEARCHED = "searched"
"""Where a record holds the trees in which its migration has looked for overlays, besides the original's directory."""
