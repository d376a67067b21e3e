# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A file with several names is one image, migrated under one of them: two results would be two disks that diverge."""

import os
from typing import Optional

from .._directories import real_path, status_of
from .._errors import QcowError
from .._host.files import inode_at
from .._paths import show
from .plan import Plan
from .record import Record, Records, State
from .request import retired_path


def under_one_name(plan: Plan, first: Optional[Plan], records: Records) -> Plan:
    """The plan, with a warning where its file has further names: they keep what they show.

    :param first: what the batch has planned for the same file before. :param records: of earlier migrations.
    :raises QcowError: reason ``linked``, where the file is migrated, or was, under another name.
    """
    src = plan.request.src
    if first is not None:
        raise _linked(src, first.request.src, first.dest)
    status = status_of(src)
    if status.st_nlink == 1:
        return plan
    done = _migrated_as(src, status, records)
    if done is not None:
        raise _linked(src, done.path_of("src"), done.path_of("dest"))
    retired = inode_at(retired_path(src)) == status.st_ino  # our own link, from a retirement that was interrupted
    further = status.st_nlink - 1 - retired
    if further < 1:
        return plan
    names = "a further name (hard link) that keeps" if further == 1 else "{0} further names (hard links) that keep".format(further)
    warning = "the file has {0} the v1 content: from now on it and the result diverge".format(names)
    return plan._replace(warnings=plan.warnings + (warning,))


def _migrated_as(src: bytes, status: os.stat_result, records: Records) -> Optional[Record]:
    """The migration of the same file under another name, which it or the retired original still has."""
    for record in records.of_file(status.st_ino, status.st_size):
        if record.state not in State.IN_PLACE or record.file("src") == src:
            continue
        for name in (record.file("retired"), record.file("src")):
            try:
                if name is not None and os.path.samestat(status_of(name), status):
                    return record
            except (QcowError, OSError):
                continue
    return None


def _linked(src: bytes, other: bytes, dest: bytes) -> QcowError:
    what_to_do = "Once that is migrated, remove this name, or replace it by a link to {0}".format(show(dest))
    if real_path(src) == real_path(other):
        what_to_do = "Give each image once"
    return QcowError(
        "is the same file as {0}, and a file is migrated under one name only".format(show(other)),
        src,
        reason="linked",
        hint="Nothing was changed for this name. {0}.".format(what_to_do),
    )
