# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that hang together: planned base first, refused together, and no base retired that somebody still needs."""

import os
import stat
from typing import Dict, List, Optional, Set, Tuple

from .._access import is_stranger, user_name
from .._directories import real_path, status_of
from .._errors import QcowError, StateError, UnsafeImage
from .._host import tree
from .._host.files import looked_at
from .._host.in_use import find_users_many
from .._image.chain import Graph, GraphNode, Key, allowed, locate
from .._image.detect import QCOW_MAGIC
from .._image.qcow1_check import STRUCTURE
from .._image.qcow2_header import BackingEntry
from .._image.rights import owner_unable_to_read
from .._paths import show
from . import overlay_headers
from .backing import new_name
from .domain_references import Domains
from .moved_files import MovedFiles
from .plan import CONVERT, REFUSE, RETIRE, Plan
from .planner import Bases, make_plan
from .record import Record, Records
from .request import Request, is_overlay, is_retired

_MOST_NAMED = 10  # anybody can make any number of overlays
_QEMU_USERS = ("libvirt-qemu", "qemu")


class SeenImages:
    """The images of our formats that have been seen so far, and the trees that were walked whole for it."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.walked: Tuple[bytes, ...] = ()
        self.domains: Optional[Domains] = None  # whose images count, whoever owns them
        self._objections: Dict[Key, str] = {}

    def add(self, found: tree.Found) -> None:
        """Take in what a walk has found, from the bytes that it has read already; not retired originals, nor what a running domain writes."""
        if found.key is not None and not is_retired(found.path) and not is_overlay(found.path):
            self.graph.add(found.path, found.key, found.read_at)

    def look_around(self, requests: List[Request]) -> None:
        """See everything that could rest on an image that would be retired: what lies beside it, and all below the backing directories."""
        trees: Dict[bytes, None] = {}
        directories: Dict[bytes, None] = {}
        for request in requests:
            if request.retire:
                trees.update(dict.fromkeys(request.backing_dirs))
                directories[os.path.dirname(request.src)] = None
        self.walk([path for path in trees if not self._has_walked(path)], recurse=True)
        self.walk([path for path in directories if not self._has_walked(path)], recurse=False)

    def _has_walked(self, directory: bytes) -> bool:
        return allowed(os.path.join(directory, b"x"), self.walked)

    def walk(self, paths: List[bytes], *, recurse: bool) -> None:
        """See the images in directories, or in whole trees."""
        for found in tree.walk(paths, prefix=QCOW_MAGIC, recurse=recurse):
            self.add(found)

    def node(self, path: bytes) -> Optional[GraphNode]:
        """The image of that name, ``None`` where there is none. It is opened only where it has not been seen."""
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


def plan_chains(
    requests: List[Request],
    records: Records,
    level: str = STRUCTURE,
    around: Optional[SeenImages] = None,
    moved: Optional[MovedFiles] = None,
) -> List[Plan]:
    """One plan for each request, in their order; bases are planned before what rests on them.

    :param level: of the check of each image.
    :param around: what has been seen of other images already.
    :param moved: settles which file is which.

    A base that would be retired gets the foreign overlays that have to follow it; it is refused where something rests on it that can neither
    follow nor is migrated in the same batch.
    """
    around = around or SeenImages()
    around.look_around(requests)
    own: Dict[Key, int] = {}
    for number, request in enumerate(requests):
        node = around.node(request.src)
        if node is not None:
            own.setdefault(node.key, number)
    bases = Bases(level, moved)
    if len(own) > 1:
        bases.users = find_users_many(own)
    plans: Dict[int, Plan] = {}
    for number in _base_first(requests, around, own):
        plans[number] = make_plan(requests[number], records, bases)
    for key, number in own.items():
        if plans[number].retired is not None and plans[number].action in (CONVERT, RETIRE):
            dependents, ignored = around.dependents(key)
            plan = plans[number]._replace(warnings=plans[number].warnings + tuple(ignored))
            plans[number] = _with_dependents(plan, dependents, own, plans)
    chain_groups = _chain_groups(around, own, plans)
    return [plans[number]._replace(chain_group=chain_groups.get(number)) for number in range(len(requests))]


def refuse_together(plans: List[Plan]) -> List[Plan]:
    """Where one image of a chain group is refused, all that would be changed of it are."""
    refused: Dict[int, Plan] = {}
    for plan in plans:
        if plan.chain_group is not None and plan.action == REFUSE:
            refused.setdefault(plan.chain_group, plan)
    return [
        _refused(plan, "chain", "of the same chain, {0}".format("; ".join(refused[plan.chain_group].reasons)))
        if plan.chain_group in refused and plan.action in (CONVERT, RETIRE)
        else plan
        for plan in plans
    ]


def _refused(plan: Plan, code: str, why: str) -> Plan:
    return plan._replace(action=REFUSE, code=code, reasons=["{0}: {1}".format(show(plan.request.src), why)])


def _base_first(requests: List[Request], around: SeenImages, own: Dict[Key, int]) -> List[int]:
    keys = {number: key for key, number in own.items()}
    order: Dict[int, None] = {}
    for number in range(len(requests)):
        line: List[int] = []
        seen: Set[Key] = set()
        key: Optional[Key] = keys.get(number)
        while key is not None and key not in seen:
            seen.add(key)
            if key in own:
                line.append(own[key])
            key = around.base(key)
        order.update(dict.fromkeys(reversed(line or [number])))
    return list(order)


def _with_dependents(plan: Plan, dependents: List[GraphNode], own: Dict[Key, int], plans: Dict[int, Plan]) -> Plan:
    """The plan of a base with what has to follow it, or its refusal."""
    follow: List[overlay_headers.Dependent] = []
    needed_by: List[bytes] = []
    for node in dependents:
        over = plans[own[node.key]] if node.key in own else None
        if over is not None and node.format == "qcow" and over.action in (CONVERT, RETIRE, REFUSE):
            needed_by.append(over.request.src)
            continue
        if node.format == "qcow":
            return _refused(
                plan,
                "needed",
                "it is the backing file of {0}, which is not migrated in this run. Nothing was changed. Migrate both together, "
                "or keep the original.".format(show(node.path)),
            )
        try:
            old = node.reference.name if node.reference else b""
            name = new_name(node.path, node.path, old, locate(node.path, old), plan.dest)
            follow.append(overlay_headers.check(node.path, BackingEntry(name, plan.request.format)))
        except QcowError as error:
            return _refused(plan, error.reason, "its overlay cannot follow it: {0}".format(error))
    return plan._replace(dependents=tuple(follow), needed_by=tuple(needed_by))


def _chain_groups(around: SeenImages, own: Dict[Key, int], plans: Dict[int, Plan]) -> Dict[int, int]:
    """Number of the chain group by number of the plan, for images that are not alone in theirs."""
    parent = {number: number for number in plans}

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for key, number in own.items():
        request = plans[number].request
        base = around.base(key)
        seen = {key}
        while base is not None and base not in seen:
            seen.add(base)
            if base in own:
                together = request.chains == "preserve" or plans[own[base]].request.retire
                if together:
                    parent[root(number)] = root(own[base])
                break
            base = around.base(base)
    sizes: Dict[int, int] = {}
    for number in plans:
        sizes[root(number)] = sizes.get(root(number), 0) + 1
    return {number: root(number) for number in plans if sizes[root(number)] > 1 or plans[number].dependents}


class NewDependents:
    """Overlays that somebody has made since on results, or on retired originals.

    Looks into each directory once in a run, where overlays are made: beside them.
    """

    def __init__(self, domains: Optional[Domains] = None) -> None:
        """:param domains: whose images count, whoever owns them."""
        self._domains = domains
        self._seen: Dict[bytes, SeenImages] = {}
        self._leaving: Set[bytes] = set()

    def leaves(self, record: Record) -> None:
        """This record's result has gone (in check mode: would have gone) before those that are asked for next."""
        self._leaving.add(record.path_of("dest"))

    def require_none(self, record: Record) -> List[str]:
        """See that nothing rests on a record's result but what its rollback points back.

        :return: in words, what says that it does but does not count.
        :raises StateError: reason ``needed``, naming what rests on it.
        """
        dest = record.path_of("dest")
        expected = self._leaving | overlay_headers.repointed(record)
        resting, ignored = self.of(dest)
        found = [path for path in resting if path not in expected]
        if found:
            raise StateError(
                "the result is the backing file of {0}".format(", ".join(show(path) for path in found)),
                dest,
                reason="needed",
                hint="Nothing was changed. Commit or move away its overlays first; roll back those that belong to a migrated image.",
            )
        return ignored

    def of(self, path: bytes) -> Tuple[List[bytes], List[str]]:
        """The images beside a file that rest on it, by the name that it has; and in words those that say so but do not count."""
        key, now = self._look(path)
        resting, ignored = now.dependents(key)
        return [node.path for node in resting], ignored

    def naming(self, path: bytes) -> List[bytes]:
        """The images beside a file that name it as their backing file, whether they count or not."""
        key, now = self._look(path)
        return [node.path for node in now.graph.dependents(key)]

    def _look(self, path: bytes) -> Tuple[Key, SeenImages]:
        """What a file is, and the images that were seen to name it, as they are now: they may have gone, or been pointed back."""
        directory, now = os.path.dirname(path), SeenImages()
        now.domains = self._domains
        if directory not in self._seen:
            self._seen[directory] = SeenImages()
            self._seen[directory].walk([directory], recurse=False)
        try:
            status = status_of(path)
        except (QcowError, OSError):
            return (0, 0), now
        key = status.st_dev, status.st_ino
        for node in self._seen[directory].graph.dependents(key):
            now.node(node.path)
        return key, now
