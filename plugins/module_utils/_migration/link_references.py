# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Symbolic links to an image: when its result has another name, they are pointed to that, recorded first, and back by a rollback."""

import os
import stat
from typing import AbstractSet, Any, Dict, List

from .._access import is_stranger
from .._directories import can_exchange, link_at, place_of, real_path
from .._errors import QcowError
from .._host.files import looked_at
from .._host.symbolic_links import SymbolicLink, SymbolicLinks, can_be_replaced, replace_link
from .._image.rights import owner_unable_to_read
from .._paths import decode_exact, from_base64, show, to_base64
from .backing import new_name
from .domain_references import IGNORE, REFUSE
from .plan import REFUSE as REFUSED
from .plan import Plan
from .record import Record, named
from .references import Updater

FACT = "links"
"""Where a record holds the links to its original: ``path``, ``before`` and ``after`` (what the link says, in Base64)."""

LEFT = "links_left"
"""Where a record holds in words which links could not be replaced."""

_MOST_TOLD = 10  # anybody can make any number of links
_MOST_FOLLOWED = 1000
_LONGEST = 4095  # bytes that a link can say


def with_links(plans: Dict[int, Plan], links: SymbolicLinks) -> Dict[int, Plan]:
    """The plans, each with the links that are to follow its image; or its refusal.

    Only an image that loses its name takes anything from its links.
    """
    losing = {number: plan for number, plan in plans.items() if plan.retires and not plan.in_place}
    found = links.to(plan.request.src for plan in losing.values()) if losing else {}
    with_them = dict(plans)
    for number, plan in losing.items():
        theirs = found.get(plan.request.src)
        if theirs:
            with_them[number] = _with_links(plan._replace(users=plan.users + tuple(link.path for link in theirs)), theirs)
    return with_them


def _with_links(plan: Plan, found: List[SymbolicLink]) -> Plan:
    if plan.request.links == IGNORE:
        return _warned(plan, ["the symbolic link {0} leads to it, and will lead nowhere".format(show(link.path)) for link in found])
    if plan.request.links == REFUSE:
        return _refused(plan, "linked", found, "lead to it", "Set links=follow to point them to the result, or remove them.")
    follow: List[SymbolicLink] = []
    fixed: List[SymbolicLink] = []
    told: List[str] = []
    for link in found:
        words = _objection(link, plan.request.src) or (
            ""
            if len(follow) < _MOST_FOLLOWED
            else "more than {0} symbolic links lead to it; {1} is left as it is".format(_MOST_FOLLOWED, show(link.path))
        )
        why = "" if words else _obstacle(link.path, _after(link, plan.dest))
        if words or (why and not _is_ours(link.path)):
            told.append(words or "the symbolic link {0} leads to it, and was not followed: {1}".format(show(link.path), why))
        elif why:
            fixed.append(link)
        else:
            follow.append(link)
    if fixed:
        return _refused(
            plan, "not-writable", fixed, "cannot be pointed to the result", "Make their directory writable, or set links=ignore."
        )
    return _warned(plan._replace(links=tuple(follow)), told)


def _warned(plan: Plan, told: List[str]) -> Plan:
    if len(told) > _MOST_TOLD:
        told[_MOST_TOLD:] = ["and {0} more symbolic links like that".format(len(told) - _MOST_TOLD)]
    return plan._replace(warnings=plan.warnings + tuple(told))


def _refused(plan: Plan, code: str, links: List[SymbolicLink], what: str, hint: str) -> Plan:
    names = ", ".join(show(link.path) for link in links[:_MOST_TOLD])
    if len(links) > _MOST_TOLD:
        names += " and {0} more".format(len(links) - _MOST_TOLD)
    words = "{0}: symbolic links {1}: {2}. Nothing was changed. {3}".format(show(plan.request.src), what, names, hint)
    return plan._replace(action=REFUSED, code=code, reasons=[words])


def _obstacle(path: bytes, target: bytes) -> str:
    """Why a link could not be made to say ``target``, in words; empty where nothing is known to keep it from that."""
    if len(target) >= _LONGEST:
        return "what it would have to say is too long"
    try:
        with place_of(path) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            return "" if can_be_replaced(directory, status) else "its directory cannot be written, or not by its owner"
    except (QcowError, OSError) as error:
        return str(error)


def _is_ours(path: bytes) -> bool:
    """Whether nobody but root and us can change a link, and where its path leads: what goes wrong with another is of their making."""
    try:
        with place_of(path) as (directory, name):
            return not can_exchange(directory, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except (QcowError, OSError):
        return False


def _objection(link: SymbolicLink, image: bytes) -> str:
    """Why a link does not belong to the image; empty where it does. As with overlays, its owner counts: whoever cannot read the image needs no link
    to it. In a directory that everybody may write to, a link of root's would be one that the kernel and we trust: none is made of a stranger's.
    """
    try:
        with place_of(link.path) as (directory, _name), looked_at(link.path) as fd, looked_at(real_path(image)) as there:
            if not is_stranger(os.fstat(fd).st_uid):
                return ""
            if os.fstat(directory).st_mode & stat.S_ISVTX:
                return "the symbolic link {0} leads to it, in a directory that everybody may write to; it is left as it is".format(
                    show(link.path)
                )
            outsider = owner_unable_to_read(fd, there, real_path(image))
    except (QcowError, OSError) as error:
        return "the symbolic link {0} leads to it, and was not followed: {1}".format(show(link.path), error)
    if outsider is None:
        return ""
    return "the symbolic link {0} leads to it, but {1}, who owns it, cannot read this image: it is left as it is".format(
        show(link.path), outsider
    )


def _after(link: SymbolicLink, dest: bytes) -> bytes:
    return new_name(link.path, link.path, link.target, os.path.join(os.path.dirname(link.path), link.target), dest)


def as_facts(plan: Plan) -> List[Dict[str, Any]]:
    """What the record says of the links from the beginning: what they say before and after."""
    return [named(link.path, before=to_base64(link.target), after=to_base64(_after(link, plan.dest))) for link in plan.links]


def links_of(record: Record) -> List[bytes]:
    """The links that a migration has pointed to its result, or was to."""
    return [_path(entry) for entry in record.facts.get(FACT) or ()]


class LinkUpdater(Updater):
    """Links that are known to lead to the image. One that says something else by now is somebody's own business, and is left alone; so is one that
    cannot be replaced, where others than root could have made it so.
    """

    fact = FACT

    def repoint(self, record: Record) -> None:
        """See :meth:`Updater.repoint`."""
        self._replace(record, "before", "after")

    def restore(self, record: Record) -> None:
        """See :meth:`Updater.restore`."""
        self._replace(record, "after", "before")

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """See :meth:`Updater.obstacles`."""
        found = []
        for entry in record.facts.get(FACT) or ():
            path, before, after = _path(entry), from_base64(entry["before"]), from_base64(entry["after"])
            why = _obstacle(path, before) if link_at(path) == after and _is_ours(path) else ""
            if why:
                found.append("the symbolic link {0} cannot be pointed back: {1}".format(show(path), why))
        return found

    @staticmethod
    def _replace(record: Record, before: str, after: str) -> None:
        for number, entry in enumerate(record.facts.get(FACT) or ()):
            path = _path(entry)
            try:
                replace_link(
                    path,
                    from_base64(entry[before]),
                    from_base64(entry[after]),
                    b".vmimage-qcow.%s.%d.link" % (record.id.encode("ascii"), number),
                )
            except QcowError as error:
                if _is_ours(path):
                    raise
                left = list(record.facts.get(LEFT) or ())
                record.note(record.state, **{LEFT: [*left, "the symbolic link {0} was left as it is: {1}".format(show(path), error)]})


def _path(entry: Dict[str, Any]) -> bytes:
    return decode_exact(entry["path"], entry["path_base64"])
