# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names that are taken: by what, and the ways out. Nobody is told to move away what may be the disk of a guest."""

from typing import Optional

from .._directories import is_directory, link_at
from .._errors import QcowError
from .._host.in_use import find_users
from .._image.detect import UNKNOWN
from .._paths import show
from .record import Record, Records, State
from .source import Source


def taken(what: str, path: bytes, src: bytes, records: Records, way_out: str) -> QcowError:
    """The error, reason ``exists``, of a name that something has: it says what that is, who has it open, and which migration has made it.

    :param what: the name is for. :param src: the image in question. :param way_out: where no record tells of a better one.
    """
    made_by = _made_by(path, records)
    found = "{0} {1} is taken by {2}".format(what, show(path), described(path))
    is_result = made_by is not None and made_by.file("dest") == path
    if made_by is not None:
        found += ", {0} of {1} (record {2})".format(
            "the result" if is_result else "the retired original", show(made_by.path_of("src")), made_by.id
        )
    if made_by is not None and made_by.state == State.DONE:
        way_out = "{0} Or undo that migration first (qcow_rollback){1}.".format(way_out, "" if is_result else ", or end it (qcow_cleanup)")
    return QcowError(found, src, reason="exists", hint="Nothing was changed. {0}".format(way_out))


def described(path: bytes) -> str:
    """What has a name, in words: its kind or format, and the processes that have it open."""
    target = link_at(path)
    if target is not None:
        return "a symbolic link to {0}".format(show(target))
    if is_directory(path):
        return "a directory"
    try:
        with Source(path) as there:
            kind = there.identify().format
            users = find_users(there.fd)
    except (QcowError, OSError):
        return "something that is no image"
    words = "a file without an image's mark" if kind == UNKNOWN else "a file that is {0}".format(kind)
    return words + (" and in use by {0}".format(", ".join(sorted({use.who for use in users}))) if users else "")


def _made_by(path: bytes, records: Records) -> Optional[Record]:
    """The last migration that has given the name to its result, or to its original."""
    made = None
    for record in records.all():
        if record.state in State.IN_PLACE and path in (record.file("dest"), record.file("retired")):
            made = record
    return made
