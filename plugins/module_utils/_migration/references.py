# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What refers to an image by its name and can follow it: domains and overlays are pointed to the result between publishing and retiring, and back by
a rollback. Text files cannot, see ``text_references``.
"""

from typing import AbstractSet, Dict, List, Set

from .._errors import StateError
from .record import Record

FACTS = ("needed_by", "domains", "repointed_headers", "links")
"""Where records hold what was re-pointed. A rollback that finds one of these and no updater for it refuses."""


class Updater:
    """One kind of reference. Every method may run again after a crash in its middle, and must then finish what is left."""

    fact = ""
    """The key of the record that holds what this updater needs to undo its work, one of :data:`FACTS`."""

    def repoint(self, record: Record) -> None:
        """Point references from the original to the result. Notes :attr:`fact` (``record.note(record.state, ...)``) before it acts.

        :raises QcowError: after which the migration stays unfinished and the original in its place.
        """
        raise NotImplementedError

    def restore(self, record: Record) -> None:
        """Point them back as :attr:`fact` says.

        :raises QcowError: after which the rollback stays unfinished.
        """
        raise NotImplementedError

    def obstacles(self, record: Record, going_back: AbstractSet[str] = frozenset()) -> List[str]:
        """Why they cannot be pointed back just now, in sentences. Changes nothing.

        :param going_back: names of the records that will have been rolled back before this one.
        """
        return []


class References:
    """All kinds of references on a host.

    :param updaters: in the order in which they re-point.
    """

    def __init__(self, *updaters: Updater) -> None:
        self._updaters = updaters
        self.going_back: Set[str] = set()
        """Names of the records that a check mode has found will be rolled back before those that it looks at next."""

    def repoint(self, record: Record) -> None:
        """Point everything to the result.

        :raises QcowError: see :meth:`Updater.repoint`.
        """
        for updater in self._updaters:
            updater.repoint(record)

    def obstacles(self, record: Record) -> List[str]:
        """Everything that stands in the way of pointing back what the record says was re-pointed, in sentences."""
        found: List[str] = []
        known = self._by_fact()
        for fact in FACTS:
            if not record.facts.get(fact):
                continue
            if fact in known:
                found.extend(known[fact].obstacles(record, self.going_back))
            else:
                found.append("the record says that {0} were re-pointed, and this host has nothing that can point them back".format(fact))
        return found

    def restore(self, record: Record) -> None:
        """Point everything back, in the reverse order.

        :raises StateError: where nobody is there to do it.
        :raises QcowError: see :meth:`Updater.restore`.
        """
        known = self._by_fact()
        for fact in reversed(FACTS):
            if record.facts.get(fact):
                if fact not in known:
                    raise StateError("nothing here can point {0} back".format(fact), record.path, hint="The record is intact.")
                known[fact].restore(record)

    def _by_fact(self) -> Dict[str, Updater]:
        return {updater.fact: updater for updater in self._updaters}
