#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow_info
short_description: Find disk images by content and describe them
version_added: 1.0.0
author:
  - vmimage.qcow contributors (@vmimage)
description:
  - Looks at files and directory trees and reports every disk image in them by its content, whatever its name.
  - QCOW version 1 images are described in full and their structure is checked, which no other tool does.
  - Fails if it could not look at everything in O(paths); its results are then complete except for what RV(errors) lists.
  - Changes nothing, not even access times if permissions allow, and never asks C(qemu-img) for the format of a file, because on
    RHEL-like hosts it reports a QCOW version 1 image as raw.
extends_documentation_fragment:
  - vmimage.qcow.attributes
  - vmimage.qcow.attributes.info_module
  - vmimage.qcow.attributes.action
  - vmimage.qcow.attributes.actiongroup_qcow
  - vmimage.qcow.options.libvirt
  - vmimage.qcow.options.search
  - vmimage.qcow.options.list_records
  - vmimage.qcow.options.state
options:
  paths:
    description:
      - Files and directories to look at, as absolute paths. A file named here is always reported, whatever it is.
      - Symbolic links inside a directory are not followed; RV(images[].links) lists those that lead to a candidate.
      - A path that does not exist or cannot be read is listed in RV(errors); the module looks at the rest and then fails.
    type: list
    elements: path
    required: true
    aliases: [path]
  recurse:
    description: Whether to look into subdirectories of O(paths).
    type: bool
    default: true
  report:
    description:
      - Which files in directories to report.
      - V(v1) reports QCOW version 1 images only and is the fastest.
      - V(known) reports every file with a known format.
      - V(all) reports every file, including raw and unknown ones.
    type: str
    choices: [v1, known, all]
    default: known
  check:
    description:
      - How thoroughly to check QCOW version 1 images.
      - V(none) reads the header only.
      - V(structure) also reads the tables and reports every inconsistency in them.
      - V(content) also inflates every compressed cluster.
    type: str
    choices: [none, structure, content]
    default: structure
  fingerprint:
    description:
      - Whether to compute the fingerprint of what the guest sees in each QCOW version 1 and qcow2 image. Reads all allocated data.
      - A migrated image has the fingerprint of its original until a guest writes to it.
    type: bool
    default: false
  in_use:
    description: Whether to find out who has a QCOW version 1 image open.
    type: bool
    default: true
  query_libvirt:
    description:
      - Whether to query libvirt for the domains that use the images, running or not, by their disks, snapshots, checkpoints and declared backing files.
      - If libvirt cannot be queried, the definitions that it keeps as files are read instead, with a warning.
    type: bool
    default: true
  reference_dirs:
    description:
      - Directories or text files to search for the names of QCOW images, for instance V(/etc/xen), V(/etc/pve) or
        V(/etc/systemd/system). Subdirectories are included, symbolic links to directories in them are not.
      - How names are found is described with O(vmimage.qcow.qcow_convert#module:reference_dirs). Files over 1 MiB and what cannot be read are named
        in a warning.
    type: list
    elements: path
    default: []
  follow_chains:
    description:
      - Whether to follow backing files and to find out which images are backed by which. This reads the headers of all qcow2 images.
    type: bool
    default: true
  backing_dirs:
    description:
      - Directories in which backing files may lie, besides O(paths) and the directory of each image. Files elsewhere are not opened;
        protocols, devices and files of the kernel never are.
      - This is also where overlays of the images and symbolic links to them are searched for, including subdirectories, besides O(paths), O(reference_dirs)
        and what libvirt knows.
    type: list
    elements: path
    default: []
seealso:
  - module: vmimage.qcow.qcow_convert
"""

EXAMPLES = r"""
- name: Find every QCOW version 1 image below the usual directories
  vmimage.qcow.qcow_info:
    paths:
      - /var/lib/libvirt/images
      - /srv/archive
    report: v1
  register: found

- name: Fail when there is one
  ansible.builtin.assert:
    that: found.summary.candidates == 0
    fail_msg: "{{ found.images | map(attribute='path') | join(', ') }}"

- name: Convert them
  vmimage.qcow.qcow_convert:
    images: "{{ found.candidates }}"

- name: Look at one file, with the fingerprint of its content
  vmimage.qcow.qcow_info:
    path: /srv/archive/old.img
    fingerprint: true
"""

RETURN = r"""
images:
  description: One entry for each file reported, all with the same keys. What is unknown is V(null).
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: "Path of the file; bytes that are not UTF-8 appear as C(\\xNN).", type: str, sample: /srv/archive/old.img}
    path_base64: {description: "Its exact path in Base64 if RV(images[].path) cannot represent it.", type: str, sample: null}
    format:
      description: The format, as named by C(qemu-img) (V(qcow) is QCOW version 1), or V(unknown) for a raw or unknown file.
      type: str
      sample: qcow
    version: {description: The version in the header., type: int, sample: 1}
    virtual_size: {description: Virtual size in bytes., type: int, sample: 10737418240}
    file_size: {description: Size of the file in bytes., type: int, sample: 2307141}
    allocated_size: {description: Bytes that the file occupies on its filesystem., type: int, sample: 2310144}
    mtime: {description: "When the file was last modified, in seconds since 1970-01-01 UTC.", type: float, sample: 1795766942.5}
    cluster_size: {description: Cluster size in bytes., type: int, sample: 4096}
    encrypted: {description: Whether the image is encrypted., type: bool, sample: false}
    compressed_clusters: {description: Number of compressed clusters., type: int, sample: 3000}
    data_bytes: {description: Guest bytes that the image holds., type: int, sample: 12288000}
    producer:
      description: The program that probably wrote the image, or V(unknown).
      type: str
      choices: [qemu, qemu-0.6-to-0.9, xen-blktap, virtualbox, mkimg, mac-on-linux, unknown]
      sample: qemu
    backing:
      description: The backing file as named in the header, or V(null).
      type: dict
      sample: {name: base.qcow, name_base64: null, format: null}
    chain:
      description: The backing files, from that of the image down to the last one.
      type: list
      elements: dict
      sample: [{path: /srv/archive/base.qcow, path_base64: null, format: qcow}]
    dependents:
      description: The images found, and those that libvirt knows, that name this image as their backing file, whoever owns them.
      type: list
      elements: dict
      sample: [{path: /srv/archive/clone.qcow, path_base64: null, format: qcow}]
    links:
      description: The symbolic links that lead to a candidate. C(target) is what a link says.
      type: list
      elements: dict
      sample: [{path: /srv/vm/web/disk.2, path_base64: null, target: ../store/7f3a.qcow}]
    in_use:
      description: Who has the image open. C(kind) is V(reader) or V(writer).
      type: list
      elements: dict
      sample: [{kind: writer, who: qemu-system-x86 (4711), how: open for writing}]
    users:
      description:
        - The uses of the image by libvirt domains, one entry for each place that names it. C(where) is V(definition), V(live), V(snapshot:NAME),
          V(checkpoint:NAME) or V(other). C(depth) is V(0) for the disk itself and more for a backing file. C(text) is what the definition says for
          V(other), with passwords masked.
      type: list
      elements: dict
      sample:
        - {domain: shop, uuid: 6f1cf2a5-16a3-4d5d-9d3c-2a8e2a3c4b5d, device: disk, target: vda, declared_format: qcow, state: running, where: definition,
           depth: 0, path: /var/lib/libvirt/images/shop.qcow, path_base64: null, pool: null, volume: null, text: null, snapshots: [], checkpoints: [],
           managed_save: false}
    domains:
      description:
        - What a migration would do about these domains. C(action) is V(follow), V(running) (they have to be shut down or moved live) or V(refuse).
          V(null) where no domain uses the image.
      type: dict
      sample: {action: follow, reasons: ["Its definition is pointed to the result: shop (vda)."]}
    references:
      description:
        - Where text files below O(reference_dirs) mention the image. C(text) is the line with passwords masked, C(format) the format that is stated
          with the name, if any.
      type: list
      elements: dict
      sample: [{file: /etc/xen/shop.cfg, file_base64: null, line: 12, text: "disk = ['tap:qcow:/srv/shop.qcow,xvda,w']", format: qcow}]
    check:
      description:
        - What the structure check found. C(verdict) is V(sound), V(suspect) (the guest can be read in full, but no known program writes an image like
          that) or V(damaged). C(findings) lists what was found as ranges of guest and file bytes and in words, C(found) counts it by kind.
      type: dict
      sample:
        {level: structure, verdict: damaged, findings: [{kind: cluster-outside-file, severity: error, start: 8388608, length: 4096, offset: 1015808,
         text: the cluster lies outside the file of 1000000 bytes}], found: {cluster-outside-file: {ranges: 1, items: 1, bytes: 4096}},
         file_size: 1000000, virtual_size: 268435456, cluster_size: 4096, clusters: 65536, allocated_clusters: 240, allocated_bytes: 983040,
         compressed_clusters: 0, compressed_bytes: 0, lost_clusters: 1, unallocated_clusters: 65295, data_extents: 12, tables: 1, unaligned_tables: 0,
         unaligned_clusters: 0, orphan_bytes: 0, l1_byteorder: big}
    safety:
      description: What the safety checks of a QCOW version 1 image found. Entries of C(severity) V(error) make a migration refuse it.
      type: list
      elements: dict
      sample: [{kind: backing-protocol, severity: error, start: null, length: 11, offset: 48, text: "the backing file's name is refused: nbd:"}]
    fingerprint:
      description: Fingerprint of what the guest sees. It does not depend on format or allocation.
      type: str
      sample: sha256-64k:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    candidate: {description: Whether the image is one to migrate., type: bool, sample: true}
    reasons: {description: "Why it is a candidate, or why not.", type: list, elements: str, sample: [QCOW v1]}
    error: {description: "Why the file could not be examined, or V(null).", type: str, sample: null}
candidates:
  description: The images to migrate, for O(vmimage.qcow.qcow_convert#module:images).
  returned: always
  type: list
  elements: dict
  contains:
    src: {description: "Path of the image; bytes that are not UTF-8 appear as C(\\xNN).", type: str, sample: /srv/archive/old.img}
    src_base64: {description: "Its exact path in Base64 if RV(candidates[].src) cannot represent it.", type: str, sample: null}
errors:
  description: What could not be looked at. If not empty, the module has failed.
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: The file or directory., type: str, sample: /srv/archive/private}
    path_base64: {description: "Its exact path in Base64 if RV(errors[].path) cannot represent it.", type: str, sample: null}
    msg: {description: "Why, and what to do about it.", type: str, sample: "/srv/archive/private: Permission denied. Leave it out with exclude."}
searched:
  description: The directories in which overlays of the images and symbolic links to them were looked for. Elsewhere they were not.
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: The directory., type: str, sample: /srv/vm}
    path_base64: {description: "Its exact path in Base64 if RV(searched[].path) cannot represent it.", type: str, sample: null}
    recurse: {description: Whether its subdirectories were searched too., type: bool, sample: true}
    limited: {description: Whether O(exclude) or O(one_filesystem) may have left out a part., type: bool, sample: false}
    error: {description: "What of it could not be read, or V(null).", type: str, sample: null}
summary:
  description: Numbers of directories and files searched, of images by format, of candidates, damaged images and errors, and the bytes of the candidates.
  returned: always
  type: dict
  sample: {directories: 12, files: 4711, formats: {qcow: 3, qcow2: 70}, v1: 3, candidates: 3, candidate_bytes: 1073741824, retired: 0, damaged: 0,
           overlays: 1, in_use: 1, errors: 0, used_by_domains: 1, kept_back_by_domains: 0, referenced: 0}
running:
  description: Whether a run is at work on this host, or V(null) if that cannot be known. See M(vmimage.qcow.qcow_status) for how far it is.
  returned: always
  type: bool
  sample: false
records:
  description: Records of migrations on this host, oldest first.
  returned: always
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
reason: {description: "Why the module failed, as a keyword.", returned: when the call as a whole failed, type: str, sample: option}
path: {description: What the failure is about., returned: when the call as a whole failed, type: str, sample: /var/lib/vmimage-qcow}
details: {description: Details of the failure., returned: when the call as a whole failed, type: dict, sample: {}}
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _imports

_imports.compile_once()

from ..module_utils._errors import QcowError
from ..module_utils._migration.domain_references import Domains
from ..module_utils._migration.info import REPORTS, Question, add_domains, add_references, look
from ..module_utils._migration.lock import at_work
from ..module_utils._migration.record import Records
from ..module_utils._migration.record_entries import LISTED, listed_records
from ..module_utils._migration.search import message_of
from ..module_utils._migration.seen_images import unsearched
from ..module_utils._options import absolute, paths_of
from ..module_utils._paths import to_path


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True, "aliases": ["path"]},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "recurse": {"type": "bool", "default": True},
            "one_filesystem": {"type": "bool", "default": False},
            "missing_ok": {"type": "bool", "default": False},
            "report": {"type": "str", "choices": list(REPORTS), "default": "known"},
            "check": {"type": "str", "choices": ["none", "structure", "content"], "default": "structure"},
            "fingerprint": {"type": "bool", "default": False},
            "in_use": {"type": "bool", "default": True},
            "follow_chains": {"type": "bool", "default": True},
            "backing_dirs": {"type": "list", "elements": "path", "default": []},
            "query_libvirt": {"type": "bool", "default": True},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "reference_dirs": {"type": "list", "elements": "path", "default": []},
            "list_records": {"type": "str", "choices": list(LISTED), "default": "unfinished"},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        records = Records(absolute(params["state_dir"], "state_dir"))
        directories = paths_of(params, "reference_dirs")
        question = Question(
            paths=paths_of(params, "paths"),
            exclude=tuple(to_path(pattern) for pattern in params["exclude"]),
            recurse=params["recurse"],
            one_filesystem=params["one_filesystem"],
            missing_ok=params["missing_ok"],
            report=params["report"],
            check=params["check"],
            fingerprint=params["fingerprint"],
            in_use=params["in_use"],
            chains=params["follow_chains"],
            backing_dirs=paths_of(params, "backing_dirs"),
            reference_dirs=directories,
        )
        domains = Domains(params["libvirt_uri"]) if params["query_libvirt"] else None
        images, summary, errors, searched = look(question, records, domains)
        for problem in unsearched(searched):
            module.warn(problem)
        for problem in add_domains(images, summary, domains) if domains is not None else ():
            module.warn(problem)
        if directories:
            for problem in add_references(images, summary, directories):
                module.warn(problem)
        listed = listed_records(records, params["list_records"])
    except QcowError as error:
        module.fail_json(**error.result())
    answer = {
        "changed": False,
        "images": images,
        "candidates": [{"src": image["path"], "src_base64": image["path_base64"]} for image in images if image["candidate"]],
        "errors": errors,
        "searched": [directory.as_result() for directory in searched],
        "summary": summary,
        "running": at_work(records.state_dir),
        "records": listed,
    }
    if errors:
        module.fail_json(msg=message_of(errors), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
