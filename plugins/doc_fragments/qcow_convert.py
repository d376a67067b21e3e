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
      - Files and directories, as absolute paths. Every QCOW version 1 image in them is converted, whatever its name, except retired
        originals. Symbolic links inside a directory are not followed.
      - Backing files may lie there too, as in O(backing_dirs).
      - A path that does not exist or cannot be read is listed in RV(errors); the module converts the rest and then fails.
    type: list
    elements: path
  plan:
    description:
      - A plan on the controller, as written by P(vmimage.qcow.scan#role), or a directory with one C(plan-HOST.yml) for each host.
      - Exactly the images with the action V(convert) are converted. An image with the action V(refuse) fails; so do a plan that could not
        be carried out as a whole, a plan for another host, and a file that is not a plan. Set O(missing_ok) if the directory may lack a plan
        for a host.
    type: path
  dest:
    description:
      - The path of the result, an existing directory to put it in, or, with O(format=raw), a block device.
      - With a trailing slash, and always with O(images), O(paths) and O(plan), it is a directory, which is created if it does not exist.
      - "If not given, the result is written beside the original: C(x.qcow) becomes C(x.qcow2) or C(x.raw), any other name gets the suffix
        appended, and a name that already ends in the suffix is kept (which needs O(original=retire))."
    type: path
  images:
    description:
      - Several images in one call. Options given in an entry override those of the module.
      - An image that fails does not stop the others; the module fails at the end and names it.
    type: list
    elements: dict
    suboptions:
      src:
        description: The image to convert.
        type: path
        required: true
      src_base64:
        description:
          - Its exact path in Base64, as returned in RV(vmimage.qcow.qcow_info#module:images[].path_base64), for paths that are not UTF-8 or contain
            a C($).
          - Takes precedence over O(images[].src). Nothing in it is expanded.
        type: str
      dest:
        description: The path of the result, or a directory with a trailing slash.
        type: path
      dest_base64:
        description: Its exact path in Base64. Takes precedence over O(images[].dest). Nothing in it is expanded.
        type: str
      format:
        description: See O(format).
        type: str
        choices: [qcow2, raw]
      passphrase_file:
        description: Path on the host of a file that holds this image's passphrase.
        type: path
      action:
        description:
          - The action from a reviewed plan. V(convert) converts the image, V(skip) leaves it as it is, and V(refuse) fails with the reasons in
            O(images[].why).
        type: str
        choices: [convert, skip, refuse]
        default: convert
      why:
        description: The reasons for the action, from a reviewed plan.
        type: list
        elements: str
        default: []
      expect:
        description:
          - What the image was when the plan was made. An image that now differs in any of these is refused with the reason V(changed).
        type: dict
        suboptions:
          size:
            description: Size of the file in bytes.
            type: int
          mtime_ns:
            description: Time of its last modification, in nanoseconds since 1970-01-01 UTC.
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
      - Begin no image that cannot be completed within this many minutes. They count from the start of
        C(ansible-playbook), for all hosts, whenever their turn comes. If the clocks of the controller and a host do not agree, its window can end
        later by the time that the module needs to get there.
      - What an interrupted run has left is finished first, also when the window has closed.
      - How long an image takes is estimated by what others took on the same host, in this run and in its last 100 records, except those made
        with O(bandwidth). Until something has been measured there, 100 MiB per second and one second per image are assumed. Images in progress
        are completed.
      - The remaining images have RV(ignore:action=defer) and do not count as failed; the next run continues with them.
    type: float
  until:
    description:
      - As O(max_minutes), but with a time at which the window closes, for instance V(05:30 Europe/Berlin), V(05:30 UTC) or
        V(2026-12-06 05:30+01:00). It needs a time zone.
      - A time without a date is the next one after the run was started, and must be at most 12 hours ahead, because a time that has
        just passed would mean the next day. If both options are set, the earlier end counts.
    type: str
  only:
    description:
      - Of the images that are found, convert only these, named as RV(images[].src) of an earlier call names them, for instance of one in check mode.
        The remaining images are deferred, as with O(max_minutes).
    type: list
    elements: str
  max_bytes:
    description:
      - Copy at most this many guest bytes, in the order of O(images). In bytes, or with a unit (V(500G)).
      - The first image is always converted, whatever its size. The remaining images are deferred, as with O(max_minutes).
    type: str
  fail_on_no_space:
    description:
      - Whether the run fails before anything is changed if not all images fit on their filesystems together, see O(reserve).
      - If not, as many images as possible are migrated, and the rest are deferred, as with O(max_minutes). Images of a chain stay together.
        An image that does not fit even alone has failed.
    type: bool
    default: true
  fail_on_in_use:
    description:
      - Whether an image that is in use counts as failed. If not, it is deferred, as with O(max_minutes), and so are the other images of its chain.
        An image whose result already has its name has failed all the same.
    type: bool
    default: true
  progress_interval:
    description:
      - How often to show progress. In seconds, or with a unit (V(1m)). The first lines appear sooner.
      - V(0) shows no progress and runs the module like any other. Whether it ends when the connection does, or with Ctrl-C, is up to the connection; if it
        does, the image in progress is undone. Otherwise it goes on, see M(vmimage.qcow.qcow_status) and M(vmimage.qcow.qcow_stop).
    type: str
    default: 15s
  reconnect_timeout:
    description: How long to keep trying to reach a host after the connection was lost, before the host is unreachable. In seconds, or with a unit.
    type: str
    default: 1h
  time_limit:
    description:
      - Kill the run on the host after this time. In seconds, or with a unit. The next run cleans up after it.
      - To end a run in good order, use O(max_minutes).
    type: str
    default: 365d
  format:
    description: Format of the result.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  keep_name:
    description:
      - Whether to give the result the original's name, for references that cannot be edited. Needs O(original=retire).
      - This is no help for references that also state the format (C(format=qcow)), which O(reference_dirs) finds.
    type: bool
    default: false
  engine:
    description:
      - V(native) uses this collection's own reader and writer. It works on every distribution and detects damage.
      - V(qemu-img) uses C(qemu-img) on the host, after a test that it can read QCOW version 1.
      - V(auto) is V(native), except for results that only C(qemu-img) can write; such an image is read natively and written by C(qemu-img).
    type: str
    choices: [auto, native, qemu-img]
    default: auto
  cluster_size:
    description:
      - Cluster size of a qcow2 result, in bytes or with a unit (V(64K)). A power of two from 512 bytes to 2 MiB.
      - If not given, 64 KiB. For overlays that stay overlays, the largest of 4, 16 and 64 KiB that takes at most a quarter more space than
        the best of the three.
    type: str
  compression:
    description:
      - Compression of a qcow2 result. V(zstd) is written by C(qemu-img).
    type: str
    choices: [none, zlib, zstd]
    default: none
  lazy_refcounts:
    description: Whether to enable lazy refcounts in a qcow2 result.
    type: bool
    default: false
  extended_l2:
    description: Whether to use extended L2 entries (32 subclusters per cluster) in a qcow2 result. Needs a cluster size of at least 16 KiB.
    type: bool
    default: false
  chains:
    description:
      - What to do with images that have a backing file.
      - V(preserve) keeps them as overlays. Backing files are converted first, each overlay is written over its new backing file with the backing
        format in its header, and with O(original=retire) the headers of qcow2 overlays are changed to name the new backing file. Either all
        images of a chain are converted, or none. A backing file that is itself QCOW version 1 must be among O(images), or have been converted before.
      - V(flatten) makes every result independent of backing files. Results with O(format=raw) always are.
      - A backing file is never renamed while an image that is not migrated still needs it. An image whose owner cannot read the backing file is
        named in a warning and left as it is, unless a libvirt domain uses it.
    type: str
    choices: [preserve, flatten]
    default: preserve
  backing_dirs:
    description:
      - Directories in which backing files may lie, besides the directory of each image. Backing files elsewhere are refused, and so
        are protocols, devices and files of the kernel, wherever they are.
      - A backing file is followed only if everybody who can write the image could have read it, whatever directory it is in.
      - With O(original=retire), this is also where overlays of an image and symbolic links to it are searched for, including subdirectories. What lies
        beside the image, below O(paths) and in O(reference_dirs), and what the domains and directory pools of libvirt hold, is searched in any case.
        An overlay anywhere else loses its backing file; RV(searched) lists where they were looked for.
    type: list
    elements: path
    default: []
  links:
    description:
      - What to do with symbolic links to an image that loses its name to O(original=retire).
      - V(follow) points them to the result; a rollback points them back. A link whose owner cannot read the image, or in a directory that everybody may
        write to, is left as it is, with a warning.
      - V(refuse) refuses the image and names the links.
      - V(ignore) leaves them as they are, with a warning. They lead nowhere then.
      - They are searched for where overlays are, see O(backing_dirs).
    type: str
    choices: [follow, refuse, ignore]
    default: follow
  backing_formats:
    description:
      - Known formats of backing files, as a dictionary of paths and format names of C(qemu-img), for instance from the domains that use them.
      - A file declared V(raw) whose content is that of an image is refused, because a guest may have written it.
    type: dict
    default: {}
  raw_bases:
    description:
      - Whether to treat a backing file without a known signature as raw. If not, it must be declared in O(backing_formats).
      - A backing file of an image that users other than root can write must be declared in any case.
    type: bool
    default: true
  domains:
    description:
      - What to do with libvirt domains that use an image.
      - V(follow) changes their definitions to use the result before the original is retired, both path and driver type, as C(virsh edit) would.
        If a domain cannot be changed, for instance because it has a snapshot or a saved memory state, its image is refused before anything is written.
      - V(refuse) refuses every image that a domain uses.
      - V(ignore) does not query libvirt.
    type: str
    choices: [follow, refuse, ignore]
    default: follow
  running:
    description:
      - What to do with domains that run from an image.
      - V(refuse) refuses the image.
      - V(shutdown) asks the guest to shut down, migrates all images of the domain that are among O(images), and starts the domain again. If it does
        not start, files and definition are rolled back together, and it is started from its original images. A guest that does not
        shut down within O(shutdown_timeout) keeps running, and its images are left unchanged.
      - V(live) migrates without stopping the domain. It writes to an overlay while the image is converted and verified; then a block copy brings the
        result up to date, and the domain pivots to it. Needs QEMU 4.2 and libvirt 6.0 on the host, O(format=qcow2), a result with another name,
        and space beside the image for what the guest writes in the meantime. Images in backing chains, and images that several running domains
        share, are refused. O(bandwidth) also limits the block copy.
    type: str
    choices: [refuse, shutdown, live]
    default: refuse
  reference_dirs:
    description:
      - Directories or text files to search for the names of images that are to be retired, because such references are not edited. For
        instance V(/etc/xen), V(/etc/pve) or V(/etc/systemd/system). Subdirectories are included, symbolic links to directories in them are not.
      - Names are found in full, through symbolic links, relative to the file or to a directory that the file names, and in the escapes of shells,
        XML, JSON, URLs, systemd and QEMU. Patterns, C(~), names made of variables, compressed files and files over 1 MiB are not searched.
      - Files over 1 MiB and what cannot be read are named in RV(ignore:warnings).
    type: list
    elements: path
    default: []
  references:
    description:
      - What to do with an image if a line of a file in O(reference_dirs) that names it would be wrong after the migration, because the name or a
        format stated with it changes. V(refuse) refuses the image. V(report) migrates it. Both say which lines to change and what to write there;
        V(report) says it in RV(ignore:reasons).
      - With O(keep_name), a line that states no format stays right.
    type: str
    choices: [refuse, report]
    default: refuse
  allow_declared_raw:
    description:
      - Whether to migrate an image that a domain declares as raw. The guest of such a domain sees and writes the bytes of the file, and may have
        written the QCOW header itself to gain access to another file of the host. If not set, such an image is refused, and so is one that
        also has the signature of another format, for instance of a partition table.
      - Set it if the definition is wrong. The definition is then corrected.
    type: bool
    default: false
  passphrase_file:
    description:
      - Path on the host of a file that holds the passphrase of encrypted images. Every byte counts, including a newline at the end.
      - A passphrase that decrypts the image to noise is refused, see O(force_passphrase).
    type: path
  passphrase_files:
    description: Passphrase files of single images, as a dictionary of image paths and passphrase file paths.
    type: dict
    default: {}
  force_passphrase:
    description: Whether to accept a passphrase that appears to be wrong, for disks that hold nothing but noise.
    type: bool
    default: false
  encryption:
    description:
      - Encryption of a qcow2 result. V(luks) is written by C(qemu-img), with the passphrase in O(luks_passphrase_file).
      - While it is written and while it is verified, a file without a name in the directory of the result holds the disk in plain text.
    type: str
    choices: [none, luks]
    default: none
  luks_passphrase_file:
    description: Path on the host of a file that holds the passphrase for O(encryption=luks). Every byte counts.
    type: path
  salvage:
    description:
      - Whether to convert damaged images. What can be read is kept, what cannot be read becomes zeros, and every lost range is listed in
        RV(lost) and in the record.
    type: bool
    default: false
  overwrite_device:
    description:
      - Whether to overwrite a block device O(dest) that is not empty. If not set, a device that begins with a partition table, a
        filesystem, a volume or an image is refused. A device that is mounted or in use is always refused.
    type: bool
    default: false
  preallocation:
    description:
      - Space to allocate for the whole disk. V(metadata) allocates every cluster of a qcow2 result, V(falloc) also reserves the space,
        and V(full) also writes it.
    type: str
    choices: ['off', metadata, falloc, full]
    default: 'off'
  compat:
    description: Compatibility level of a qcow2 result. V(0.10) is for QEMU older than 1.1 and has no lazy refcounts.
    type: str
    choices: ['0.10', '1.1']
    default: '1.1'
  verify:
    description:
      - Whether to compare every guest byte of the result with the original before the result is published. Holes that the filesystem reports
        are read too, unless its extent map and the space that the file occupies confirm them.
      - Where the host has C(qemu-img), C(qemu-img check) looks at qcow2 results as well. Of results that are small (under 16 MiB), plain, and
        laid out anew, it looks at the first twenty of a run and then at every tenth; of all others at each.
      - If not set, the result is published unverified and has no fingerprint.
    type: bool
    default: true
  original:
    description:
      - V(keep) leaves the original where it is.
      - V(retire) appends C(.qcow1.orig) to its name when the result is in place, so that nothing keeps writing to it unnoticed.
    type: str
    choices: [keep, retire]
    default: keep
  timestamps:
    description: Whether to give the result the original's access and modification times.
    type: bool
    default: true
  layout:
    description:
      - V(recluster) writes a new qcow2 file with O(cluster_size).
      - V(keep) leaves every cluster and compressed stream where it is in the file and writes only new tables. If the filesystem can share
        blocks (XFS, Btrfs), this takes only the time and space of the tables; otherwise the file is copied as it is. The
        old, small cluster size is kept. An image whose layout qcow2 cannot express is reclustered, and RV(reasons) says why.
    type: str
    choices: [recluster, keep]
    default: recluster
  bandwidth:
    description:
      - Copy, and then verify, at most this many guest bytes per second and worker. In bytes, or with a unit (V(100M)).
      - If not given, there is no limit.
    type: str
  priority:
    description: V(low) gives every other process precedence on processors and disks.
    type: str
    choices: [normal, low]
    default: normal
  page_cache:
    description:
      - V(use) leaves caching to the kernel.
      - V(spare) drops what was read and written from the page cache of the host as it goes, so that running guests keep their share. The result is
        verified from the disk. This is slower.
    type: str
    choices: [use, spare]
    default: use
  reserve:
    description:
      - Space that must remain free on every filesystem at the end. In bytes, with a unit (V(10G)), or as a percentage of the
        filesystem (V(5%)). If all images together do not fit, none is started, unless O(fail_on_no_space=false).
    type: str
    default: 64M
"""
