#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_report
short_description: Create one report of all hosts
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Summarizes what a role of this collection did on a host, keeps that on the controller, and creates one report of all hosts.
  - The report is made from the reports of single hosts that the roles P(vmimage.qcow.scan#role) and P(vmimage.qcow.migrate#role) have written.
    Its page shows the state of the whole fleet and needs no network.
  - Runs on the controller only. The roles call it; call it yourself to create the report again.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
attributes:
  async:
    support: none
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - The report states when it was created, and is not rewritten if nothing else has changed.
options:
  path:
    description:
      - The directory on the controller with C(scan-HOST.json) and C(migrate-HOST.json).
      - C(index.html), C(report.json), C(hosts.csv), C(images.csv) and C(images.jsonl) are written to it.
      - A relative path is relative to the directory in which C(ansible-playbook) was started. Created if it does not exist.
      - Required unless O(results) is given. Empty for no reports.
    type: str
  hosts:
    description: Hosts for which a report is expected. A host without one is reported as missing.
    type: list
    elements: str
    default: []
  title:
    description: Headline of the page.
    type: str
    default: QCOW version 1 migration
  fleet:
    description: Whether to create the report of all hosts.
    type: bool
    default: true
  play:
    description: The role that O(results) are from.
    type: str
    choices: [scan, migrate, rollback, cleanup]
  results:
    description:
      - What the modules returned for this host, as registered. C(found) is from M(vmimage.qcow.qcow_info), C(planned) from
        M(vmimage.qcow.qcow_convert) in check mode, and C(done) from the module that made changes. C(hooks) has in C(failed) the failures of the
        operator's tasks.
      - Kept in O(path) as C(PLAY-HOST.json), except in check mode, and summarized in RV(lines) and RV(problems).
    type: dict
  requested_paths:
    description: The paths that were given to the role.
    type: list
    elements: str
    default: []
  write_plan:
    description: Whether to write C(plan-HOST.yml) beside the report, with O(play=scan).
    type: bool
    default: true
  plan_speed:
    description: Bytes per second for the time estimates in the plan.
    type: str
    default: 200M
  fail_on_found:
    description: Whether an image to migrate, found by a scan, is one of the RV(problems).
    type: bool
    default: false
seealso:
  - module: vmimage.qcow.qcow_info
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: Create the report of all hosts again
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Report
      vmimage.qcow.qcow_report:
        path: /srv/reports/2026-11
        title: Datacenter north, November
"""

RETURN = r"""
lines:
  description: The lines to show about the run on this host.
  returned: with O(results)
  type: list
  elements: str
  sample: ["3 files looked at, 1 to migrate"]
problems:
  description: The problems of the run on this host; empty if it succeeded.
  returned: with O(results)
  type: list
  elements: str
  sample: ["/srv/archive/private: Permission denied. Leave it out with exclude."]
ending:
  description: What the failure of the host says at the end of a playbook; empty if there is no problem.
  returned: with O(results)
  type: str
  sample: 2 problems, listed above.
counts:
  description: What this host adds to the total of the run, see M(vmimage.qcow.qcow_total). Sizes in bytes.
  returned: with O(results)
  type: dict
  sample: {host: kvm1, state: failed, problems: 2, changed: 2, failed: 2, deferred: {window: 12}, bytes_before: 24576, bytes_after: 425984,
           bytes_returned: 0, to_migrate: 0, to_migrate_bytes: 0, to_refuse: 0}
reached:
  description: Whether the host was reachable throughout.
  returned: with O(results)
  type: bool
  sample: true
report:
  description: Path of the page.
  returned: with O(fleet)
  type: str
  sample: /srv/reports/2026-11/index.html
totals:
  description: Numbers of hosts, of images by outcome, and of bytes, over all hosts.
  returned: with O(fleet)
  type: dict
  sample: {hosts: 2, missing: 0, files: 4711, images: 3, bytes: 6930432, failed: 0, left: 1, deferred: 0, migrated: 2, retired: 0, other: 0,
           left_bytes: 2310144, bytes_before: 4620288, bytes_after: 25296896, seconds: 25.2, verified: 2}
"""
