# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who keeps references to images on a host, put together in one place: every run that changes anything begins here."""

from typing import Dict, List, Type

from .._libvirt.inventory import Survey
from . import references
from .domain_references import Domains
from .overlay_headers import HeaderKeeper, OverlayKeeper
from .record import Record
from .references import Keeper

FOLLOW = "follow"
REFUSE = "refuse"
IGNORE = "ignore"


class Refusing(Domains):
    """An image that a domain uses is not migrated, and a migration that domains have followed is not undone."""

    def against(self, src: bytes) -> List[str]:
        """See :meth:`Domains.against`."""
        return ["It is used by domain {0} ({1}).".format(use.domain, use.target) for use in self.survey().users_of(src)]

    def obstacles(self, record: Record) -> List[str]:
        """See :class:`Keeper`."""
        return ["domain {0} was pointed to the result".format(entry["domain"]) for entry in record.facts.get(self.fact) or []]


class Ignoring(Domains):
    """Leaves domains to the operator. What an earlier run has begun to re-point is taken back all the same when its result is."""

    def survey(self) -> Survey:
        """See :meth:`Domains.survey`."""
        return Survey("none", complete=True)


class Leaving(Ignoring):
    """For rollbacks on hosts whose libvirt is gone: definitions stay as they are."""

    def restore(self, record: Record) -> None:
        """See :class:`Keeper`."""

    def obstacles(self, record: Record) -> List[str]:
        """See :class:`Keeper`."""
        return []


_MIGRATING: Dict[str, Type[Domains]] = {FOLLOW: Domains, REFUSE: Refusing, IGNORE: Ignoring}
_UNDOING: Dict[str, Type[Domains]] = {FOLLOW: Domains, REFUSE: Refusing, IGNORE: Leaving}


def install(domains: str, uri: str, *, undoing: bool = False, raw_allowed: bool = False) -> Domains:
    """Have the headers of overlays and, as ``domains`` says, the definitions of libvirt domains follow images from here on.

    :param raw_allowed: whether a v1 image may be followed as an image although a domain declares it raw.
    :return: who looks after the domains; it asks libvirt at ``uri`` only when something depends on it.
    """
    keeper = (_UNDOING if undoing else _MIGRATING)[domains](uri, raw_allowed=raw_allowed)
    everybody: List[Keeper] = [OverlayKeeper(), HeaderKeeper(), keeper]
    references.install(*everybody)
    return keeper
