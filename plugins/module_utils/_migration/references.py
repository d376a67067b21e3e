# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What refers to an image by its name. Domains and overlays are pointed to the result between publishing and retiring, and back by a rollback; text
files (configuration of Xen and Proxmox guests, units, scripts) are read, never written.
"""

import os
import re
import stat
from typing import AbstractSet, Dict, Iterable, Iterator, List, NamedTuple, Pattern, Set

from .._directories import real_path
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


MAX_BYTES = 1 << 20
"""Files that people and tools write by hand are smaller; what is larger is data."""

_WORD = rb"[A-Za-z0-9_./\x80-\xff-]"


class Mention(NamedTuple):
    """A line (counted from 1) of a file that names an image."""

    file: bytes
    line: int


def mentions(directories: Iterable[bytes], paths: Iterable[bytes]) -> Dict[bytes, List[Mention]]:
    """Which lines below the directories name which of these images.

    A name counts in full (with a prefix as Xen writes it too, ``tap:qcow:/srv/a.qcow``), without its symbolic links, and as Proxmox writes
    volumes (``storage:100/a.qcow``). Files that cannot be read, or hold no text, name nothing.
    """
    patterns = {path: _pattern(path) for path in paths}
    found: Dict[bytes, List[Mention]] = {}
    for file in _text_files(directories):
        data = _text(file)
        for path, pattern in patterns.items():
            if os.path.basename(path) not in data:
                continue
            lines = sorted({data.count(b"\n", 0, match.start()) + 1 for match in pattern.finditer(data)})
            found.setdefault(path, []).extend(Mention(file, line) for line in lines)
    return {path: hits for path, hits in found.items() if hits}


def _pattern(path: bytes) -> Pattern[bytes]:
    names = {path, real_path(path)}
    volume = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
    full = b"|".join(re.escape(name) for name in sorted(names))
    return re.compile(rb"(?:(?<!" + _WORD + rb")(?:" + full + rb")|(?<=:)" + re.escape(volume) + rb")(?!" + _WORD + rb")")


def _text_files(directories: Iterable[bytes]) -> Iterator[bytes]:
    for directory in directories:
        if os.path.isfile(directory):
            yield directory
        for parent, subdirectories, names in os.walk(directory):
            subdirectories.sort()
            for name in sorted(names):
                yield os.path.join(parent, name)


def _text(path: bytes) -> bytes:
    """The content of a text file, else nothing. Links are followed: units are often links."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return b""
        data = os.read(fd, MAX_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"" if b"\0" in data else data
