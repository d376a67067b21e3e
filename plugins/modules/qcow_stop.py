#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_stop
short_description: Stop the run at work on a host
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Stops what M(vmimage.qcow.qcow_convert), M(vmimage.qcow.qcow_rollback) or M(vmimage.qcow.qcow_cleanup) is doing on a host, in good order. Images that are
    finished stay as they are; run again to continue.
  - Concerns every run that was started before. A host on which C(ansible-playbook) has not begun yet (C(forks), C(serial)) begins nothing when its turn comes,
    and a run that waits for another one ends. A run that is started later does not heed it.
  - When a run has started is known for M(vmimage.qcow.qcow_convert), which is told by the controller how long C(ansible-playbook) has been running.
    M(vmimage.qcow.qcow_rollback) and M(vmimage.qcow.qcow_cleanup) count from the start of the module on the host, so those whose turn comes later do
    start. M(vmimage.qcow.qcow_domain) completes its image, and does not start if it waits for another run.
  - Images that a stopped run did not begin are listed with action V(defer) and reason V(stopped). They have not failed.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.state
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Only a run that had not been told to stop before is a change.
options:
  when:
    description:
      - V(after_image) completes the images in progress, whole chains and images of the same domain included, and begins no other.
      - V(now) undoes the images in progress. Their originals are as they were. What is just getting its name, and a chain of which the first original is being
        retired, is completed. A base that has already replaced its original under the same name stays, and the next run finishes it.
    type: str
    choices: [after_image, now]
    default: after_image
  wait:
    description:
      - How long to wait for the run to end. In seconds, or with a unit (V(90s), V(5m), V(2h)). V(0) does not wait.
      - The module fails if the run has not ended by then. The run ends later all the same.
    type: str
    default: 10m
seealso:
  - module: vmimage.qcow.qcow_status
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: Stop after the current image and wait for that
  vmimage.qcow.qcow_stop:
    wait: 2h

- name: Undo the image in progress and stop
  vmimage.qcow.qcow_stop:
    when: now
"""

RETURN = r"""
changed:
  description: Whether a run was told to stop, or would be in check mode, that had not been told before.
  returned: always
  type: bool
  sample: true
msg:
  description: What has become of the run, and what to do next.
  returned: always
  type: str
  sample: The run has ended; 12 images are left. Run again to continue.
running:
  description: The run that was at work, as in RV(vmimage.qcow.qcow_status#module:running), or V(null).
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
  description: Number of runs that waited for it to end.
  returned: success
  type: int
  sample: 0
ended:
  description: Whether no run that was started before is at work any more.
  returned: success
  type: bool
  sample: true
left:
  description: Number of images that the run which was stopped last did not deal with, or deferred. V(null) if it had not planned them yet, or has not ended.
  returned: success
  type: int
  sample: 12
reason:
  description: Why the module failed, as a keyword. V(running) if the run did not end within O(wait).
  returned: when the call as a whole failed
  type: str
  sample: running
path:
  description: The file or directory that the failure is about.
  returned: when the call as a whole failed
  type: str
  sample: /var/lib/vmimage-qcow
details:
  description: Details of the failure, depending on RV(reason).
  returned: when the call as a whole failed
  type: dict
  sample: {}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _imports

_imports.compile_once()

from ..module_utils._errors import QcowError
from ..module_utils._migration.stop import AFTER_IMAGE, NOW
from ..module_utils._migration.stop_run import stop_run
from ..module_utils._options import absolute, seconds_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "when": {"type": "str", "choices": [AFTER_IMAGE, NOW], "default": AFTER_IMAGE},
            "wait": {"type": "str", "default": "10m"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        done = stop_run(
            absolute(params["state_dir"], "state_dir"), params["when"], wait=seconds_of(params, "wait"), check_mode=module.check_mode
        )
    except QcowError as error:
        module.fail_json(**error.result())
    module.exit_json(**done._asdict())


if __name__ == "__main__":
    main()
