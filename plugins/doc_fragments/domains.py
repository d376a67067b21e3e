# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Where libvirt is."""

    DOCUMENTATION = r"""
options:
  libvirt_uri:
    description:
      - Where libvirt is asked. That takes libvirt-python on the host, for the Python that runs the module (C(python3-libvirt)).
      - A host without libvirt has no domains.
    type: str
    default: qemu:///system
"""
