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
  - Renames originals back, changes domains and overlays back to them, and removes the results, all from the records on the host.
  - Refuses an image that was written after its migration, because the guest would lose those writes, unless O(discard_changes) is set. The
    migrated image is then kept, with C(.rolled-back.) and the name of the record appended to its name.
  - Refuses an image over which an overlay was created since the migration, in the same directory, because the overlay would lose its backing file.
    An overlay whose owner cannot read the result is left as it is and named in the reasons, unless a libvirt domain uses it.
  - Refuses an image whose original was deleted by M(vmimage.qcow.qcow_cleanup) or was changed, and one with a file that is in use.
    A file that was only copied or mounted elsewhere is recognized by its content, see O(moved_files).
  - An image that was rolled back can be migrated again.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.records
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.moved
  - vmimage.qcow.options.list_records
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
      - Paths of originals (before or after they were retired), of results, or of directories that contain them.
      - At least one of O(paths) and O(records) is required.
    type: list
    elements: path
    default: []
    aliases: [path]
  discard_changes:
    description: Whether to roll back although guests have written to the migrated images. The migrated images are kept under another name.
    type: bool
    default: false
  domains:
    description:
      - What to do with libvirt domains that were changed by the migration.
      - V(follow) changes their disks back to those in the record. A migration whose domains are running is refused.
      - V(refuse) refuses every migration that changed domains.
      - V(ignore) leaves them with the result, which no longer exists; for hosts that no longer have libvirt.
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

- name: Undo everything below a directory, even if guests have written since
  vmimage.qcow.qcow_rollback:
    paths: /srv/archive
    discard_changes: true
"""

RETURN = r"""
images:
  description: One entry for each selected record, newest first, and one for each entry of O(paths) and O(records) without a record.
  returned: always
  type: list
  elements: dict
  contains:
    record: {description: Name of the record., type: str, sample: 20261101T021500.000000Z-1a2b3c4d}
    src: {description: The original., type: str, sample: /srv/archive/old.qcow}
    src_base64: {description: Its exact path in Base64 if C(src) cannot represent it., type: str, sample: null}
    dest: {description: The result., type: str, sample: /srv/archive/old.qcow2}
    dest_base64: {description: Its exact path in Base64 if C(dest) cannot represent it., type: str, sample: null}
    retired: {description: The name that the original was retired to., type: str, sample: /srv/archive/old.qcow.qcow1.orig}
    retired_base64: {description: Its exact path in Base64 if C(retired) cannot represent it., type: str, sample: null}
    action: {description: "V(roll-back), V(noop), V(refuse) or V(defer) (the run was stopped).", type: str, sample: roll-back}
    reasons: {description: The reasons for the action., type: list, elements: str, sample: [the guest sees the same bytes]}
    changed: {description: "Whether anything was changed, or would be in check mode.", type: bool, sample: true}
    failed: {description: Whether the image was refused or failed., type: bool, sample: false}
    reason: {description: "Why the image was refused or failed, as a keyword.", type: str, sample: needed}
    msg: {description: "The reasons in one sentence, or what went wrong and what to do about it.", type: str, sample: the guest sees the same bytes}
    state: {description: The last state in the record., type: str, sample: rolled-back}
    time: {description: When the record reached its previous state., type: str, sample: "2026-11-01T02:15:12Z"}
    discarded: {description: Whether writes of guests to the result were discarded., type: bool, sample: false}
    kept: {description: The path under which a result is kept that was written after its migration., type: str, sample: null}
    kept_base64: {description: Its exact path in Base64 if C(kept) cannot represent it., type: str, sample: null}
records:
  description: Records of migrations on this host after the run, oldest first, see O(list_records) and RV(vmimage.qcow.qcow_info#module:records).
  returned: if they can be read
  type: list
  elements: dict
  sample:
    - {record: 20261101T021500.000000Z-1a2b3c4d, src: /srv/archive/old.qcow, src_base64: null, dest: /srv/archive/old.qcow2, dest_base64: null,
       retired: /srv/archive/old.qcow.qcow1.orig, retired_base64: null, format: qcow2, state: done, began: "2026-11-01T02:15:00Z",
       time: "2026-11-01T02:15:12Z", verified: true, fingerprint: 9f2c, before: {virtual_size: 1073741824}, after: {format: qcow2}, seconds: 11.2,
       domains: [web1], returned: null, error: null, unfinished: null, reversible: true}
recovered:
  description:
    - What was done about work that interrupted runs left on this host, or would be done in check mode.
    - Empty if no run was interrupted.
  returned: always
  type: list
  elements: dict
  contains:
    msg: {description: What was done., type: str, sample: removed the temporary file}
    failed: {description: Whether it failed; the next run tries again., type: bool, sample: false}
    record: {description: Name of the record. V(null) for a domain., type: str, sample: 20261101T021500.000000Z-1a2b3c4d}
    state: {description: The last state in the record., type: str, sample: copying}
    src: {description: The original., type: str, sample: /srv/archive/old.qcow}
    src_base64: {description: Its exact path in Base64 if C(src) cannot represent it., type: str, sample: null}
    dest: {description: The result., type: str, sample: /srv/archive/old.qcow2}
    dest_base64: {description: Its exact path in Base64 if C(dest) cannot represent it., type: str, sample: null}
reason:
  description: Why the module failed, as a keyword.
  returned: when the call as a whole failed
  type: str
  sample: locked
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

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _imports

_imports.compile_once()

from ..module_utils._errors import QcowError
from ..module_utils._migration.record_batch import Choice, answer_of, roll_back_all
from ..module_utils._migration.record_entries import LISTED, records_of
from ..module_utils._migration.results import warnings_of
from ..module_utils._options import absolute, paths_of, seconds_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": [], "aliases": ["path"]},
            "missing_ok": {"type": "bool", "default": False},
            "records": {"type": "list", "elements": "str", "default": []},
            "discard_changes": {"type": "bool", "default": False},
            "domains": {"type": "str", "choices": ["follow", "refuse", "ignore"], "default": "follow"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "list_records": {"type": "str", "choices": list(LISTED), "default": "unfinished"},
            "lock_timeout": {"type": "str", "default": "0s"},
            "moved_files": {"type": "str", "choices": ["auto", "compare", "accept"], "default": "auto"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["paths"] and not params["records"]:
        module.fail_json(msg="Set paths or records: they say what to roll back.")
    recovered: List[Dict[str, Any]] = []
    try:
        choice = Choice(
            state_dir=absolute(params["state_dir"], "state_dir"),
            paths=paths_of(params, "paths"),
            records=tuple(params["records"]),
            wait=seconds_of(params, "lock_timeout"),
            check_mode=module.check_mode,
            missing_ok=params["missing_ok"],
            moved_files=params["moved_files"],
            domains=params["domains"],
            libvirt_uri=params["libvirt_uri"],
        )
        images = roll_back_all(choice, discard_changes=params["discard_changes"], recovered=recovered)
    except QcowError as error:
        module.fail_json(recovered=recovered, **dict(records_of(params), **error.result()))
    for problem in warnings_of(recovered):
        module.warn(problem)
    drawn = [image.pop("diff") for image in images]
    answer, failure = answer_of(images, recovered, **dict(records_of(params), diff=[diff for diff in drawn if diff]))
    if failure:
        module.fail_json(msg=failure, **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
