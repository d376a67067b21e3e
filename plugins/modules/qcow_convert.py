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
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.convert
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.libvirt
  - vmimage.qcow.options.search
  - vmimage.qcow.options.state
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: vmimage.qcow.qcow_info
notes:
  - Owner, group, mode, ACLs, extended attributes and the SELinux label of the original carry over; O(owner), O(group), O(mode) and the
    others override them.
  - What an interrupted run has left behind on this host is finished or cleaned up first, see RV(recovered).
  - SIGTERM, SIGINT and SIGHUP undo what is under way and end the module; after SIGKILL or a crash the next run does it.
  - While it works, lines tell how far each image has come. The module runs on the host by itself (as with C(async), which it uses unless the task
    says C(async) on its own), so a lost connection, a cancelled job or a controller that goes away does not end it. A following run waits
    for O(lock_timeout), shows how far the other has come meanwhile, and then finds its images migrated.
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

- name: Convert every image below a directory, two at a time into another one, and retire the originals
  vmimage.qcow.qcow_convert:
    paths: /srv/archive
    dest: /srv/converted/
    workers: 2
    original: retire
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
  description: Which engine wrote the result; V(staged) is C(qemu-img) from what was read natively.
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
chain:
  description: The backing files, from the image's own down to the last, with RV(ignore:path), RV(ignore:path_base64) and RV(ignore:format).
  returned: with O(src)
  type: list
  elements: dict
backing:
  description: The backing file of a result that stays an overlay, as its header names it, with RV(ignore:path) and RV(ignore:format).
  returned: with O(src)
  type: dict
repointed:
  description: The qcow2 overlays whose headers were, or would be, pointed to the result.
  returned: with O(src)
  type: list
  elements: str
lost:
  description: With O(salvage), every range that could not be read, with RV(ignore:path), the guest bytes RV(ignore:start) and RV(ignore:length), the
    place RV(ignore:offset) in the file, and RV(ignore:what) in words.
  returned: with O(src)
  type: list
  elements: dict
reasons:
  description: Why it was decided so.
  returned: with O(src)
  type: list
  elements: str
images:
  description: One entry for each of O(images), in their order, with the keys above and RV(ignore:changed), RV(ignore:failed) and RV(ignore:msg).
  returned: with O(images), O(paths) or O(plan)
  type: list
  elements: dict
summary:
  description:
    - How many images were migrated, were done before, were refused or failed, or deferred, and the bytes before and after. With O(paths) also how many
      files and directories were looked at.
  returned: with O(images), O(paths) or O(plan)
  type: dict
errors:
  description: What could not be looked at below O(paths), as RV(vmimage.qcow.qcow_info#module:errors). The module has failed where there is anything.
  returned: with O(paths)
  type: list
  elements: dict
recovered:
  description:
    - What was done about the records of interrupted runs on this host, in check mode what would be. Each entry names RV(ignore:record),
      RV(ignore:src) and RV(ignore:dest), and says in RV(ignore:msg) what was done.
  returned: always
  type: list
  elements: dict
"""

from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import QcowError
from ..module_utils._host import linux
from ..module_utils._migration.arguments import Found, common_request, requests_of, settings_of
from ..module_utils._migration.batch import run
from ..module_utils._migration.recover import warnings_of
from ..module_utils._migration.results import summary
from ..module_utils._migration.search import Candidates, message_of


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
            "paths": {"type": "list", "elements": "path"},
            "plan": {"type": "path"},  # read by the action plugin, which gives its images
            "exclude": {"type": "list", "elements": "str", "default": []},
            "one_filesystem": {"type": "bool", "default": False},
            "missing_ok": {"type": "bool", "default": False},
            "images": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "src": {"type": "path", "required": True},
                    "src_base64": {"type": "str"},
                    "dest": {"type": "path"},
                    "dest_base64": {"type": "str"},
                    "format": {"type": "str", "choices": ["qcow2", "raw"]},
                    "passphrase_file": {"type": "path", "no_log": False},
                    "action": {"type": "str", "choices": ["convert", "skip", "refuse"], "default": "convert"},
                    "why": {"type": "list", "elements": "str", "default": []},
                    "expect": {"type": "dict", "options": {"size": {"type": "int"}, "mtime_ns": {"type": "int"}, "ino": {"type": "int"}}},
                },
            },
            "workers": {"type": "int", "default": 1},
            "max_minutes": {"type": "float"},
            "max_bytes": {"type": "str"},
            "fail_on_in_use": {"type": "bool", "default": True},
            "progress_interval": {"type": "str", "default": "15s"},  # the action plugin's
            "reconnect_timeout": {"type": "str", "default": "1h"},  # the action plugin's
            "time_limit": {"type": "str", "default": "365d"},  # the action plugin's
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "keep_name": {"type": "bool", "default": False},
            "engine": {"type": "str", "choices": ["auto", "native", "qemu-img"], "default": "auto"},
            "cluster_size": {"type": "str"},
            "compression": {"type": "str", "choices": ["none", "zlib", "zstd"], "default": "none"},
            "lazy_refcounts": {"type": "bool", "default": False},
            "extended_l2": {"type": "bool", "default": False},
            "chains": {"type": "str", "choices": ["preserve", "flatten"], "default": "preserve"},
            "backing_dirs": {"type": "list", "elements": "path", "default": []},
            "backing_formats": {"type": "dict", "default": {}},
            "raw_bases": {"type": "bool", "default": True},
            "domains": {"type": "str", "choices": ["follow", "refuse", "ignore"], "default": "follow"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "running": {"type": "str", "choices": ["refuse", "shutdown", "live"], "default": "refuse"},
            "shutdown_timeout": {"type": "str", "default": "120s"},
            "reference_dirs": {"type": "list", "elements": "path", "default": []},
            "references": {"type": "str", "choices": ["refuse", "report"], "default": "refuse"},
            "allow_declared_raw": {"type": "bool", "default": False},
            "passphrase_file": {"type": "path", "no_log": False},  # names of files, not passphrases
            "passphrase_files": {"type": "dict", "default": {}, "no_log": False},
            "force_passphrase": {"type": "bool", "default": False, "no_log": False},
            "encryption": {"type": "str", "choices": ["none", "luks"], "default": "none"},
            "luks_passphrase_file": {"type": "path", "no_log": False},
            "salvage": {"type": "bool", "default": False},
            "overwrite_device": {"type": "bool", "default": False},
            "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
            "compat": {"type": "str", "choices": ["0.10", "1.1"], "default": "1.1"},
            "verify": {"type": "bool", "default": True},
            "original": {"type": "str", "choices": ["keep", "retire"], "default": "keep"},
            "timestamps": {"type": "bool", "default": True},
            "layout": {"type": "str", "choices": ["recluster", "keep"], "default": "recluster"},
            "bandwidth": {"type": "str"},
            "priority": {"type": "str", "choices": ["normal", "low"], "default": "normal"},
            "page_cache": {"type": "str", "choices": ["use", "spare"], "default": "use"},
            "reserve": {"type": "str", "default": "64M"},
            "lock_timeout": {"type": "str", "default": "0s"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
        add_file_common_args=True,
        required_one_of=[("src", "images", "paths", "plan")],
        mutually_exclusive=[("src", "images", "paths", "plan")],
        required_if=[("encryption", "luks", ("luks_passphrase_file",))],
    )
    params = module.params
    recovered: List[Dict[str, Any]] = []
    found: Optional[Found] = None
    results: List[Dict[str, Any]] = []
    failure: Optional[QcowError] = None
    try:
        settings = settings_of(params, check_mode=module.check_mode)
        common = common_request(params)
        if params["paths"] is not None:
            found = Found(params, common)
        wanted = [] if found else requests_of(params, common)
        if params["priority"] == "low" and not module.check_mode:
            for problem in linux.lower():
                module.warn(problem)
        results = run(found or wanted, settings, recovered)
    except QcowError as error:
        failure = error
        results = error.details.pop("images", [])
    for problem in warnings_of(recovered):
        module.warn(problem)
    for result in results:
        set_attributes(module, result)
        for warning in result["warnings"]:
            module.warn("{0}: {1}".format(result["src"], warning))
    finish(module, results, recovered, found.last if found else None, failure)


def finish(
    module: AnsibleModule,
    results: List[Dict[str, Any]],
    recovered: List[Dict[str, Any]],
    found: Optional[Candidates],
    failure: Optional[QcowError],
) -> None:
    """Hand out the results of one image as the module's own, those of many as a list; fail where anything has failed."""
    one = module.params["src"] is not None
    answer = {"images": results, "summary": summary(results)} if not one else dict(results[0]) if results else {}  # type: Dict[str, Any]
    problems = []
    if found is not None:
        answer["errors"] = found.errors
        answer["summary"].update(files=found.files, directories=found.directories)
        if found.errors:
            problems.append(message_of(found.errors))
    if failure is not None:
        answer.update(failure.result())
        problems.append(str(failure))
    else:
        problems += [result["msg"] for result in results if result["failed"]]
    answer.update(changed=bool(recovered) or any(result["changed"] for result in results), recovered=recovered)
    if module._diff:  # with many images this doubles the answer
        answer["diff"] = diff_of(results)
    answer.pop("failed", None)
    answer.pop("warnings", None)  # given by module.warn already
    if problems:
        module.fail_json(**dict(answer, msg="; ".join(problems)))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
