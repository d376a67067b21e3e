#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_status
short_description: Show how far the run on a host is
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Shows which run is at work on a host and how far it is, and what earlier ones have done, from the records.
  - Changes nothing, does not wait, and does not disturb the run. Images are not opened.
  - Needs the right to read O(state_dir), which is its owner's, in most cases root (C(become)).
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.info_module
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.list_records
  - vmimage.qcow.options.state
seealso:
  - module: vmimage.qcow.qcow_stop
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: See how far the run is
  vmimage.qcow.qcow_status:
  register: now

- name: Tell
  ansible.builtin.debug:
    msg: "{{ now.running.percent if now.running else 'no run' }}"
"""

RETURN = r"""
running:
  description: The run at work, or V(null).
  returned: success
  type: dict
  contains:
    pid: {description: Its process. V(null) if it is not known., type: int, sample: 4711}
    since: {description: "When it began to work, in UTC.", type: str, sample: "2026-11-01T02:15:12Z"}
    stage: {description: "V(recovering), V(planning), V(working) or V(ending).", type: str, sample: working}
    images: {description: Number of images that it is to work on., type: int, sample: 40}
    done: {description: Number of those that it is done with., type: int, sample: 12}
    failed: {description: Number of those that failed., type: int, sample: 0}
    percent: {description: Share of the bytes that it is done with., type: int, sample: 31}
    seconds_left: {description: Seconds that the rest takes at the current speed., type: int, sample: 1080}
    current:
      description: The images in progress.
      type: list
      elements: dict
      contains:
        path: {description: The image., type: str, sample: /srv/archive/disk7.qcow}
        path_base64: {description: Its exact path in Base64 if C(path) cannot represent it., type: str, sample: null}
        stage: {description: "V(copy) or V(verify).", type: str, sample: verify}
        percent: {description: How far the stage is., type: int, sample: 80}
        bytes: {description: Guest bytes that have passed the stage., type: int, sample: 3435973836}
        size: {description: Guest bytes to pass., type: int, sample: 4294967296}
        speed: {description: Bytes per second., type: int, sample: 209715200}
        seconds_left: {description: Seconds that the rest of the stage takes., type: int, sample: 4}
waiting:
  description: Number of runs that wait for it to end.
  returned: success
  type: int
  sample: 0
last_run:
  description: How the last run on this host ended. V(null) if one is at work, if there was none, or if it was killed.
  returned: success
  type: dict
  contains:
    since: {description: "When it began to work, in UTC.", type: str, sample: "2026-11-01T02:15:12Z"}
    time: {description: "When it ended, in UTC.", type: str, sample: "2026-11-01T03:04:05Z"}
    images: {description: Number of images that it was to work on., type: int, sample: 40}
    done: {description: Number of those that it was done with., type: int, sample: 28}
    failed: {description: Number of those that failed., type: int, sample: 0}
    left: {description: Number of those that it did not deal with. V(null) if it had not planned them yet., type: int, sample: 12}
    stopped: {description: Whether it was stopped., type: bool, sample: true}
stopping:
  description: How the run was told to stop, see O(vmimage.qcow.qcow_stop#module:when). V(null) if it was not.
  returned: success
  type: str
  sample: after_image
domains:
  description: What the next run will do about domains that an interrupted run left shut down, or not on their images.
  returned: success
  type: list
  elements: str
  sample: [domain web01 will be started again]
errors:
  description: The records that cannot be read. Their images are in no number of RV(summary).
  returned: success
  type: list
  elements: dict
  sample:
    - {path: /var/lib/vmimage-qcow/records/20261101T021500.000000Z-1a2b3c4d.jsonl, path_base64: null,
       msg: "/var/lib/vmimage-qcow/records/20261101T021500.000000Z-1a2b3c4d.jsonl: this record cannot be read; its storage has failed."}
summary:
  description:
    - Numbers of records, of those that an interrupted run left and the next one will complete or clean up, of those that the run at work is at,
      and of images that are migrated.
  returned: success
  type: dict
  sample: {records: 43, interrupted: 0, in_progress: 1, migrated: 40}
records:
  description: Records of migrations on this host, oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    record: {description: Name of the record., type: str, sample: 20261101T021500.000000Z-1a2b3c4d}
    src: {description: The original., type: str, sample: /srv/archive/old.qcow}
    src_base64: {description: "Its exact path in Base64 if RV(records[].src) cannot represent it.", type: str, sample: null}
    dest: {description: The result., type: str, sample: /srv/archive/old.qcow2}
    dest_base64: {description: "Its exact path in Base64 if RV(records[].dest) cannot represent it.", type: str, sample: null}
    retired: {description: The name that the original was retired to., type: str, sample: /srv/archive/old.qcow.qcow1.orig}
    retired_base64: {description: "Its exact path in Base64 if RV(records[].retired) cannot represent it.", type: str, sample: null}
    format: {description: The result's format., type: str, sample: qcow2}
    state: {description: The last state that was reached., type: str, sample: done}
    began: {description: When the migration was begun., type: str, sample: "2026-11-01T02:15:00Z"}
    time: {description: When the last state was reached., type: str, sample: "2026-11-01T02:15:12Z"}
    verified: {description: Whether the result was verified against the original., type: bool, sample: true}
    fingerprint: {description: SHA-256 of what the guest sees., type: str, sample: 9f2c}
    before:
      description: What the original was.
      type: dict
      sample: {path: /srv/archive/old.qcow, format: qcow, virtual_size: 268435456, file_size: 2307141, allocated_size: 2310144, cluster_size: 4096}
    after:
      description: What the result was when it was made.
      type: dict
      sample: {path: /srv/archive/old.qcow2, format: qcow2, virtual_size: 268435456, file_size: 12648448, allocated_size: 12648448,
               cluster_size: 65536}
    seconds: {description: "Seconds that the copy and the verification took, or V(null).", type: float, sample: 11.2}
    domains: {description: Names of the libvirt domains that were changed to use the result., type: list, elements: str, sample: [web1]}
    returned: {description: "Bytes on the filesystem that a cleanup has freed, or V(null).", type: int, sample: null}
    error: {description: Why it failed., type: str, sample: null}
    unfinished: {description: "What the next run will do about it, or V(null) if nothing is left to do.", type: str, sample: null}
    reversible: {description: Whether M(vmimage.qcow.qcow_rollback) can undo it., type: bool, sample: true}
    in_progress: {description: Whether the run at work is at it; C(unfinished) is V(null) then., type: bool, sample: false}
reason: {description: "Why the module failed, as a keyword.", returned: when the call as a whole failed, type: str, sample: unreadable}
path: {description: What the failure is about., returned: when the call as a whole failed, type: str, sample: /var/lib/vmimage-qcow}
details: {description: Details of the failure., returned: when the call as a whole failed, type: dict, sample: {}}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _imports

_imports.compile_once()

from ..module_utils._errors import QcowError
from ..module_utils._migration.record_entries import LISTED
from ..module_utils._migration.status import status_of
from ..module_utils._options import absolute


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "list_records": {"type": "str", "choices": list(LISTED), "default": "unfinished"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    try:
        found = status_of(absolute(module.params["state_dir"], "state_dir"), module.params["list_records"])
    except QcowError as error:
        module.fail_json(**error.result())
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
