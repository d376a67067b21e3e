# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Options that several modules have in common: one name, one meaning, one type."""

    STATE = r"""
options:
  state_dir:
    description:
      - Directory on the host that holds the records of all migrations, readable by its owner only.
      - It is created when the first record is written.
    type: path
    default: /var/lib/vmimage-qcow
"""

    LIBVIRT = r"""
options:
  libvirt_uri:
    description:
      - Where libvirt is asked. That takes libvirt-python on the host, for the Python that runs the module (C(python3-libvirt)).
      - A host without libvirt has no domains.
    type: str
    default: qemu:///system
"""

    LOCK = r"""
options:
  lock_timeout:
    description: How long to wait for another run on the same host to end. In seconds, or with a unit (V(90s), V(5m), V(2h), V(1d)).
    type: str
    default: 0s
"""

    SEARCH = r"""
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

    RECORDS = r"""
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
notes:
  - What an interrupted run has left on this host is finished or cleaned up first, see RV(recovered).
"""
