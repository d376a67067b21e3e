#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_report
short_description: Make one report of all hosts
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Tells what a run of one of the collection's roles on a host amounts to, keeps that on the controller, and makes one report of all hosts.
  - Reads the reports that the roles P(vmimage.qcow.scan#role) and P(vmimage.qcow.migrate#role) have written for single hosts and makes one page of them
    that tells how a whole fleet stands, with no need of a network to look at it.
  - Works on the controller alone. The roles call it; call it yourself to make the report anew.
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
      - The report states when it was made, and is left as it is when nothing else has changed.
options:
  path:
    description:
      - The directory on the controller that holds C(scan-HOST.json) and C(migrate-HOST.json).
      - It gets C(index.html), C(report.json), C(hosts.csv), C(images.csv) and C(images.jsonl).
      - A relative one is below the directory C(ansible-playbook) was started in. It is made where it does not exist.
      - Required unless there are O(results). Empty for no reports.
    type: str
  hosts:
    description: Hosts of which a report is expected. One that has none is reported as missing.
    type: list
    elements: str
    default: []
  title:
    description: Headline of the page.
    type: str
    default: QCOW version 1 migration
  fleet:
    description: Whether to make the report of all hosts.
    type: bool
    default: true
  play:
    description: Whose O(results) they are.
    type: str
    choices: [scan, migrate, rollback, cleanup]
  results:
    description:
      - What the modules of this play have returned for this host, as registered. C(found) is of M(vmimage.qcow.qcow_info), C(planned) of
        M(vmimage.qcow.qcow_convert) in check mode, and C(done) of the module that has changed something.
      - It is kept in O(path) as C(PLAY-HOST.json), but not in check mode, and told in RV(lines) and RV(problems).
    type: dict
  requested_paths:
    description: The paths that O(results) are about.
    type: list
    elements: str
    default: []
  write_plan:
    description: Whether to write C(plan-HOST.yml) beside the report, with O(play=scan).
    type: bool
    default: true
  plan_speed:
    description: Bytes a second that the times in the plan are estimated with.
    type: str
    default: 200M
  fail_on_found:
    description: Whether RV(problems) has an entry where a scan has found an image to migrate.
    type: bool
    default: false
seealso:
  - module: vmimage.qcow.qcow_info
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: Make the report of all hosts anew
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
  description: What to show of the run on this host.
  returned: with O(results)
  type: list
  elements: str
  sample: ["3 files looked at, 1 to migrate"]
problems:
  description: Why the run on this host is no success; empty where it is.
  returned: with O(results)
  type: list
  elements: str
  sample: ["/srv/archive/private: Permission denied. Leave it out with exclude."]
reached:
  description: Whether the host could be reached all the time.
  returned: with O(results)
  type: bool
  sample: true
report:
  description: The page.
  returned: with O(fleet)
  type: str
  sample: /srv/reports/2026-11/index.html
totals:
  description: Numbers of hosts and of images by what has become of them, and bytes, over all hosts.
  returned: with O(fleet)
  type: dict
  sample: {hosts: 2, missing: 0, files: 4711, images: 3, bytes: 6930432, failed: 0, left: 1, deferred: 0, migrated: 2, retired: 0, other: 0,
           left_bytes: 2310144, bytes_before: 4620288, bytes_after: 25296896, seconds: 25.2, verified: 2}
"""
