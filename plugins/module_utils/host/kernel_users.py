# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Users of files and block devices inside the kernel: loop devices, swap, exported disks, mounts, device stacks."""

import fcntl
import glob
import os
import stat
import struct
from typing import Dict, List, Optional, Set, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.host import linux
from ansible_collections.vmimage.qcow.plugins.module_utils.host.uses import READER, WRITER, Use
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

Key = Tuple[int, int]

# <linux/loop.h>: struct loop_info64 is 232 bytes; lo_device, lo_inode first, lo_flags at byte 52, bit 0 read-only.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO_SIZE = 232
# Kernel targets that serve files, and where they name them.
_EXPORTS = (
    ("iSCSI or FC target", b"/sys/kernel/config/target/core/fileio_*/*/udev_path"),
    ("NVMe target", b"/sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path"),
    ("USB gadget", b"/sys/kernel/config/usb_gadget/*/functions/mass_storage.*/lun.*/file"),
)


def of_files(keys: Set[Key]) -> Dict[Key, List[Use]]:
    """Kernel users of regular files; only files that have one appear.

    :param keys: (``st_dev``, ``st_ino``) of the files asked for.
    """
    found: Dict[Key, List[Use]] = {}
    for key, use in _loops() + _swap() + _exports():
        if key in keys:
            found.setdefault(key, []).append(use)
    return found


def _read(path: bytes) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read().rstrip(b"\n")
    except OSError:
        return b""


def _key_of(path: bytes) -> Optional[Key]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino)


def _loops() -> List[Tuple[Key, Use]]:
    found = []
    for folder in glob.glob(b"/sys/block/loop*/loop"):
        name = folder.split(b"/")[3]
        state = _loop_state(b"/dev/" + name)
        if state is None:
            # Not allowed to ask the device: go by the name it was set up with.
            key, read_only = _key_of(_read(folder + b"/backing_file")), _read(b"/sys/block/" + name + b"/ro") == b"1"
        else:
            key, read_only = state
        if key is not None:
            found.append(
                (
                    key,
                    Use(READER if read_only else WRITER, "/dev/" + show(name), "loop device{0}".format(", read-only" if read_only else "")),
                )
            )
    return found


def _loop_state(device: bytes) -> Optional[Tuple[Key, bool]]:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_SIZE))
    except OSError:
        return None
    finally:
        os.close(fd)
    dev, inode = struct.unpack_from("=QQ", answer, 0)
    return (dev, inode), bool(struct.unpack_from("=I", answer, 52)[0] & 1)


def _swap() -> List[Tuple[Key, Use]]:
    found = []
    for line in _read(b"/proc/swaps").splitlines()[1:]:
        key = _key_of(line.split()[0].replace(b"\\040", b" ")) if line.split() else None
        if key is not None:
            found.append((key, Use(WRITER, "the kernel", "swap space")))
    return found


def _exports() -> List[Tuple[Key, Use]]:
    found = []
    for what, pattern in _EXPORTS:
        for declaration in glob.glob(pattern):
            key = _key_of(_read(declaration))
            if key is not None:
                found.append((key, Use(WRITER, what, "exported by the kernel: {0}".format(show(os.path.dirname(declaration))))))
    return found


def of_device(device: int) -> List[Use]:
    """Kernel users of a block device: mounts and swap on it or its partitions, and devices stacked on it.

    :param device: ``st_rdev`` of the device.
    """
    folder = os.path.realpath("/sys/dev/block/{0}:{1}".format(os.major(device), os.minor(device))).encode("utf-8", "surrogateescape")
    numbers = {device}
    found = []
    for part in [folder] + [os.path.dirname(path) for path in glob.glob(glob.escape(folder) + b"/*/partition")]:
        major, dummy, minor = _read(part + b"/dev").partition(b":")
        if major.isdigit() and minor.isdigit():
            numbers.add(os.makedev(int(major), int(minor)))
        for holder in glob.glob(glob.escape(part) + b"/holders/*"):
            found.append(Use(WRITER, "/dev/" + show(os.path.basename(holder)), "device stacked on it"))
    for mount in linux.mounts():
        if os.makedev(mount.major, mount.minor) in numbers or _device_number(mount.source) in numbers:
            read_only = b"ro" in mount.options.split(b",")
            found.append(Use(READER if read_only else WRITER, show(mount.point), "mounted {0}".format(mount.fstype)))
    for line in _read(b"/proc/swaps").splitlines()[1:]:
        if line.split() and _device_number(line.split()[0]) in numbers:
            found.append(Use(WRITER, "the kernel", "swap space"))
    return found


def _device_number(path: bytes) -> Optional[int]:
    if not path.startswith(b"/dev/"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None
