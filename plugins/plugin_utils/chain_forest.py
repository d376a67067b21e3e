# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The backing chains of a host, as trees: each base with what rests on it."""

from __future__ import annotations

import sys
import typing as t

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import show
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_file import Facts, name

_DEEPEST = 50
_MOST = 2000
"""Images that the trees of one host have."""


class ChainForest:
    """Takes the images of a host one by one; of each it remembers no more than its name, its format and its state."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, str]] = {}
        self._above: dict[bytes, dict[bytes, None]] = {}

    def add(self, path: bytes, row: Facts, below: t.Iterable[Facts]) -> None:
        """An image with the files that it rests on, nearest first."""
        self._known[path] = (sys.intern(row["format"]), sys.intern(row["state"]))
        for member in below:
            base = name(member)
            self._above.setdefault(base, {})[path] = None
            path = base

    def trees(self, most: int) -> list[Facts]:
        """The bases with their overlays.

        :param most: trees that are told.
        """
        overlays = {over for overs in self._above.values() for over in overs}
        bases = sorted(base for base in self._above if base not in overlays)
        drawn: set[bytes] = set()
        return [self._tree(base, 0, drawn) for base in bases[: max(0, most)]]

    def _tree(self, path: bytes, depth: int, drawn: set[bytes]) -> Facts:
        """:param drawn: an image rests on one file: what looks (of several times, or of a hostile host) say beyond that is not drawn again."""
        kind, state = self._known.get(path, (None, None))
        tree: Facts = {"path": show(path), "format": kind, "state": state, "overlays": []}
        for over in sorted(self._above.get(path, ())) if depth < _DEEPEST else ():
            if over not in drawn and len(drawn) < _MOST:
                drawn.add(over)
                tree["overlays"].append(self._tree(over, depth + 1, drawn))
        return tree
