#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_convert
short_description: Convert QCOW version 1 images to verified qcow2 or raw images
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Converts one image, or many in one call, and verifies that the guest sees the same bytes before it publishes the result.
  - The original is opened read-only and never modified. The result is written under a temporary name beside its destination, synced,
    verified by reading both images with code that the copy does not use, and renamed. A run that fails leaves everything as it was.
  - A file that has several names (hard links) is one image. It is converted under the first name that is given, and refused under the others.
  - Needs only Python on the host. If C(qemu-img) is installed, it also checks the result.
  - Every step is recorded on the host in O(state_dir), before it happens. A second run changes nothing.
extends_documentation_fragment:
  - ansible.builtin.files
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.qcow_convert
  - vmimage.qcow.options.lock
  - vmimage.qcow.options.moved
  - vmimage.qcow.options.libvirt
  - vmimage.qcow.options.shutdown
  - vmimage.qcow.options.search
  - vmimage.qcow.options.list_records
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
  - module: vmimage.qcow.qcow_status
  - module: vmimage.qcow.qcow_stop
notes:
  - The result gets the owner, group, mode, ACLs, extended attributes and SELinux label of the original; O(owner), O(group), O(mode) and the
    other file options override them.
  - Work that an interrupted run left on this host is finished or cleaned up first, see RV(recovered).
  - On the host, SIGTERM, SIGINT and SIGHUP undo the work in progress and end the module; after SIGKILL or a crash the next run does so.
  - "Ctrl-C ends C(ansible-playbook) only: hosts that are at work go on with all their images; see how far they are with C(vmimage.qcow.status),
    and stop them with C(vmimage.qcow.stop)."
  - Progress is shown for each image. The module runs on the host in the background (with C(async), unless the task sets it itself), so a lost
    connection, a cancelled job or a stopped controller does the same as Ctrl-C. The next run waits for O(lock_timeout), shows the progress of the
    first meanwhile, and then finds its images migrated.
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
src: &src
  description: The original.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: /srv/archive/old.qcow
src_base64: &src_base64
  description: Its exact path in Base64 if RV(src) cannot represent it.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: null
dest: &dest
  description: The result.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: /srv/archive/old.qcow2
dest_base64: &dest_base64
  description: Its exact path in Base64 if RV(dest) cannot represent it.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: null
action: &action
  description: V(convert), V(retire) (the result exists and is verified, only the original is renamed), V(noop), V(refuse) or V(defer) (left to a later run).
  returned: with O(src), and in each of RV(images)
  type: str
  sample: convert
reasons: &reasons
  description: The reasons for the action.
  returned: with O(src), and in each of RV(images)
  type: list
  elements: str
  sample: [QCOW v1 image of 10737418240 bytes]
changed: &changed
  description: Whether anything was changed, or would be in check mode.
  returned: always
  type: bool
  sample: true
failed: &failed
  description: Whether the image was refused or failed.
  returned: in each of RV(images)
  type: bool
  sample: false
msg: &msg
  description: RV(reasons) as one sentence, or what went wrong and what to do about it.
  returned: always
  type: str
  sample: QCOW v1 image of 10737418240 bytes
reason: &reason
  description: Why the image was refused, failed or was deferred, as a keyword.
  returned: with O(src), and in each of RV(images); when the call as a whole failed
  type: str
  sample: in-use
details: &details
  description: "Details of a failure: C(users) of a file in use, damaged C(ranges), C(problems) of a plan that does not fit, a C(backing) file."
  returned: with O(src), and in each of RV(images); when the call as a whole failed
  type: dict
  sample: {}
engine: &engine
  description: The engine that wrote the result. V(staged) means read natively and written by C(qemu-img).
  returned: with O(src), and in each of RV(images)
  type: str
  sample: native
verified: &verified
  description: Whether the result was verified against the original.
  returned: with O(src), and in each of RV(images)
  type: bool
  sample: true
fingerprint: &fingerprint
  description: Fingerprint of what the guest sees in both images. It does not depend on format or allocation.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: "sha256-64k:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
retired: &retired
  description: The name to which the original was, or will be, renamed.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: /srv/archive/old.qcow.qcow1.orig
retired_base64: &retired_base64
  description: Its exact path in Base64 if RV(retired) cannot represent it.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: null
record: &record
  description: Name of the record on the host.
  returned: with O(src), and in each of RV(images)
  type: str
  sample: 20261101T021500.000000Z-1a2b3c4d
source: &source
  description: What the original was when it was examined; see O(images[].expect).
  returned: with O(src), and in each of RV(images)
  type: dict
  sample: {size: 2307141, mtime_ns: 1795766942543396575, ino: 2148945}
copy_bytes: &copy_bytes
  description: Guest bytes to copy.
  returned: with O(src), and in each of RV(images)
  type: int
  sample: 12288000
before: &before
  description: The original.
  returned: with O(src), and in each of RV(images)
  type: dict
  sample: {path: /srv/archive/old.qcow, format: qcow, virtual_size: 268435456, file_size: 2307141, allocated_size: 2310144, cluster_size: 4096}
after: &after
  description: Size of the result; in check mode the upper limit.
  returned: with O(src), and in each of RV(images)
  type: dict
  sample: {path: /srv/archive/old.qcow2, format: qcow2, virtual_size: 268435456, file_size: 12648448, allocated_size: 12648448, cluster_size: 65536}
chain: &chain
  description: The backing files, from that of the image down to the last one.
  returned: with O(src), and in each of RV(images)
  type: list
  elements: dict
  sample: [{path: /srv/archive/base.qcow, path_base64: null, format: qcow}]
domains: &domains
  description: The disks of libvirt domains that follow to the result. Empty if none uses the image, or O(domains=ignore).
  returned: with O(src), and in each of RV(images)
  type: list
  elements: dict
  sample: [{name: web01, target: vda, format: qcow}]
backing: &backing
  description: The backing file of a result that stays an overlay, as named in its header.
  returned: with O(src), and in each of RV(images)
  type: dict
  sample: {path: base.qcow2, path_base64: null, format: qcow2}
repointed: &repointed
  description: The qcow2 overlays whose headers were changed to name the result, or would be in check mode.
  returned: with O(src), and in each of RV(images)
  type: list
  elements: str
  sample: [/srv/archive/clone.qcow2]
links: &links
  description: The symbolic links that were pointed to the result, or would be in check mode. C(target) is what a link said before.
  returned: with O(src), and in each of RV(images)
  type: list
  elements: dict
  sample: [{path: /srv/vm/web/disk.2, path_base64: null, target: ../store/7f3a.qcow}]
lost: &lost
  description: With O(salvage), every range that could not be read; C(start) and C(length) are guest bytes, C(offset) is the place in the file.
  returned: with O(src), and in each of RV(images)
  type: list
  elements: dict
  sample: [{path: /srv/archive/old.qcow, start: 8388608, length: 65536, offset: 1015808, what: the cluster lies outside the file of 1000000 bytes}]
warnings: &warnings
  description: Warnings about the image, which the module also issues.
  returned: in each of RV(images)
  type: list
  elements: str
  sample: []
seconds: &seconds
  description: Seconds that the image took.
  returned: with O(src), and in each of RV(images)
  type: float
  sample: 12.5
copy_seconds: &copy_seconds
  description: Seconds of that for the copy.
  returned: with O(src), and in each of RV(images)
  type: float
  sample: 7.25
verify_seconds: &verify_seconds
  description: Seconds of that for the verification.
  returned: with O(src), and in each of RV(images)
  type: float
  sample: 4.5
path:
  description: The file or directory that the failure is about.
  returned: when the call as a whole failed
  type: str
  sample: /var/lib/vmimage-qcow
images:
  description: One entry for each image, in the order of O(images), or of the walk with O(paths).
  returned: with O(images), O(paths) or O(plan)
  type: list
  elements: dict
  contains:
    {
      src: *src, src_base64: *src_base64, dest: *dest, dest_base64: *dest_base64, action: *action, reasons: *reasons, changed: *changed, failed:
      *failed, msg: *msg, reason: *reason, details: *details, engine: *engine, verified: *verified, fingerprint: *fingerprint, retired: *retired,
      retired_base64: *retired_base64, record: *record, source: *source, copy_bytes: *copy_bytes, before: *before, after: *after, chain: *chain,
      backing: *backing, repointed: *repointed, links: *links, domains: *domains, lost: *lost, warnings: *warnings, seconds: *seconds,
      copy_seconds: *copy_seconds, verify_seconds: *verify_seconds
    }
summary:
  description: Numbers of images, and the bytes of those that were converted. With O(paths), also the numbers of files and directories searched.
  returned: with O(images), O(paths) or O(plan)
  type: dict
  sample: {images: 3, changed: 2, unchanged: 0, failed: 1, deferred: 0, bytes_before: 2744320, bytes_after: 12742656, files: 4711, directories: 12}
searched:
  description:
    - The directories in which overlays of the images and symbolic links to them were looked for, besides the images that libvirt's domains use.
      Elsewhere they were not; name further directories in O(backing_dirs).
    - Empty if no image is to lose its name.
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: The directory., type: str, sample: /srv/vm}
    path_base64: {description: "Its exact path in Base64 if RV(searched[].path) cannot represent it.", type: str, sample: null}
    recurse: {description: Whether its subdirectories were searched too., type: bool, sample: true}
    limited: {description: Whether O(exclude) or O(one_filesystem) may have left out a part., type: bool, sample: false}
    error: {description: "What of it could not be read, or V(null).", type: str, sample: null}
errors:
  description: What could not be looked at below O(paths). If not empty, the module has failed.
  returned: with O(paths)
  type: list
  elements: dict
  sample: [{path: /srv/archive/private, path_base64: null, msg: "/srv/archive/private: Permission denied. Run with the rights to read it (become)."}]
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
"""

from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _imports

_imports.compile_once()

from ..module_utils._errors import QcowError
from ..module_utils._host import linux
from ..module_utils._migration import drawn
from ..module_utils._migration.arguments import ARGUMENTS, FoundImages, common_request, requests_of, settings_of
from ..module_utils._migration.batch import run
from ..module_utils._migration.file_options import set_file_options
from ..module_utils._migration.plan import summary
from ..module_utils._migration.record_entries import records_of
from ..module_utils._migration.results import warnings_of
from ..module_utils._migration.search import Candidates, message_of
from ..module_utils._migration.seen_images import Searched, unsearched


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        add_file_common_args=True,
        required_one_of=[("src", "images", "paths", "plan")],
        mutually_exclusive=[("src", "images", "paths", "plan")],
        required_if=[("encryption", "luks", ("luks_passphrase_file",))],
    )
    params = module.params
    recovered: List[Dict[str, Any]] = []
    found: Optional[FoundImages] = None
    results: List[Dict[str, Any]] = []
    searched: List[Searched] = []
    failure: Optional[QcowError] = None
    try:
        settings = settings_of(params, check_mode=module.check_mode)
        common = common_request(params)
        if params["paths"] is not None:
            found = FoundImages(params, common)
        wanted = [] if found else requests_of(params, common)
        if params["priority"] == "low" and not module.check_mode:
            for problem in linux.lower():
                module.warn(problem)
        results = run(found or wanted, settings, recovered, searched)
    except QcowError as error:
        failure = error
        results = error.details.pop("images", [])
    for problem in warnings_of(recovered) + unsearched(searched):
        module.warn(problem)
    for result in results:
        set_file_options(module, result)
        for warning in result["warnings"]:
            module.warn("{0}: {1}".format(result["src"], warning))
    finish(module, results, recovered, searched, found.last if found else None, failure)


def finish(
    module: AnsibleModule,
    results: List[Dict[str, Any]],
    recovered: List[Dict[str, Any]],
    searched: List[Searched],
    found: Optional[Candidates],
    failure: Optional[QcowError],
) -> None:
    """Hand out the results of one image as the module's own, those of many as a list; fail where anything has failed."""
    answer: Dict[str, Any] = {"images": results, "summary": summary(results)} if module.params["src"] is None else dict(*results)
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
    answer.update(records_of(module.params), searched=[directory.as_result() for directory in searched])
    if module._diff:  # with many images this doubles the answer
        answer["diff"] = [drawn.of_migration(result) for result in results if result["changed"] and not result["failed"]]
    answer.pop("failed", None)
    answer.pop("warnings", None)  # given by module.warn already
    if problems:
        module.fail_json(**dict(answer, msg="; ".join(problems)))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
