# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One user of an image: the value that all ways of looking for users return."""

from typing import NamedTuple

READER = "reader"
WRITER = "writer"


class Use(NamedTuple):
    """Somebody has an image in use.

    ``kind`` is ``"writer"`` or ``"reader"``; ``who`` names the process or device; ``how`` says what it was seen by.
    """

    kind: str
    who: str
    how: str
