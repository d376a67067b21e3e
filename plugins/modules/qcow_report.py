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
  - Reads the reports that the roles P(vmimage.qcow.scan#role) and P(vmimage.qcow.migrate#role) have written for single hosts and makes one page of them
    that tells how a whole fleet stands, with no need of a network to look at it.
  - Works on the controller alone. The roles call it; call it yourself to make the report anew.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
attributes:
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
    type: path
    required: true
  hosts:
    description: Hosts of which a report is expected. One that has none is reported as missing.
    type: list
    elements: str
    default: []
  title:
    description: Headline of the page.
    type: str
    default: QCOW version 1 migration
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
report:
  description: The page.
  returned: always
  type: str
  sample: /srv/reports/2026-11/index.html
totals:
  description: Numbers of hosts and of images by what has become of them, and bytes, over all hosts.
  returned: always
  type: dict
"""
