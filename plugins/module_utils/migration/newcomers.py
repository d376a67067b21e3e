# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlays that somebody has made on a result since its migration: a rollback would leave them without their base."""

import os
from typing import Dict, List, Set

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import open_source
from ansible_collections.vmimage.qcow.plugins.module_utils.image.chain import Graph, Node
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.chains import survey
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.record import Record
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.repoint import repointed
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show


class Newcomers:
    """Looks into each directory once in a run, where overlays are made: beside the results."""

    def __init__(self) -> None:
        self._seen: Dict[bytes, Graph] = {}
        self._leaving: Set[bytes] = set()

    def leaves(self, record: Record) -> None:
        """This record's result has gone (in check mode: would have gone) before those that are asked for next."""
        self._leaving.add(record.path_of("dest"))

    def require_none(self, record: Record) -> None:
        """See that nothing rests on a record's result but what its rollback points back.

        :raises StateError: reason ``needed``, naming what rests on it.
        """
        dest = record.path_of("dest")
        expected = self._leaving | repointed(record)
        found = [node.path for node in self._resting_on(dest) if node.path not in expected]
        if found:
            raise StateError(
                "the result is the backing file of {0}".format(", ".join(show(path) for path in found)),
                dest,
                reason="needed",
                hint="Nothing was changed. Commit or move away what rests on it first; if it belongs to a migrated image, roll that back first.",
            )

    def _resting_on(self, dest: bytes) -> List[Node]:
        directory = os.path.dirname(dest)
        if directory not in self._seen:
            self._seen[directory] = survey([], [directory])
        try:
            status = os.stat(dest)
        except OSError:
            return []
        key, now = (status.st_dev, status.st_ino), Graph()
        for node in self._seen[directory].dependants(key):
            now.add(node.path, open_source)  # as it is now: it may have gone, or been pointed back
        return now.dependants(key)
