# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Symbolic links that walks have met, and the files that they lead to."""

import os
from typing import Dict, Iterable, List, NamedTuple, Set

from .._directories import link_at
from .places import Places


class SymbolicLink(NamedTuple):
    """A link whose target is a file itself, and not another link to it. ``target`` is what it says."""

    path: bytes
    target: bytes


class SymbolicLinks:
    """The links that walks have met. One may lead to a file by others, met or not: the last one of them is the one that names it."""

    def __init__(self) -> None:
        self._met: Set[bytes] = set()

    def add(self, paths: Iterable[bytes]) -> None:
        """Take in links that were met."""
        self._met.update(paths)

    def to(self, files: Iterable[bytes]) -> Dict[bytes, List[SymbolicLink]]:
        """The links to each of these files that has any, by their paths without symbolic links."""
        files = list(files)
        places = Places({os.path.dirname(path) for path in (*files, *self._met)})
        keys = {entry.key: path for path in files for entry in places.entries(path)[:1]}
        found: Dict[bytes, Dict[bytes, bytes]] = {}
        for met in self._met:
            entries = places.entries(met)
            path = keys.get(entries[-1].key) if len(entries) > 1 else None
            target = link_at(entries[-2].path) if path is not None else None
            if path is not None and target is not None:
                found.setdefault(path, {})[entries[-2].path] = target
        return {path: [SymbolicLink(*item) for item in sorted(links.items())] for path, links in found.items()}
