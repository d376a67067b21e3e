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
  - vmimage.qcow.images
  - vmimage.qcow.domains
  - vmimage.qcow.search
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  src:
    description: The image to convert. Exactly one of O(src), O(images), O(paths) and O(plan) is required.
    type: path
  paths:
    description:
      - Files and directories, by absolute paths. Every QCOW version 1 image in them is converted, whatever its name says; retired originals
        are not. Symbolic links inside a tree are not followed.
      - Backing files may lie there too, as with O(backing_dirs).
      - What does not exist or cannot be read is listed in RV(errors), and the module fails after it has converted the rest.
    type: list
    elements: path
  plan:
    description:
      - A plan on the controller, as P(vmimage.qcow.scan#role) writes it, or the directory that holds one C(plan-HOST.yml) for each host.
      - Exactly its images with the action V(convert) are converted. Those with V(refuse) fail, as does a plan that could not be carried out as a whole,
        one for another host, and a file that is no plan. Where a directory has no plan for the host, O(missing_ok) says what becomes of that.
    type: path
  dest:
    description:
      - The result's name, or an existing directory it goes into, or a block device with O(format=raw).
      - With a slash at its end, and always with O(images), O(paths) and O(plan), it is a directory, which is made where it does not exist.
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
        description: The result's name, or a directory with a slash at its end.
        type: path
      dest_base64:
        description: Its exact name in Base64, for names that are not UTF-8.
        type: str
      format:
        description: As the module's option.
        type: str
        choices: [qcow2, raw]
      passphrase_file:
        description: File on the host with this image's passphrase.
        type: path
      action:
        description:
          - What a reviewed plan says is to be done. V(convert) converts the image, V(skip) leaves it as it is, and V(refuse) fails with what O(images[].why)
            says.
        type: str
        choices: [convert, skip, refuse]
        default: convert
      why:
        description: What a reviewed plan says about the action.
        type: list
        elements: str
        default: []
      expect:
        description:
          - What a reviewed plan says of the image. One that differs in anything named here is refused with the reason V(changed).
        type: dict
        suboptions:
          size:
            description: Length of the file in bytes.
            type: int
          mtime_ns:
            description: When it was last modified, in nanoseconds since 1970.
            type: int
          ino:
            description: Its inode number.
            type: int
  workers:
    description: How many of O(images) to convert at the same time.
    type: int
    default: 1
  max_minutes:
    description:
      - Start no image later than so many minutes after the start. What is under way is completed.
      - The images that are left have RV(ignore:action=defer) and are no failures; the next run goes on.
    type: float
  max_bytes:
    description:
      - Copy no more than so many bytes that guests see, in bytes or with a unit (V(500G)), in the order of O(images).
      - The first image is always converted, however large it is. What is left is as with O(max_minutes).
    type: str
  fail_on_in_use:
    description:
      - Whether an image that is in use has failed. If not, it is left to a later run, as with O(max_minutes), and so are the images of its chain.
    type: bool
    default: true
  progress_interval:
    description:
      - How often to show how far the conversion has come, in seconds, at most. The first lines come sooner.
      - V(0) shows nothing and runs the module as any other, bound to the life of the connection.
    type: int
    default: 15
  reconnect_timeout:
    description: For how many seconds to try to reach a host again whose connection was lost, before it is given up as unreachable.
    type: int
    default: 3600
  _watched_as:
    description: For the action plugin of this collection alone, which finds the progress of its job by it.
    type: str
  time_limit:
    description:
      - After how many seconds the whole call is killed on the host. The next run cleans up after it.
      - The default is a year. To end a run in good order use O(max_minutes).
    type: int
    default: 31536000
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
      - V(auto) is V(native) unless the result is one that only C(qemu-img) writes; then the image is read natively and C(qemu-img) writes
        from that.
    type: str
    choices: [auto, native, qemu-img]
    default: auto
  cluster_size:
    description:
      - Cluster size of a qcow2 result, in bytes or with a unit (V(64K)). A power of two from 512 bytes to 2 MiB.
      - If not given, 64 KiB; for overlays that stay thin the largest of 4, 16 and 64 KiB that takes at most a quarter more space than
        the best of them.
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
  chains:
    description:
      - What becomes of images with a backing file.
      - V(preserve) keeps them overlays. Bases are converted first, each overlay is written thin over its new base with the backing format in its
        header, and with O(original=retire) the headers of qcow2 overlays that rest on a base are pointed to the new one. All images of a chain
        are converted, or none. A base that is QCOW version 1 itself has to be among O(images), or has been converted before.
      - V(flatten) makes every result stand alone. Results of O(format=raw) always do.
      - A base never loses its name while anything that is not migrated still needs it.
    type: str
    choices: [preserve, flatten]
    default: preserve
  backing_dirs:
    description:
      - Directories in which backing files may lie, besides the directory of each image itself. Backing files elsewhere are refused, and so
        are protocols, devices and the kernel's own files, wherever they are named.
      - With O(original=retire), overlays that rest on an image are looked for here too, subdirectories included.
    type: list
    elements: path
    default: []
  backing_formats:
    description:
      - What files are known to be, as a dictionary of paths and C(qemu-img)'s names of formats, for instance by the domains that use them.
      - A file declared V(raw) whose content says that it is an image is refused, because its guest may have written that.
    type: dict
    default: {}
  raw_bases:
    description: Whether a backing file without any mark of a format is taken for raw. Otherwise it has to be declared in O(backing_formats).
    type: bool
    default: true
  domains:
    description:
      - What becomes of libvirt domains that use an image.
      - V(follow) points their definitions to the result before the original is retired, path and driver type together, as C(virsh edit) would.
        An image is refused before anything is written where a domain could not follow it, for a snapshot or a saved memory state for instance.
      - V(refuse) refuses every image that a domain uses.
      - V(ignore) does not ask libvirt.
    type: str
    choices: [follow, refuse, ignore]
    default: follow
  running:
    description:
      - What to do with domains that run from an image.
      - V(refuse) refuses the image.
      - V(shutdown) asks the guest to shut down, migrates all images of the domain that are among O(images), and starts the domain again. If it does
        not start, files and definitions are rolled back together, and it is started from what it ran on before. A guest that does not
        shut down within O(shutdown_timeout) goes on running, and its images stay as they are.
      - V(live) moves the domain without a stop. It writes to an overlay while the image is converted and verified, then a block copy brings the result
        up to date and the domain pivots to it. Needs QEMU 4.2 and libvirt 6.0 on the host, O(format=qcow2), a result under another name, and space
        beside the image for what the guest writes meanwhile. Images of backing chains, and images that several running domains share, are
        refused. O(bandwidth) limits the block copy too.
    type: str
    choices: [refuse, shutdown, live]
    default: refuse
  shutdown_timeout:
    description: How many seconds a guest has to shut down with O(running=shutdown).
    type: int
    default: 120
  reference_dirs:
    description:
      - Directories (or files) with text in which to search for the names of images that are to be retired, for references that nobody can edit, for
        instance V(/etc/xen), V(/etc/pve) or V(/etc/systemd/system). Subdirectories are included, files over 1 MiB are not.
    type: list
    elements: path
    default: []
  references:
    description:
      - What to do with an image that such a file names, unless its result takes its name. V(refuse) refuses it; the way out is O(keep_name).
        V(report) only says so in RV(ignore:reasons).
    type: str
    choices: [refuse, report]
    default: refuse
  declared_raw:
    description:
      - What to do with an image that a domain declares as raw. Such a guest sees and writes the bytes of the file, and may have written the header
        itself to be given another file of the host.
      - V(allow) takes it for a QCOW image whose definition is wrong, and corrects the definition.
    type: str
    choices: [refuse, allow]
    default: refuse
  passphrase_file:
    description:
      - File on the host with the passphrase of encrypted images. Every byte of it counts, a newline at its end too.
      - A passphrase by which nothing in the image makes sense is refused, see O(force_passphrase).
    type: path
  passphrase_files:
    description: The same for single files of chains, as a dictionary of the images' paths and the files with their passphrases.
    type: dict
    default: {}
  force_passphrase:
    description: Whether to take a passphrase that is wrong by all appearances, for disks that hold nothing but noise.
    type: bool
    default: false
  encryption:
    description:
      - Encryption of a qcow2 result. V(luks) is written by C(qemu-img), with the passphrase in O(luks_passphrase_file).
      - On the way a file without a name holds the disk in clear in the result's directory, and another one does when it is verified.
    type: str
    choices: [none, luks]
    default: none
  luks_passphrase_file:
    description: File on the host with the passphrase for O(encryption=luks). Every byte of it counts.
    type: path
  salvage:
    description:
      - Whether to convert damaged images all the same. What can be read is kept, what cannot becomes zeros, and every lost range is listed in
        RV(lost) and in the record.
    type: bool
    default: false
  overwrite_device:
    description:
      - Whether a block device as O(dest) may hold something that will be lost. Without this, one that begins with a partition table, a
        filesystem, a volume or an image is refused. One that is mounted or used is refused in any case.
    type: bool
    default: false
  preallocation:
    description:
      - Space that a result takes from the beginning. V(metadata) gives every cluster of a qcow2 its place, V(falloc) reserves the space too,
        and V(full) writes it.
    type: str
    choices: ['off', metadata, falloc, full]
    default: 'off'
  compat:
    description: Compatibility level of a qcow2 result. V(0.10) is for QEMU before 1.1 and knows no lazy refcounts.
    type: str
    choices: ['0.10', '1.1']
    default: '1.1'
  verify:
    description:
      - V(full) compares every guest byte of the result with the original before the result gets its name. What only the filesystem calls a hole is
        read, too, unless its extent map and the space that the file occupies agree.
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
  layout:
    description:
      - V(recluster) writes a qcow2 result anew, with the clusters that suit the guest best.
      - V(keep) leaves every cluster and compressed stream where it is in the file and writes only new tables. Where the filesystem can share
        blocks (XFS, Btrfs), that takes as long as writing the tables, and no space but theirs; elsewhere the file is copied as it is. The
        price is that the old, small cluster size stays. An image whose layout qcow2 cannot express is re-clustered, and RV(reasons) says why.
    type: str
    choices: [recluster, keep]
    default: recluster
  bandwidth:
    description:
      - The most bytes of the guest's disk a second to copy for each worker, in bytes or with a unit (V(100M)), and then to verify.
      - Not limited if not given.
    type: str
  priority:
    description: With V(low) the conversion comes behind everything else that wants the processors or the disks.
    type: str
    choices: [normal, low]
    default: normal
  page_cache:
    description:
      - V(use) leaves it to the kernel what it keeps in memory.
      - V(spare) drops what was read and written from the host's page cache while it goes on, so that running guests keep theirs. The result is
        verified as the disk gives it back. This is slower.
    type: str
    choices: [use, spare]
    default: use
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

import os
from typing import Any, Dict, List, Optional, Tuple

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import QcowError
from ..module_utils._host import linux
from ..module_utils._migration.batch import Settings, run
from ..module_utils._migration.chains import Surroundings
from ..module_utils._migration.domain_policy import Policy
from ..module_utils._migration.record import Records
from ..module_utils._migration.recover import warnings_of
from ..module_utils._migration.request import Request
from ..module_utils._migration.results import summary
from ..module_utils._migration.search import Candidates, Search, candidates, message_of
from ..module_utils._options import OptionError, absolute, bytes_of, cluster_size_of, path_of, paths_of, require_at_least, reserve_of
from ..module_utils._paths import decode_exact, encode_exact, show, to_path


def passphrase_files_of(params: Dict[str, Any], image: Dict[str, Any]) -> Tuple[Tuple[bytes, bytes], ...]:
    """Which file has the passphrase of which image; the one for all others is under the empty name."""
    files = {
        os.path.realpath(absolute(path, "passphrase_files")): absolute(str(secret), "passphrase_files")
        for path, secret in params["passphrase_files"].items()
    }
    if image.get("passphrase_file"):
        files[os.path.realpath(exact(image, "src"))] = absolute(image["passphrase_file"], "passphrase_file")
    if params["passphrase_file"] is not None:
        files[b""] = absolute(params["passphrase_file"], "passphrase_file")
    return tuple(sorted(files.items()))


def common_request(params: Dict[str, Any]) -> Request:
    """What all images have in common.

    :raises OptionError: an option cannot be meant.
    """
    many = params["src"] is None
    dest = path_of(params, "dest")
    into = dest is not None and (many or params["dest"].endswith("/"))
    return Request(
        src=b"",
        dest=None if into else dest,
        dest_dir=dest if into else None,
        format=params["format"],
        keep_name=params["keep_name"],
        engine=params["engine"],
        verify=params["verify"] == "full",
        retire=params["original"] == "retire",
        cluster_size=cluster_size_of(params, "cluster_size"),
        compression=params["compression"],
        lazy_refcounts=params["lazy_refcounts"],
        extended_l2=params["extended_l2"],
        layout=params["layout"],
        bandwidth=bytes_of(params, "bandwidth"),
        page_cache=params["page_cache"],
        timestamps=params["timestamps"],
        state_dir=absolute(params["state_dir"], "state_dir"),
        chains=params["chains"],
        backing_dirs=paths_of(params, "backing_dirs") + paths_of(params, "paths"),
        backing_formats=tuple((absolute(path, "backing_formats"), str(name)) for path, name in sorted(params["backing_formats"].items())),
        raw_bases=params["raw_bases"],
        force_passphrase=params["force_passphrase"],
        encryption=params["encryption"],
        luks_passphrase_file=path_of(params, "luks_passphrase_file"),
        salvage=params["salvage"],
        overwrite_device=params["overwrite_device"],
        preallocation=params["preallocation"],
        compat=params["compat"],
    )


def requests_of(params: Dict[str, Any], common: Request) -> List[Request]:
    """What O(src) or O(images) ask for, one request an image.

    :raises OptionError: an option cannot be meant.
    """
    images = params["images"] if params["images"] is not None else [{"src": params["src"], "action": "convert", "why": []}]
    return [request_of(params, common, image) for image in images if image["action"] != "skip"]


def request_of(params: Dict[str, Any], common: Request, image: Dict[str, Any]) -> Request:
    """One entry of O(images).

    :raises OptionError: an option cannot be meant.
    """
    request = common._replace(
        src=exact(image, "src"),
        format=image.get("format") or params["format"],
        passphrase_files=passphrase_files_of(params, image),
        expect=tuple((key, value) for key, value in sorted((image.get("expect") or {}).items()) if value is not None),
        refused="; ".join(image["why"]) or "the plan does not say why" if image["action"] == "refuse" else "",
    )
    if image.get("dest"):
        dest = exact(image, "dest")
        inside = image["dest"].endswith("/")
        request = request._replace(dest=None if inside else dest, dest_dir=dest if inside else None)
    return request


def exact(image: Dict[str, Any], name: str) -> bytes:
    """The path ``src`` or ``dest`` of an entry of O(images).

    :raises OptionError: it is relative, or its Base64 is none.
    """
    try:
        return decode_exact(image[name], image.get(name + "_base64")) if image.get(name + "_base64") else absolute(image[name], name)
    except ValueError as error:
        raise OptionError("{0}_base64: {1}".format(name, error)) from error


class Found:
    """Asks for every image below O(paths), and keeps what was found last."""

    def __init__(self, params: Dict[str, Any], common: Request) -> None:
        self._search = Search(
            paths_of(params, "paths"),
            tuple(to_path(pattern) for pattern in params["exclude"]),
            params["one_filesystem"],
            params["missing_ok"],
        )
        self._params = params
        self._common = common
        self.last = Candidates([], [], 0, 0)

    def __call__(self, around: Surroundings) -> List[Request]:
        self.last = candidates(self._search, Records(self._common.state_dir), around)
        images = [{"src": show(path), "src_base64": encode_exact(path)} for path in self.last.paths]
        return [
            self._common._replace(src=path, passphrase_files=passphrase_files_of(self._params, image))
            for path, image in zip(self.last.paths, images)
        ]


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
            "progress_interval": {"type": "int", "default": 15},  # the action plugin's
            "reconnect_timeout": {"type": "int", "default": 3600},  # the action plugin's
            "time_limit": {"type": "int", "default": 31536000},  # the action plugin's
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
            "shutdown_timeout": {"type": "int", "default": 120},
            "reference_dirs": {"type": "list", "elements": "path", "default": []},
            "references": {"type": "str", "choices": ["refuse", "report"], "default": "refuse"},
            "declared_raw": {"type": "str", "choices": ["refuse", "allow"], "default": "refuse"},
            "passphrase_file": {"type": "path", "no_log": False},  # names of files, not passphrases
            "passphrase_files": {"type": "dict", "default": {}, "no_log": False},
            "force_passphrase": {"type": "bool", "default": False, "no_log": False},
            "encryption": {"type": "str", "choices": ["none", "luks"], "default": "none"},
            "luks_passphrase_file": {"type": "path", "no_log": False},
            "salvage": {"type": "bool", "default": False},
            "overwrite_device": {"type": "bool", "default": False},
            "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
            "compat": {"type": "str", "choices": ["0.10", "1.1"], "default": "1.1"},
            "verify": {"type": "str", "choices": ["full", "none"], "default": "full"},
            "original": {"type": "str", "choices": ["keep", "retire"], "default": "keep"},
            "timestamps": {"type": "bool", "default": True},
            "layout": {"type": "str", "choices": ["recluster", "keep"], "default": "recluster"},
            "bandwidth": {"type": "str"},
            "priority": {"type": "str", "choices": ["normal", "low"], "default": "normal"},
            "page_cache": {"type": "str", "choices": ["use", "spare"], "default": "use"},
            "reserve": {"type": "str", "default": "64M"},
            "lock_timeout": {"type": "int", "default": 0},
            "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
            "_watched_as": {"type": "str"},  # by the action plugin
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


def settings_of(params: Dict[str, Any], *, check_mode: bool) -> Settings:
    """How the call is run.

    :raises OptionError: an option cannot be meant.
    """
    require_at_least(
        params, workers=1, max_minutes=0, progress_interval=0, reconnect_timeout=0, time_limit=1, shutdown_timeout=0, lock_timeout=0
    )
    reserve, percent = reserve_of(params)
    return Settings(
        state_dir=absolute(params["state_dir"], "state_dir"),
        workers=params["workers"],
        wait=params["lock_timeout"],
        check_mode=check_mode,
        max_minutes=params["max_minutes"],
        max_bytes=bytes_of(params, "max_bytes"),
        fail_on_in_use=params["fail_on_in_use"],
        watched_as=params["_watched_as"],
        domains=params["domains"],
        libvirt_uri=params["libvirt_uri"],
        reference_dirs=paths_of(params, "reference_dirs"),
        references=params["references"],
        raw_allowed=params["declared_raw"] == "allow",
        running=Policy(params["running"], params["shutdown_timeout"]),
        reserve=reserve,
        reserve_percent=percent,
    )


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
