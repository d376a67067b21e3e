#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_rollback
short_description: Undo recorded migrations of QCOW version 1 images
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Gives originals their names back, points back what was re-pointed, and removes the results, all from the records on the host.
  - Refuses where the migrated image has been written since, as its guest would lose that, unless O(discard_changes) says that it may. The
    newer image is then kept under its name with C(.rolled-back.) and the name of the record appended.
  - Refuses where somebody has made an overlay on the migrated image since, beside it, as that would lose its backing file.
  - Refuses where the original was deleted by M(vmimage.qcow.qcow_cleanup), was changed, or where anything has one of the files open.
  - What was rolled back can be migrated again.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.records
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.state
  - vmimage.qcow.options.libvirt
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  paths:
    description:
      - What to roll back, by the names of originals (before or after they were retired), of results, or of directories above them.
      - At least one of O(paths) and O(records) is required.
    type: list
    elements: path
    default: []
    aliases: [path]
  discard_changes:
    description: Whether guests may lose what they have written to the migrated images. These are kept aside all the same.
    type: bool
    default: false
  domains:
    description:
      - What becomes of libvirt domains that have followed the migration.
      - V(follow) points their disks back to what the record says. A migration whose domains run is refused.
      - V(refuse) refuses every migration that domains have followed.
      - V(ignore) leaves them pointing to the result, which is gone then; for hosts whose libvirt is gone too.
    type: str
    choices: [follow, refuse, ignore]
    default: follow
seealso:
  - module: vmimage.qcow.qcow_convert
  - module: vmimage.qcow.qcow_cleanup
"""

EXAMPLES = r"""
- name: Undo one migration
  vmimage.qcow.qcow_rollback:
    paths: /srv/archive/old.qcow

- name: Undo everything below a directory, whatever guests have written since
  vmimage.qcow.qcow_rollback:
    paths: /srv/archive
    discard_changes: true
"""

RETURN = r"""
images:
  description: One entry for each record that was chosen, newest first. RV(ignore:failed) and RV(ignore:reason) say which were refused, and why.
  returned: always
  type: list
  elements: dict
  contains:
    record:
      description: The record's name.
      type: str
    src:
      description: The original's name, which it has again.
      type: str
    dest:
      description: The result's name.
      type: str
    action:
      description: V(roll-back), V(noop) or V(refuse).
      type: str
    reasons:
      description: Why it was decided so.
      type: list
      elements: str
    changed:
      description: Whether anything was, or would be, changed.
      type: bool
    kept:
      description: The name under which a result that had been written since is kept.
      type: str
    state:
      description: What the record says last.
      type: str
recovered:
  description: What was done about the records of interrupted runs; in check mode what would be.
  returned: always
  type: list
  elements: dict
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import QcowError
from ..module_utils._migration.recover import warnings_of
from ..module_utils._migration.undo import Choice, answer_of, roll_back_all
from ..module_utils._options import absolute, paths_of, seconds_of


def diff_of(images: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """What diff mode shows: the names of files before and after."""
    return [
        {
            "before_header": image["dest"],
            "after_header": image["src"],
            "before": {"original": image["retired"] or image["src"], "result": image["dest"]},
            "after": {"original": image["src"], "result": image["kept"]},
        }
        for image in images
        if image["changed"]
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": [], "aliases": ["path"]},
            "missing_ok": {"type": "bool", "default": False},
            "records": {"type": "list", "elements": "str", "default": []},
            "discard_changes": {"type": "bool", "default": False},
            "domains": {"type": "str", "choices": ["follow", "refuse", "ignore"], "default": "follow"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "lock_timeout": {"type": "str", "default": "0s"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["paths"] and not params["records"]:
        module.fail_json(msg="say what to roll back: paths or records")
    recovered: List[Dict[str, Any]] = []
    try:
        choice = Choice(
            state_dir=absolute(params["state_dir"], "state_dir"),
            paths=paths_of(params, "paths"),
            records=tuple(params["records"]),
            wait=seconds_of(params, "lock_timeout"),
            check_mode=module.check_mode,
            missing_ok=params["missing_ok"],
            domains=params["domains"],
            libvirt_uri=params["libvirt_uri"],
        )
        images = roll_back_all(choice, discard_changes=params["discard_changes"], recovered=recovered)
    except QcowError as error:
        module.fail_json(recovered=recovered, **error.result())
    for problem in warnings_of(recovered):
        module.warn(problem)
    answer, failure = answer_of(images, recovered, diff=diff_of(images))
    if failure:
        module.fail_json(msg=failure, **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
