# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Options of the modules that look for images."""

    DOCUMENTATION = r"""
options:
  exclude:
    description:
      - Shell patterns. What matches one by its name or its full path is left out, a directory with all below it.
    type: list
    elements: str
    default: []
  one_filesystem:
    description: Whether to stay on the filesystem of each of O(paths).
    type: bool
    default: false
  missing_ok:
    description:
      - Whether O(paths) may name what does not exist.
      - An image that was migrated and has lost its name to that is never an error.
    type: bool
    default: false
"""
