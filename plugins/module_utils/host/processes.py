# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which processes have a file open, from ``/proc/*/fd``: one look for any number of files."""

import os
import stat
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.host import linux
from ansible_collections.vmimage.qcow.plugins.module_utils.host.uses import READER, WRITER, Use
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

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
    avoid = _foreign_network_mounts(keys)
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


def _foreign_network_mounts(keys: Set[Key]) -> Tuple[bytes, ...]:
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
