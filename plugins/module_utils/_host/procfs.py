# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``/proc`` and ``/sys`` tell :mod:`.in_use` of files and block devices: processes that have them open, and users inside the kernel (loop devices,
swap, exports, mounts, device stacks)."""

import fcntl
import glob
import os
import stat
import struct
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from .._paths import show
from . import linux

READER = "reader"
WRITER = "writer"


class Use(NamedTuple):
    """Somebody has an image in use.

    ``kind`` is ``"writer"`` or ``"reader"``; ``who`` names the process or device; ``how`` says what it was seen by.
    """

    kind: str
    who: str
    how: str


_O_PATH = 0o10000000

Key = Tuple[int, int]


class Survey(NamedTuple):
    """What a look at all processes gave: users by (``st_dev``, ``st_ino``), and how many processes could not be looked into."""

    users: Dict[Key, List[Use]]
    unseen: int


def listdir(path: str) -> List[str]:
    """Names in a folder that may have gone; empty then."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def scan(keys: Set[Key], devices: Set[int], ignore_pids: Iterable[int]) -> Survey:
    """Look through all descriptors of all processes for the files ``keys`` and the block devices ``devices`` (as key (0, st_rdev))."""
    users: Dict[Key, List[Use]] = {key: [] for key in keys | {(0, device) for device in devices}}
    skipped = {str(pid) for pid in ignore_pids} | {str(os.getpid())}
    avoid = foreign_network_mounts(keys)
    unseen = 0
    for pid in listdir("/proc"):
        if not pid.isdigit() or pid in skipped:
            continue
        folder = "/proc/" + pid + "/fd/"
        try:
            numbers = os.listdir(folder)
        except PermissionError:
            unseen += not _is_kernel_thread(pid)
            continue
        except OSError:
            continue  # it has ended
        for number in numbers:
            try:
                target = os.readlink(folder + number)
                if not target.startswith("/") or (avoid and os.fsencode(target).startswith(avoid)):
                    continue
                status = os.stat(folder + number)
            except OSError:
                continue
            key = (0, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
            if key in users:
                use = _descriptor_use(pid, number)
                if use is not None and use not in users[key]:
                    users[key].append(use)
    return Survey(users, unseen)


def foreign_network_mounts(keys: Set[Key]) -> Tuple[bytes, ...]:
    """Network mounts that hold none of the files: a dead server would hang every look at what lies there."""
    wanted = {(os.major(dev), os.minor(dev)) for dev, dummy in keys}
    network = ("nfs", "cifs", "smb", "ceph", "9p", "fuse", "glusterfs", "lustre", "gpfs", "afs")
    return tuple(
        mount.point.rstrip(b"/") + b"/"
        for mount in linux.mounts()
        if mount.fstype.startswith(network) and (mount.major, mount.minor) not in wanted and mount.point != b"/"
    )


def _descriptor_use(pid: str, number: str) -> Optional[Use]:
    try:
        with open("/proc/{0}/fdinfo/{1}".format(pid, number), "rb") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return None  # closed meanwhile
    flags = next((int(line.split()[1], 8) for line in lines if line.startswith(b"flags:")), os.O_RDWR)
    if flags & _O_PATH:
        return None
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    locked = any(b" OFDLCK " in line for line in lines)
    how = "open for {0}{1}".format("writing" if writes else "reading", ", with locks" if locked else "")
    return Use(WRITER if writes else READER, process_name(pid), how)


def process_name(pid: str) -> str:
    """``comm (pid N)`` for messages."""
    try:
        with open("/proc/{0}/comm".format(pid), "rb") as stream:
            name = show(stream.read().rstrip(b"\n"))
    except OSError:
        name = "a process"
    return "{0} (pid {1})".format(name, pid)


def _is_kernel_thread(pid: str) -> bool:
    try:
        with open("/proc/{0}/stat".format(pid), "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[1] in (b"0", b"2") and pid != "1"
    except (OSError, IndexError):
        return True


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
