# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """Options that several modules have in common: one name, one meaning, one type."""

    STATE = r"""
options:
  state_dir:
    description:
      - Directory on the host for the records of all migrations. Only its owner can read it.
      - Created with the first record. A directory that others can write, that belongs to another user, or that is a symbolic link is refused.
    type: path
    default: /var/lib/vmimage-qcow
"""

    LIBVIRT = r"""
options:
  libvirt_uri:
    description:
      - Connection URI of libvirt. Needs libvirt-python (C(python3-libvirt)) on the host, for the Python that runs the module.
      - A host without libvirt has no domains.
    type: str
    default: qemu:///system
"""

    SHUTDOWN = r"""
options:
  shutdown_timeout:
    description: How long a guest has to shut down with O(running=shutdown). In seconds, or with a unit (V(90s), V(5m)).
    type: str
    default: 120s
"""

    LOCK = r"""
options:
  lock_timeout:
    description: How long to wait for another run on the same host. In seconds, or with a unit (V(90s), V(5m), V(2h), V(1d)).
    type: str
    default: 0s
"""

    MOVED = r"""
options:
  moved_files:
    description:
      - What to do with a file of a record that has the recorded size, but another inode number or modification time. A copy to another disk
        (C(cp -a)) gives a file another inode number, and so does every mount of FAT and of some FUSE filesystems.
      - V(auto) reads the file and compares it with the record, if it occupies at most 1 GiB (an overlay with all that it rests on).
        A larger one is refused, and the message says how many bytes would be read.
      - V(compare) reads it whatever its size.
      - V(accept) takes it for the recorded file without reading it. An original must still be a QCOW version 1 image of the recorded size with the
        same backing file, a result must still have its format. This is for originals that are encrypted or damaged, for records of unverified
        migrations, for overlays whose backing files are gone, and for results that guests have written to before they were moved. Look at the files
        first, and do not use it where other users can write in the directory.
      - A file that was recognized is noted in its record, so that it is read only once.
    type: str
    choices: [auto, compare, accept]
    default: auto
"""

    SEARCH = r"""
options:
  exclude:
    description:
      - Shell patterns. A file or directory whose name or full path matches one is left out, a directory with everything below it.
    type: list
    elements: str
    default: []
  one_filesystem:
    description: Whether to stay on the filesystem of each path in O(paths). What is mounted below it from another filesystem is not opened.
    type: bool
    default: false
  missing_ok:
    description:
      - Whether paths in O(paths) may be missing.
      - An image that is missing because it was migrated is never an error.
    type: bool
    default: false
"""

    LIST_RECORDS = r"""
options:
  list_records:
    description:
      - Which records of migrations on this host to return in RV(records).
      - V(unfinished) returns those of interrupted runs, or of a run in progress. V(all) returns all, V(none) none.
    type: str
    choices: [none, unfinished, all]
    default: unfinished
"""

    RECORDS = r"""
options:
  records:
    description:
      - Names of records, from RV(vmimage.qcow.qcow_convert#module:record) or the report of a role.
      - Choose an image by its record if its path contains a C($), because variables in O(paths) are expanded.
    type: list
    elements: str
    default: []
  missing_ok:
    description: Whether paths in O(paths) may be missing, with no record about them. A directory without records is never an error.
    type: bool
    default: false
notes:
  - Work that an interrupted run left on this host is finished or cleaned up first, see RV(recovered).
"""
