# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Options that several modules have in common."""

    DOCUMENTATION = r"""
options:
  state_dir:
    description:
      - Directory on the host that holds the records of all migrations, readable by its owner only.
      - It is created when the first record is written.
    type: path
    default: /var/lib/vmimage-qcow
"""
