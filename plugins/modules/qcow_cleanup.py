#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_cleanup
short_description: Delete the retired originals of migrated images after a soak time
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Deletes originals that M(vmimage.qcow.qcow_convert) renamed to C(.qcow1.orig), once they have been retired for O(min_age_days).
  - An original is deleted only if the result was verified against it according to the record, it is still the file that was retired (see O(moved_files)),
    no process has it open, and the migrated image exists with the right format and size and consistent tables. If C(qemu-img) is
    installed, its check of a qcow2 result must pass too, unless a guest is writing to it or it is encrypted.
  - An original is kept if an image beside it has it as backing file, or if the migrated image was replaced by another file, has gained or lost a backing
    file, or no longer has a single block in common with the original. For results that only C(qemu-img) reads (zstd, LUKS) the blocks are not compared.
  - The record is kept and says when the original was deleted. Such a migration can no longer be rolled back.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.records
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.moved
  - vmimage.qcow.options.list_records
  - vmimage.qcow.options.state
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
      - "Clean up only these: paths of originals, of results, or of directories that contain them."
      - If neither this nor O(records) is given, everything that was migrated on the host is cleaned up.
    type: list
    elements: path
    default: []
    aliases: [path]
  min_age_days:
    description: Number of days that an original must have been retired. Fractions are allowed.
    type: float
    default: 14
seealso:
  - module: vmimage.qcow.qcow_convert
  - module: vmimage.qcow.qcow_rollback
"""

EXAMPLES = r"""
- name: Delete what was retired more than four weeks ago
  vmimage.qcow.qcow_cleanup:
    min_age_days: 28
"""

RETURN = r"""
images:
  description: One entry for each record examined, newest first, and one for each entry of O(paths) and O(records) without a record.
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
    action: {description: "V(delete), V(noop), V(refuse) or V(defer) (the run was stopped).", type: str, sample: delete}
    reasons: {description: The reasons for the action., type: list, elements: str, sample: ["retired for 21.0 days, and the migrated image is sound"]}
    changed: {description: "Whether anything was changed, or would be in check mode.", type: bool, sample: true}
    failed: {description: Whether the image was refused or failed., type: bool, sample: false}
    reason: {description: "Why the image was refused or failed, as a keyword.", type: str, sample: needed}
    msg: {description: "The reasons in one sentence, or what went wrong.", type: str, sample: "retired for 21.0 days, and the migrated image is sound"}
    state: {description: The last state in the record., type: str, sample: cleaned}
    time: {description: When the record reached its previous state., type: str, sample: "2026-11-01T02:15:12Z"}
    returns: {description: Bytes freed on the filesystem., type: int, sample: 2310144}
    retired_time: {description: When the original was retired., type: str, sample: "2026-11-01T02:15:12Z"}
summary:
  description: Numbers of records, and the bytes freed.
  returned: always
  type: dict
  sample: {records: 3, changed: 1, unchanged: 2, failed: 0, bytes_returned: 2310144}
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
from ..module_utils._migration.cleanup import summary
from ..module_utils._migration.drawn import of_cleanup
from ..module_utils._migration.record_batch import Choice, answer_of, clean_all
from ..module_utils._migration.record_entries import LISTED, records_of
from ..module_utils._migration.results import warnings_of
from ..module_utils._options import absolute, paths_of, require_at_least, seconds_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": [], "aliases": ["path"]},
            "missing_ok": {"type": "bool", "default": False},
            "records": {"type": "list", "elements": "str", "default": []},
            "min_age_days": {"type": "float", "default": 14},
            "list_records": {"type": "str", "choices": list(LISTED), "default": "unfinished"},
            "lock_timeout": {"type": "str", "default": "0s"},
            "moved_files": {"type": "str", "choices": ["auto", "compare", "accept"], "default": "auto"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    recovered: List[Dict[str, Any]] = []
    try:
        require_at_least(params, min_age_days=0)
        choice = Choice(
            state_dir=absolute(params["state_dir"], "state_dir"),
            paths=paths_of(params, "paths"),
            records=tuple(params["records"]),
            wait=seconds_of(params, "lock_timeout"),
            check_mode=module.check_mode,
            missing_ok=params["missing_ok"],
            moved_files=params["moved_files"],
        )
        images = clean_all(choice, min_age=params["min_age_days"] * 86400, recovered=recovered)
    except QcowError as error:
        module.fail_json(recovered=recovered, **dict(records_of(params), **error.result()))
    for problem in warnings_of(recovered):
        module.warn(problem)
    answer, failure = answer_of(
        images,
        recovered,
        **dict(records_of(params), summary=summary(images), diff=[of_cleanup(image) for image in images if image["changed"]]),
    )
    if failure:
        module.fail_json(msg=failure, **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
