# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Symbolic links that walks have met, and the files that they lead to."""

import os
from typing import Dict, List, Mapping, NamedTuple, Optional

from .._directories import link_at, real_path

_MOST_HOPS = 40  # as in the kernel


class SymbolicLink(NamedTuple):
    """A link whose target is a file itself, and not another link to it. ``target`` is what it says."""

    path: bytes
    target: bytes


class SymbolicLinks:
    """The links that walks have met, by the files that they lead to.

    A link may lead to a file by others, met or not: the last one of them is the one that names it.
    """

    def __init__(self) -> None:
        self._met: Dict[bytes, bytes] = {}
        self._leading: Optional[Dict[bytes, Dict[bytes, bytes]]] = None
        self._directories: Dict[bytes, bytes] = {}

    def add(self, met: Mapping[bytes, bytes]) -> None:
        """Take in links: their paths, and what they say."""
        if met:
            self._met.update(met)
            self._leading = None

    def to(self, path: bytes) -> List[SymbolicLink]:
        """The links to the file of that path, by their paths without symbolic links."""
        if self._leading is None:
            self._leading = {}
            for met in sorted(self._met):
                self._follow(met, self._leading)
        return [SymbolicLink(link, target) for link, target in sorted(self._leading.get(self._real(path), {}).items())]

    def _real(self, path: bytes) -> bytes:
        directory, name = os.path.split(path)
        if directory not in self._directories:
            self._directories[directory] = real_path(directory)
        return os.path.join(self._directories[directory], name)

    def _follow(self, path: bytes, leading: Dict[bytes, Dict[bytes, bytes]]) -> None:
        link, target = self._real(path), self._met[path]
        for _hop in range(_MOST_HOPS):
            there = self._real(os.path.join(os.path.dirname(link), target))
            further = link_at(there)
            if further is None:
                leading.setdefault(there, {})[link] = target
                return
            link, target = there, further
