#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_convert
short_description: Convert QCOW version 1 images to qcow2 or raw, proven identical
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Converts one image, or many in one call, and proves that the guest sees the same bytes before the result gets its name.
  - The original is opened read-only and never modified. The result is written under a temporary name beside its destination, synced,
    verified by reading both images along another path than the copy used, and renamed. A run that fails leaves everything as it was.
  - Needs nothing but Python on the host. C(qemu-img) is used where asked for, and where it is there, it checks the result too.
  - Every step is recorded on the host in O(state_dir), before it happens. A second run changes nothing.
extends_documentation_fragment:
  - ansible.builtin.files
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.images
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  src:
    description: The image to convert. Exactly one of O(src) and O(images) is required.
    type: path
  dest:
    description:
      - The result's name, or an existing directory it goes into.
      - "If not given, the result goes beside the original: C(x.qcow) becomes C(x.qcow2) or C(x.raw), any other name gets the suffix
        appended, and a name that has the suffix already is kept (which needs O(original=retire))."
    type: path
  images:
    description:
      - Many images in one call. Each entry takes the options of its own and the module's for what it does not say.
      - One image that fails does not stop the others; the module fails at its end and names it.
    type: list
    elements: dict
    suboptions:
      src:
        description: The image to convert.
        type: path
        required: true
      src_base64:
        description: Its exact name in Base64, for names that are not UTF-8, as RV(vmimage.qcow.qcow_info#module:images[].path_base64) returns it.
        type: str
      dest:
        description: As the module's option.
        type: path
      format:
        description: As the module's option.
        type: str
        choices: [qcow2, raw]
  workers:
    description: How many of O(images) to convert at the same time.
    type: int
    default: 1
  format:
    description: Format of the result.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  keep_name:
    description:
      - Whether the result takes the original's own name, for references that nobody can edit. Needs O(original=retire).
    type: bool
    default: false
  engine:
    description:
      - V(native) is this collection's own reader and writer. It is right on every distribution and sees damage.
      - V(qemu-img) uses the host's C(qemu-img), after proving that it can read QCOW version 1.
      - V(auto) is V(native) unless the result is one that only C(qemu-img) writes.
    type: str
    choices: [auto, native, qemu-img]
    default: auto
  cluster_size:
    description:
      - Cluster size of a qcow2 result, in bytes or with a unit (V(64K)). A power of two from 512 bytes to 2 MiB.
      - If not given, 64 KiB.
    type: str
  compression:
    description:
      - Compression of a qcow2 result. V(zstd) is written by C(qemu-img).
    type: str
    choices: [none, zlib, zstd]
    default: none
  lazy_refcounts:
    description: Whether a qcow2 result has lazy refcounts.
    type: bool
    default: false
  extended_l2:
    description: Whether a qcow2 result has extended L2 entries (32 subclusters a cluster). Needs clusters of at least 16 KiB.
    type: bool
    default: false
  verify:
    description:
      - V(full) compares every guest byte of the result with the original before the result gets its name.
      - V(none) publishes the result unproven. There is no fingerprint then.
    type: str
    choices: [full, none]
    default: full
  original:
    description:
      - V(keep) leaves the original where it is.
      - V(retire) renames it to its name and C(.qcow1.orig) when the result is in place, so that nothing can go on writing to it unnoticed.
    type: str
    choices: [keep, retire]
    default: keep
  timestamps:
    description: Whether the result gets the original's access and modification times.
    type: bool
    default: true
  bandwidth:
    description: The most bytes a second to copy for each worker, in bytes or with a unit (V(100M)). Not limited if not given.
    type: str
  reserve:
    description:
      - What must stay free on every filesystem when the whole call is done, in bytes or with a unit (V(10G)), or in percent of the
        filesystem (V(5%)). If everything together does not fit, nothing is begun.
    type: str
    default: 64M
  lock_timeout:
    description: How many seconds to wait for another migration on the same host to end.
    type: int
    default: 0
seealso:
  - module: vmimage.qcow.qcow_info
notes:
  - Owner, group, mode, ACLs, extended attributes and the SELinux label of the original carry over; O(owner), O(group), O(mode) and the
    others override them.
  - What an interrupted run has left behind on this host is finished or cleaned up first, see RV(recovered).
  - SIGTERM, SIGINT and SIGHUP (a task's timeout, a cancelled job) undo what is under way and end the module; after SIGKILL or a crash the
    next run does it.
"""

EXAMPLES = r"""
- name: Convert one image and keep the original
  vmimage.qcow.qcow_convert:
    src: /srv/archive/old.qcow

- name: Convert to raw in another directory
  vmimage.qcow.qcow_convert:
    src: /srv/archive/old.qcow
    dest: /srv/raw/
    format: raw

- name: Find the images
  vmimage.qcow.qcow_info:
    paths: /srv/archive
    report: v1
  register: found

- name: Convert all of them, two at a time, and retire the originals
  vmimage.qcow.qcow_convert:
    images: "{{ images }}"
    workers: 2
    original: retire
  vars:
    images: >-
      {{ found.images | selectattr('candidate')
         | map('community.general.keep_keys', target=['path', 'path_base64']) }}
"""

RETURN = r"""
src:
  description: The original.
  returned: with O(src)
  type: str
dest:
  description: The result.
  returned: with O(src)
  type: str
engine:
  description: Which engine wrote the result.
  returned: with O(src)
  type: str
  sample: native
verified:
  description: Whether the result was proven identical to the original.
  returned: with O(src)
  type: bool
fingerprint:
  description: What the guest sees, in both, as one number that does not depend on format or allocation.
  returned: with O(src)
  type: str
  sample: sha256-64k:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
source:
  description: The original as it was found.
  returned: with O(src)
  type: dict
before:
  description: The original's format, sizes and path.
  returned: with O(src)
  type: dict
after:
  description: The result's format, sizes and path; in check mode what they will be at most.
  returned: with O(src)
  type: dict
retired:
  description: The name the original has got, or will get.
  returned: with O(src)
  type: str
record:
  description: The name of the record on the host.
  returned: with O(src)
  type: str
reasons:
  description: Why it was decided so.
  returned: with O(src)
  type: list
  elements: str
images:
  description: One entry for each of O(images), in their order, with the keys above and RV(ignore:changed), RV(ignore:failed) and RV(ignore:msg).
  returned: with O(images)
  type: list
  elements: dict
summary:
  description: How many images were migrated, were done before, were refused or failed, and the bytes before and after.
  returned: with O(images)
  type: dict
recovered:
  description:
    - What was done about the records of interrupted runs on this host, in check mode what would be. Each entry names RV(ignore:record),
      RV(ignore:src) and RV(ignore:dest), and says in RV(ignore:msg) what was done.
  returned: always
  type: list
  elements: dict
"""

from typing import Any, Dict, Iterator, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.formatters import human_to_bytes

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.batch import Settings, run, summary
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import decode_exact, to_path


def size_of(module: AnsibleModule, option: str) -> Optional[int]:
    """Bytes from an option that takes a unit, or None."""
    text = module.params[option]
    if text is None:
        return None
    try:
        return human_to_bytes(text)
    except ValueError as error:
        module.fail_json(msg="{0}: {1}".format(option, error))


def reserve_of(module: AnsibleModule) -> Dict[str, Any]:
    """What stays free, as settings of a batch."""
    text = module.params["reserve"].strip()
    if not text.endswith("%"):
        return {"reserve": size_of(module, "reserve") or 0}
    try:
        percent = float(text[:-1])
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        module.fail_json(msg="reserve: {0} is no percentage".format(text))
    return {"reserve": 0, "reserve_percent": percent}


def requests_of(module: AnsibleModule) -> Iterator[Request]:
    """What the options ask for, one request an image."""
    params = module.params
    images = params["images"] if params["images"] is not None else [{"src": params["src"]}]
    common = Request(
        src=b"",
        keep_name=params["keep_name"],
        engine=params["engine"],
        verify=params["verify"] == "full",
        retire=params["original"] == "retire",
        cluster_size=size_of(module, "cluster_size"),
        compression=params["compression"],
        lazy_refcounts=params["lazy_refcounts"],
        extended_l2=params["extended_l2"],
        bandwidth=size_of(module, "bandwidth"),
        timestamps=params["timestamps"],
        state_dir=to_path(params["state_dir"]),
    )
    for image in images:
        dest = image.get("dest") or params["dest"]
        yield common._replace(
            src=decode_exact(image["src"], image.get("src_base64")),
            dest=None if dest is None else to_path(dest),
            format=image.get("format") or params["format"],
        )


def set_attributes(module: AnsibleModule, result: Dict[str, Any]) -> None:
    """Owner, group, mode and SELinux context where the task names them; the original's have been carried over already."""
    if result["failed"] or module.check_mode or result["dest_base64"] is not None:
        return
    arguments = module.load_file_common_arguments(module.params, path=result["dest"])
    result["changed"] = module.set_fs_attributes_if_different(arguments, result["changed"])


def diff_of(results: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """What diff mode shows: small dictionaries, not contents."""
    return [
        {"before_header": result["src"], "after_header": result["dest"], "before": result["before"], "after": result["after"]}
        for result in results
        if result["changed"]
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path"},
            "dest": {"type": "path"},
            "images": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "src": {"type": "path", "required": True},
                    "src_base64": {"type": "str"},
                    "dest": {"type": "path"},
                    "format": {"type": "str", "choices": ["qcow2", "raw"]},
                },
            },
            "workers": {"type": "int", "default": 1},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "keep_name": {"type": "bool", "default": False},
            "engine": {"type": "str", "choices": ["auto", "native", "qemu-img"], "default": "auto"},
            "cluster_size": {"type": "str"},
            "compression": {"type": "str", "choices": ["none", "zlib", "zstd"], "default": "none"},
            "lazy_refcounts": {"type": "bool", "default": False},
            "extended_l2": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["full", "none"], "default": "full"},
            "original": {"type": "str", "choices": ["keep", "retire"], "default": "keep"},
            "timestamps": {"type": "bool", "default": True},
            "bandwidth": {"type": "str"},
            "reserve": {"type": "str", "default": "64M"},
            "lock_timeout": {"type": "int", "default": 0},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
        add_file_common_args=True,
        required_one_of=[("src", "images")],
        mutually_exclusive=[("src", "images")],
    )
    settings = Settings(
        state_dir=to_path(module.params["state_dir"]),
        workers=module.params["workers"],
        wait=module.params["lock_timeout"],
        check_mode=module.check_mode,
        **reserve_of(module),
    )
    recovered: List[Dict[str, Any]] = []
    try:
        results = run(list(requests_of(module)), settings, recovered)
    except QcowError as error:
        module.fail_json(recovered=recovered, **error.result())
    except ValueError as error:
        module.fail_json(msg="src_base64: {0}".format(error))
    for entry in recovered:
        if entry["failed"]:
            module.warn("An interrupted run cannot be finished: {0}".format(entry["msg"]))
    for result in results:
        set_attributes(module, result)
        for warning in result["warnings"]:
            module.warn("{0}: {1}".format(result["src"], warning))
    finish(module, results, recovered)


def finish(module: AnsibleModule, results: List[Dict[str, Any]], recovered: List[Dict[str, Any]]) -> None:
    """Hand out the results of one image as the module's own, those of many as a list."""
    changed = bool(recovered) or any(result["changed"] for result in results)
    failed = [result for result in results if result["failed"]]
    answer = dict(results[0]) if module.params["images"] is None else {"images": results, "summary": summary(results)}
    answer.update(changed=changed, diff=diff_of(results), recovered=recovered)
    answer.pop("failed", None)
    if failed:
        module.fail_json(**dict(answer, msg="; ".join(result["msg"] for result in failed)))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
