# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Options of the modules that start from records."""

    DOCUMENTATION = r"""
options:
  records:
    description: Names of records, as RV(vmimage.qcow.qcow_convert#module:record) and the reports of the roles give them.
    type: list
    elements: str
    default: []
  missing_ok:
    description: Whether O(paths) may name what does not exist and what no record knows. A directory without records is never an error.
    type: bool
    default: false
  lock_timeout:
    description: How many seconds to wait for another run on the same host to end.
    type: int
    default: 0
notes:
  - What an interrupted run has left behind on this host is finished or cleaned up first, see RV(recovered).
"""
