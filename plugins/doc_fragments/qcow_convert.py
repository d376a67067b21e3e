# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """The options of qcow_convert that it shares with no other module."""

    DOCUMENTATION = r"""
options:
  src:
    description: The image to convert. Exactly one of O(src), O(images), O(paths) and O(plan) is required.
    type: path
  paths:
    description:
      - Files and directories, by absolute paths. Every QCOW version 1 image in them is converted, whatever its name says; retired originals
        are not. Symbolic links inside a tree are not followed.
      - Backing files may be there, too, as with O(backing_dirs).
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
      - Many images in one call. Each entry has options of its own; for the rest, the module's apply.
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
          - The action that a reviewed plan gives. V(convert) converts the image, V(skip) leaves it as it is, and V(refuse) fails with what O(images[].why)
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
      - Start no new image after this many minutes. What is under way is completed.
      - The images that are left have RV(ignore:action=defer) and are no failures; the next run goes on.
    type: float
  max_bytes:
    description:
      - Copy at most this many guest bytes, in bytes or with a unit (V(500G)), in the order of O(images).
      - The first image is always converted, whatever its size. What is left is as with O(max_minutes).
    type: str
  fail_on_in_use:
    description:
      - Whether an image that is in use has failed. If not, it is left to a later run, as with O(max_minutes), and so are the images of its chain.
    type: bool
    default: true
  progress_interval:
    description:
      - How often at most to show how far the conversion has come, in seconds or with a unit (V(1m)). The first lines come sooner.
      - V(0) shows nothing and runs the module as any other, bound to the life of the connection.
    type: str
    default: 15s
  reconnect_timeout:
    description: How long to try to reach a host again whose connection was lost, in seconds or with a unit, before it is given up as unreachable.
    type: str
    default: 1h
  time_limit:
    description:
      - How long the whole call may take, in seconds or with a unit, before it is killed on the host. The next run cleans up after it.
      - To end a run in good order use O(max_minutes).
    type: str
    default: 365d
  format:
    description: Format of the result.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  keep_name:
    description:
      - Whether the result takes the original's own name, for references that cannot be edited. Needs O(original=retire).
    type: bool
    default: false
  engine:
    description:
      - V(native) is this collection's own reader and writer. It works on every distribution and detects damage.
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
      - Directories in which backing files may be, besides the directory of each image itself. Backing files elsewhere are refused, and so
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
    description: How long a guest has to shut down with O(running=shutdown). In seconds, or with a unit (V(90s), V(5m)).
    type: str
    default: 120s
  reference_dirs:
    description:
      - Directories (or files) with text in which to search for the names of images that are to be retired, for references that cannot be edited, for
        instance V(/etc/xen), V(/etc/pve) or V(/etc/systemd/system). Subdirectories are included, files over 1 MiB are not.
    type: list
    elements: path
    default: []
  references:
    description:
      - What to do with an image that such a file names, unless its result takes its name. V(refuse) refuses it; the way out is O(keep_name).
        V(report) only mentions it in RV(ignore:reasons).
    type: str
    choices: [refuse, report]
    default: refuse
  allow_declared_raw:
    description:
      - Whether to migrate an image that a domain declares as raw. Such a guest sees and writes the bytes of the file, and may have written the header
        itself to be given another file of the host. Otherwise the image is refused, and so is one that begins with the mark of another format too, a
        partition table's for instance.
      - Set it where the definition is wrong. The definition is then corrected.
    type: bool
    default: false
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
      - Whether to convert damaged images anyway. What can be read is kept, what cannot becomes zeros, and every lost range is listed in
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
    description: Compatibility level of a qcow2 result. V(0.10) is for QEMU before 1.1 and does not support lazy refcounts.
    type: str
    choices: ['0.10', '1.1']
    default: '1.1'
  verify:
    description:
      - Whether to compare every guest byte of the result with the original before the result gets its name. What only the filesystem calls a hole is
        read, too, unless its extent map and the space that the file occupies agree.
      - Without it the result is published unproven, and there is no fingerprint.
    type: bool
    default: true
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
    description: V(low) lets every other process go first, on processors and disks.
    type: str
    choices: [normal, low]
    default: normal
  page_cache:
    description:
      - V(use) leaves caching to the kernel.
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
"""
