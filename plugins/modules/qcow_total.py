#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_total
short_description: Show what a run amounts to over all hosts
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Shows how many hosts a run has finished, failed on and not reached, numbers of images and bytes, the path of the page, and the command to run next.
  - Runs on the controller only, and once for all hosts. The playbooks call it at their end; call it at the end of a play of your own that uses the roles.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.info_module
attributes:
  async:
    support: none
options:
  play:
    description: The role that ran.
    type: str
    choices: [scan, migrate, rollback, cleanup, status, stop]
    required: true
  hosts:
    description: All hosts of the run. One without an entry in O(counts) ended early.
    type: list
    elements: str
    default: []
  counts:
    description: RV(vmimage.qcow.qcow_report#module:counts) of each host. Empty entries are ignored.
    type: list
    elements: dict
    required: true
  path:
    description: The directory on the controller with the reports. Empty for no reports.
    type: str
  write_plan:
    description: Whether plans were written there, with O(play=scan).
    type: bool
    default: true
seealso:
  - module: vmimage.qcow.qcow_report
"""

EXAMPLES = r"""
- name: Migrate, and show the total
  hosts: vm_hosts
  gather_facts: false
  roles:
    - role: vmimage.qcow.migrate
      migrate_paths: /var/lib/libvirt/images
      migrate_fail_on_problems: false
  post_tasks:
    - name: Show the total
      vmimage.qcow.qcow_total:
        play: migrate
        hosts: "{{ ansible_play_hosts_all }}"
        counts: "{{ ansible_play_hosts_all | map('extract', hostvars) | map(attribute='__migrate_told.counts', default={}) }}"
        path: qcow-reports
      run_once: true
"""

RETURN = r"""
lines:
  description: The lines that were shown.
  returned: always
  type: list
  elements: str
  sample: ["3 hosts: 2 done, 1 failed", "7 images migrated, 1.2 GiB -> 1.1 GiB; 1 failed"]
hosts:
  description: The names of the hosts in each state.
  returned: always
  type: dict
  sample: {done: [kvm1, kvm2], left: [], failed: [kvm3], ended: [], unreached: []}
report:
  description: Path of the page, or V(null) if there is none.
  returned: always
  type: str
  sample: /srv/reports/2026-11/index.html
command:
  description: The command to run next, or V(null) if nothing is left to do.
  returned: always
  type: str
  sample: ansible-playbook -i inventory vmimage.qcow.migrate -e migrate_paths=/srv/images -l kvm3
"""
