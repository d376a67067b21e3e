# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The states of a migration, as its record states them. Each is written down before the step that it allows."""

PLANNED = "planned"
"""Decided; nothing but the record has been written."""

COPYING = "copying"
"""A temporary file, or a device, is being filled."""

VERIFIED = "verified"
"""The temporary file is complete, proven and durable; it may get the result's name."""

PUBLISHED = "published"
"""The result has its name; what refers to the original may be pointed to it."""

REPOINTED = "repointed"
"""Nothing refers to the original any more; it may be renamed."""

RETIRED = "retired"
"""The original has the name under which it is kept."""

DONE = "done"
FAILED = "failed"
ROLLING_BACK = "rolling-back"
ROLLED_BACK = "rolled-back"
CLEANING = "cleaning"
CLEANED = "cleaned"

IN_PLACE = (PUBLISHED, REPOINTED, RETIRED, DONE, CLEANING, CLEANED)
"""States in which the result has its name."""

FINISHED = (DONE, FAILED, ROLLED_BACK, CLEANED)
"""States after which nothing is left to do, but for a temporary file that could not be removed."""
