#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_report
short_description: Keep what is known of each host, and create one report of all
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - With O(results), takes what a role of this collection did on a host into what the controller keeps of that host, and summarizes it.
  - Without, creates one report of all hosts from what is kept of each. Its page needs no network.
  - What is kept of a host is its migration records merged with the latest look at its images, the latest plan, and the latest attempt. Every run of
    any role renews it, in whatever order; a host that was not reached stays, with the age of what is known.
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
      - The directory of the reports on the controller. Created if it does not exist. Several controllers may share one.
      - It holds C(host-HOST.jsonl), what is kept of each host. Delete this file to have a host leave the report.
      - C(index.html), C(report.json), C(hosts.csv), C(images.csv), C(images.jsonl) and C(metrics.prom) are made of these files.
      - A relative path is relative to the directory in which C(ansible-playbook) was started.
      - Required unless O(results) is given. Empty for no reports.
    type: str
  hosts:
    description: Hosts that belong in the report. A host of which nothing is known is reported as missing.
    type: list
    elements: str
    default: []
  title:
    description: Headline of the page.
    type: str
    default: QCOW version 1 migration
  play:
    description: The role that O(results) are from.
    type: str
    choices: [scan, migrate, rollback, cleanup, status, stop]
  results:
    description:
      - What the modules returned for this host, as registered. C(found) is from M(vmimage.qcow.qcow_info), C(planned) from
        M(vmimage.qcow.qcow_convert) in check mode, and C(done) from the module that made changes. They need C(list_records=all). C(hooks) has in
        C(failed) the failures of the operator's tasks.
      - Kept in O(path), except in check mode, and summarized in RV(lines) and RV(problems).
    type: dict
  requested_paths:
    description:
      - The paths that were given to the role. An image below these that a scan does not find any more leaves the report, unless a record
        explains where it is.
    type: list
    elements: str
    default: []
  limits:
    description:
      - How a scan was limited, as the options C(exclude), C(one_filesystem) and C(report) of M(vmimage.qcow.qcow_info). What a limited scan does not
        find stays in the report, unless it was found under the same limits.
    type: dict
    default: {}
  write_plan:
    description: Whether to write C(plan-HOST.yml) to O(path), with O(play=scan).
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
           bytes_returned: 0, to_migrate: 0, to_migrate_bytes: 0, to_refuse: 0, checks_failed: 0, running: 0, migrated: 0, interrupted: 0,
           stopped: 0, not_done: 0}
reached:
  description: Whether the host was reachable throughout.
  returned: with O(results)
  type: bool
  sample: true
report:
  description: Path of the page.
  returned: with O(path) and without O(results)
  type: str
  sample: /srv/reports/2026-11/index.html
totals:
  description:
    - Numbers of hosts, of images by state, and of bytes, over all hosts. C(left) counts all images that are still to migrate, C(failed), C(interrupted),
      C(running) and C(deferred) those among them.
    - The report is not made while batches of hosts are still to come and it is less than a minute old.
  returned: if the report was made
  type: dict
  sample: {hosts: 2, missing: 0, unreached: 0, files: 4711, images: 3, bytes: 6930432, failed: 0, interrupted: 0, running: 0, deferred: 0, migrated: 2,
           other: 0, left: 1, left_bytes: 2310144, bytes_before: 4620288, bytes_after: 25296896, seconds: 25.2, planned_seconds: 1,
           planned_bytes: 12648448, verified: 2}
"""
