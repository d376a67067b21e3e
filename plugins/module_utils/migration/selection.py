# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which records an operator means by the names of files, directories or records."""

import os
from typing import Iterable, List, Sequence, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.record import FAILED, Record, Records
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

_ROLES = ("src", "dest", "retired", "retire_to")


def select(
    records: Records, paths: Sequence[bytes] = (), identifiers: Sequence[str] = (), *, missing_ok: bool = False
) -> Tuple[List[Record], List[StateError]]:
    """The records of what ``paths`` (images, results, retired originals, or directories above them) and ``identifiers`` name.

    :return: the records, newest first, without those of migrations that failed; and an error for each identifier that is none, and for each
        path that names neither a record nor a directory (it was mistyped, or the records are elsewhere) unless ``missing_ok``.
    """
    everything = list(records.all())
    known = {record.id for record in everything}
    unknown = [
        StateError("there is no record {0}".format(name), records.directory, reason="missing", hint="Nothing was changed for it.")
        for name in identifiers
        if name not in known
    ]
    wanted = [os.path.abspath(path) for path in paths]
    nowhere = (
        []
        if missing_ok
        else [path for path in wanted if not os.path.isdir(path) and not any(_below(record, [path]) for record in everything)]
    )
    unknown += [
        StateError(
            "no record names it" if os.path.lexists(path) else "there is no such file or directory, and no record names it",
            path,
            reason="missing",
            hint="Nothing was changed for it. The records are those in {0}; several paths are given as a list.".format(
                show(records.directory)
            ),
        )
        for path in nowhere
    ]
    chosen = [record for record in everything if record.id in identifiers or (record.state != FAILED and _below(record, wanted))]
    return list(reversed(chosen)), unknown


def _below(record: Record, wanted: Iterable[bytes]) -> bool:
    names = [name for name in (record.file(role) for role in _ROLES) if name is not None]
    return any(name == path or name.startswith(path.rstrip(b"/") + b"/") for path in wanted for name in names)
