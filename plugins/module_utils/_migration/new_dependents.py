# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has come to rest on the result or the original of a migration since: what a rollback or a cleanup would take its backing file from."""

import os
from typing import List, Optional, Set, Tuple

from .._directories import is_directory, real_path, status_of
from .._errors import QcowError, StateError
from .._image.chain import Key
from .._paths import decode_exact, show
from . import overlay_headers
from .domain_references import Domains
from .record import Record
from .seen_images import SEARCHED, SeenImages


class NewDependents:
    """Overlays that somebody has made since on results, or on retired originals.

    Looks once in a run where overlays are made: beside them, where the migration has looked for them, and at what libvirt knows.
    """

    def __init__(self, domains: Optional[Domains] = None) -> None:
        """:param domains: whose images count, whoever owns them."""
        self._around = SeenImages(domains)
        self._leaving: Set[bytes] = set()

    def leaves(self, record: Record) -> None:
        """This record's result has gone (in check mode: would have gone) before those that are asked for next."""
        self._leaving.add(real_path(record.path_of("dest")))

    def require_none(self, record: Record) -> List[str]:
        """See that nothing rests on a record's result but what its rollback points back.

        :return: in words, what says that it does but does not count.
        :raises StateError: reason ``needed``, naming what rests on it.
        """
        dest = record.path_of("dest")
        expected = self._leaving | set(map(real_path, overlay_headers.repointed(record)))
        key, now = self._look(record, dest)
        resting, ignored = now.dependents(key)
        found = [node.path for node in resting if real_path(node.path) not in expected]
        if found:
            raise StateError(
                "the result is the backing file of {0}".format(", ".join(show(path) for path in found)),
                dest,
                reason="needed",
                hint="Nothing was changed. Commit its overlays first (qemu-img commit); roll back those that belong to a migrated image.",
            )
        return ignored

    def naming(self, record: Record, path: bytes) -> List[bytes]:
        """The images that name one of the record's files as their backing file, whether they count or not."""
        key, now = self._look(record, path)
        return [node.path for node in now.graph.dependents(key)]

    def _look(self, record: Record, path: bytes) -> Tuple[Key, SeenImages]:
        """What a file is, and the images that were seen to name it, as they are now: they may have gone, or been pointed back."""
        around, now = self._around, SeenImages(self._around.domains)
        names = [name for name in (record.file(role) for role in ("src", "dest", "retired")) if name is not None]
        around.look_at(searched_for(record), filter(is_directory, map(os.path.dirname, [path, *names])))
        try:
            status = status_of(path)
        except (QcowError, OSError):
            return (0, 0), now
        key = status.st_dev, status.st_ino
        for node in around.graph.dependents(key):
            now.node(node.path)
        return key, now


def searched_for(record: Record) -> List[bytes]:
    """The trees in which a migration has looked for overlays, as far as they are still there."""
    trees = [decode_exact(entry["path"], entry["path_base64"]) for entry in record.facts.get(SEARCHED) or ()]
    return [path for path in trees if is_directory(path)]
