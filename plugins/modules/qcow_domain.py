#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_domain
short_description: Change libvirt domains to use the migrated result of an image
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Finds every libvirt domain on the host that uses an image, as a file, as a volume of a pool, through a link or under another name, and
    changes both path and driver type of those disks, as C(virsh edit) would. Nothing else in a definition changes; passwords are kept.
  - Each definition is read back after the change. Either all domains are changed or none.
  - O(running) decides whether a running domain is refused, shut down and started again, or migrated live.
  - A domain with a snapshot, a checkpoint or a saved memory state on the image is refused; the message says what to do about it.
  - The role P(vmimage.qcow.migrate#role) does all of this. Use the module if you convert images in steps of your own.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.libvirt
  - vmimage.qcow.options.shutdown
  - vmimage.qcow.options.state
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Shows the path and format of the disks that change, before and after, never whole definitions.
  idempotent:
    support: full
requirements:
  - libvirt-python (C(python3-libvirt)) on the host, for the Python that runs the module. A host without libvirt has no domains, and nothing changes there.
options:
  src:
    description: The image that the domains use now. It does not have to exist any more.
    type: path
    required: true
  src_base64:
    description:
      - Its exact path in Base64, as returned by the other modules for paths that are not UTF-8 or contain a C($).
      - Takes precedence over O(src). Nothing in it is expanded.
    type: str
  dest:
    description:
      - The image that they are to use.
      - It must exist, its content must be of O(format), and it must not be older than the last write to O(src). With a running domain
        and O(running=live) it must B(not) exist, because it is created.
    type: path
    required: true
  dest_base64:
    description: Its exact path in Base64. Takes precedence over O(dest). Nothing in it is expanded.
    type: str
  format:
    description: Format of O(dest).
    type: str
    choices: [qcow2, raw]
    default: qcow2
  domain_names:
    description: Names or UUIDs of the domains to change. If not given, all domains that use O(src).
    type: list
    elements: str
  running:
    description:
      - What to do with a domain that is running.
      - V(refuse) fails and changes nothing.
      - V(shutdown) asks the guest to shut down and waits for O(shutdown_timeout). A guest that does not shut down keeps running, and nothing changes.
      - V(live) migrates without stopping the domain. It writes to an overlay while O(src) is converted and verified; then a block copy brings O(dest) up
        to date, and the domain pivots to it. O(dest) is as sparse as O(src). Needs QEMU 4.2 and libvirt 6.0 on the host, O(format=qcow2), and
        free space beside O(src) for what the guest writes in the meantime.
    type: str
    choices: [refuse, shutdown, live]
    default: refuse
  restart:
    description:
      - Whether to start domains again that were shut down. A domain that does not start is changed back to O(src) and started from there, and the module fails.
    type: bool
    default: true
  bandwidth:
    description: Limit for the block copy of a live migration, in bytes per second or with a unit (V(100M)). If not given, there is no limit.
    type: str
  refresh_pools:
    description: Whether to refresh the active storage pools that contain O(src) or O(dest). Inactive pools are not touched.
    type: bool
    default: true
notes:
  - O(src) is neither renamed nor removed.
  - The exact old definition of each domain, which may contain passwords, is kept in the directory C(domains) below O(state_dir), readable by root
    only. It is never returned.
seealso:
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: Convert an image whose domains are shut off
  vmimage.qcow.qcow_convert:
    src: /var/lib/libvirt/images/shop.qcow

- name: Change its domains to use the result
  vmimage.qcow.qcow_domain:
    src: /var/lib/libvirt/images/shop.qcow
    dest: /var/lib/libvirt/images/shop.qcow2

- name: Migrate the image of a running domain without stopping it
  vmimage.qcow.qcow_domain:
    src: /var/lib/libvirt/images/shop.qcow
    dest: /var/lib/libvirt/images/shop.qcow2
    running: live
    bandwidth: 100M
"""

RETURN = r"""
domains:
  description: The domains that use or used O(src).
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The domain., type: str, sample: shop}
    uuid: {description: Its UUID., type: str, sample: 6f1cf2a5-16a3-4d5d-9d3c-2a8e2a3c4b5d}
    changed: {description: Whether its definition changed., type: bool, sample: true}
    targets: {description: "The disks that changed, by their target names.", type: list, elements: str, sample: [vda]}
    path: {description: The image that they use now., type: str, sample: /var/lib/libvirt/images/shop.qcow2}
    format: {description: The driver type that they have now., type: str, sample: qcow2}
    was_running: {description: Whether the domain was running., type: bool, sample: false}
    method: {description: "How it was changed, V(definition) or V(live).", type: str, sample: definition}
    started: {description: Whether it was started again., type: bool, sample: false}
    saved: {description: Path on the host of its exact previous definition., type: str, sample: /var/lib/vmimage-qcow/domains/shop-20261101T021500Z-1a2b3c.xml}
pools:
  description: The storage pools that contain one of the images.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: The pool., type: str, sample: default}
    path: {description: Its directory., type: str, sample: /var/lib/libvirt/images}
    refreshed: {description: Whether it was refreshed., type: bool, sample: true}
    reason: {description: Why it was not., type: str, sample: inactive}
fingerprint:
  description: Fingerprint of what the guest saw in both images at the start of a live migration.
  returned: when a domain was moved live
  type: str
  sample: sha256-64k:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
record:
  description: Name of the record of the conversion on the host.
  returned: when a domain was moved live
  type: str
  sample: 20261101T021500.000000Z-1a2b3c4d
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
from ..module_utils._migration.domain_move import Job, run
from ..module_utils._migration.results import warnings_of
from ..module_utils._options import absolute, bytes_of, exact_path, seconds_of


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path", "required": True},
            "src_base64": {"type": "str"},
            "dest": {"type": "path", "required": True},
            "dest_base64": {"type": "str"},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "domain_names": {"type": "list", "elements": "str"},
            "running": {"type": "str", "choices": ["refuse", "shutdown", "live"], "default": "refuse"},
            "shutdown_timeout": {"type": "str", "default": "120s"},
            "restart": {"type": "bool", "default": True},
            "bandwidth": {"type": "str"},
            "refresh_pools": {"type": "bool", "default": True},
            "lock_timeout": {"type": "str", "default": "0s"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    recovered: List[Dict[str, Any]] = []
    try:
        job = Job(
            src=exact_path(params, "src"),
            dest=exact_path(params, "dest"),
            format=params["format"],
            state_dir=absolute(params["state_dir"], "state_dir"),
            uri=params["libvirt_uri"],
            domains=params["domain_names"],
            running=params["running"],
            shutdown_timeout=seconds_of(params, "shutdown_timeout"),
            wait=seconds_of(params, "lock_timeout"),
            restart=params["restart"],
            bandwidth=bytes_of(params, "bandwidth"),
            refresh_pools=params["refresh_pools"],
        )
        done = run(job, check_mode=module.check_mode, recovered=recovered)
    except QcowError as error:
        module.fail_json(recovered=recovered, **error.result())
    for problem in warnings_of(recovered):
        module.warn(problem)
    for warning in done.warnings:
        module.warn(warning)
    result: Dict[str, Any] = {
        "changed": done.changed or bool(recovered),
        "domains": done.domains,
        "pools": done.pools,
        "recovered": recovered,
        "diff": done.diffs,
    }
    if done.converted is not None:
        result.update(fingerprint=done.converted.fingerprint, record=done.converted.record)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
