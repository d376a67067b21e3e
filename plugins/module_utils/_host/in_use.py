# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who has an image open, seen without disturbing anybody, and keeping writers out while we read.

What is looked at, each where the kernel offers it:

* the lock bytes of QEMU 2.10 and later (:func:`lock_users`), and any other POSIX or open-file-description lock. On NFS these
  questions go to the server, so holders on other hosts are seen as well (unless mounted with ``nolock``/``local_lock``);
* descriptors of all processes, mode included (:func:`find_users_many`): also holders that take no locks (``locking=off``,
  QEMU before 2.10, VirtualBox, tapdisk). Without root only our own user's processes can be seen: :class:`Survey` counts the others;
* users inside the kernel: loop devices, swap, exported files, and for block devices mounts and holders (:mod:`.procfs`);
* on local filesystems the kernel's own counts of readers and writers, asked through leases: they also know those that no /proc
  shows, such as memory mappings and processes of other containers, and where nobody else is there, no process has to be looked at.

32-bit: the lock calls use the C library's 64-bit ``struct flock``; a Python built without large file support would get
EINVAL, and then the lock bytes count as unknown, not as free.
"""

import errno
import fcntl
import os
import signal
import stat
import time
from typing import Any, Dict, Iterable, List, Optional, Tuple

from .._errors import ImageChanged, ImageInUse
from . import linux, procfs
from .files import identity
from .procfs import READER, WRITER, Key, Survey, Use, listdir, process_name, scan

# QEMU, block/file-posix.c: byte 100+n "I use permission n", byte 200+n "nobody else may have permission n".
_PERMISSIONS = ("consistent read", "write", "write unchanged", "resize", "graph")
_USED, _FORBIDDEN = 100, 200
_GUARD_BYTES = (100, 201, 203)
# Filesystems where a lease is refused for one reason only: the file is open for writing. Network ones refuse for others.
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "jfs", "reiserfs", "bcachefs")
# The lease's signal, were it ever delivered, is one that every process ignores unless it asked for it.
_IGNORED_SIGNAL = signal.SIGURG
# Seconds that an open for writing may stand before it counts as a writer; a QEMU that fails on a lock is gone in 0.1.
_PATIENCE = 2.0


def find_users(fd: int, *, ignore_pids: Iterable[int] = (), seen: Optional[Dict[Key, List[Use]]] = None) -> List[Use]:
    """Everybody else who has an open file in use, by all the ways above. Changes nothing; this process itself is not a user.

    :param fd: a descriptor opened for reading (only).
    :param ignore_pids: processes of our own, for instance a qemu-img we started.
    :param seen: what :func:`find_users_many` gave for many files, in place of another look at all processes for each of them.
    """
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    if stat.S_ISBLK(status.st_mode):
        found = scan(set(), {status.st_rdev}, ignore_pids).users.get((0, status.st_rdev), []) + procfs.of_device(status.st_rdev)
    else:
        if seen is None or key not in seen:
            if _only_we(fd):
                return []
            seen = find_users_many([key], ignore_pids=ignore_pids)
        found = list(seen[key])
    for use in lock_users(fd):
        # A lock whose holder was found among the processes is no second user.
        if not any(other.kind == use.kind or other.kind == WRITER for other in found):
            found.append(use)
    if not any(use.kind == WRITER for use in found) and _open_for_writing(fd):
        found.append(Use(WRITER, "a process that cannot be seen from here", "the kernel counts the file as open for writing"))
    return found


def in_use(what: str, users: List[Use], path: Optional[bytes], hint: str) -> ImageInUse:
    """The error that says who has something in use; its details' ``users`` hold the same for programs.

    :param what: the subject of the sentence.
    """
    said = "; ".join("{0} ({1}, {2})".format(use.who, use.kind, use.how) for use in users)
    return ImageInUse("{0} is in use: {1}".format(what, said), path, hint=hint, users=[use._asdict() for use in users])


def require_unused(fd: int, what: str, path: bytes, hint: str) -> None:
    """Refuse a file that anybody else has open, be it for reading only.

    :raises ImageInUse: see :func:`in_use`.
    """
    users = find_users(fd)
    if users:
        raise in_use(what, users, path, hint)


def find_users_many(identities: Iterable[Tuple[int, ...]], *, ignore_pids: Iterable[int] = ()) -> Dict[Key, List[Use]]:
    """Users of many regular files with one look at all processes and devices; ask :func:`lock_users` for the locks of each.

    :param identities: tuples beginning with ``st_dev``, ``st_ino`` (a ``FileIdentity`` is one).
    :return: for each (``st_dev``, ``st_ino``) asked for its users, an empty list where none was seen.
    """
    return survey(identities, ignore_pids=ignore_pids).users


def survey(identities: Iterable[Tuple[int, ...]], *, ignore_pids: Iterable[int] = ()) -> Survey:
    """As :func:`find_users_many`, and says how much could not be seen."""
    keys = {(item[0], item[1]) for item in identities}
    if not keys:
        return Survey({}, 0)
    users, unseen = scan(keys, set(), ignore_pids)
    for key, more in procfs.of_files(keys).items():
        users[key].extend(more)
    return Survey(users, unseen)


def lock_users(fd: int) -> List[Use]:
    """Users that hold locks on an open file: at most one for QEMU's bytes and one for each other locked range.

    Empty where the filesystem has no locks. Locks of this very process do not count.
    """
    try:
        used = [n for n in range(len(_PERMISSIONS)) if _locked(fd, _USED + n)]
        forbidden = [n for n in range(len(_PERMISSIONS)) if _locked(fd, _FORBIDDEN + n)]
        others = [linux.find_lock(fd, 0, _USED), linux.find_lock(fd, 105, 95), linux.find_lock(fd, 205, 0)]
    except OSError:
        return []
    found: List[Use] = []
    if used or forbidden:
        kind = WRITER if set(used) & {1, 2, 3} or 0 in forbidden else READER
        what = ", ".join(str(number) for number in [_USED + n for n in used] + [_FORBIDDEN + n for n in forbidden])
        found.append(Use(kind, "a QEMU process, possibly on another host", "QEMU's lock bytes {0}".format(what)))
    for lock in others:
        if lock is not None and lock.pid != os.getpid():
            who = process_name(str(lock.pid)) if lock.pid > 0 else "an unknown process, possibly on another host"
            last = "the end" if not lock.length else lock.start + lock.length - 1
            found.append(Use(WRITER if lock.kind == fcntl.F_WRLCK else READER, who, "a lock on bytes {0} to {1}".format(lock.start, last)))
    return found


def _locked(fd: int, byte: int) -> bool:
    """Whether anybody but this process has the byte locked."""
    if linux.find_lock(fd, byte, 1) is None:
        return False
    own = [line for line in _own_locks(fd) if _covers(line, byte)]
    if not own:
        return True
    # The kernel names one holder only, and that may be our own guard on another descriptor: count them instead.
    try:
        with open("/proc/locks", "rb") as stream:
            everybody = [line.split()[1:] for line in stream]
    except OSError:
        return False
    file_name = own[0][4]
    return sum(1 for line in everybody if line[4:5] == [file_name] and _covers(line, byte)) > len(own)


def _covers(line: List[bytes], byte: int) -> bool:
    """Whether a lock (``OFDLCK ADVISORY READ -1 fd:00:1234 100 101``) of an open file description covers a byte."""
    return line[:1] == [b"OFDLCK"] and len(line) == 7 and int(line[5]) <= byte and (line[6] == b"EOF" or byte <= int(line[6]))


def _own_locks(fd: int) -> List[List[bytes]]:
    """This process's locks on the file, as the words of ``/proc/locks`` without the running number."""
    status = os.fstat(fd)
    found: List[List[bytes]] = []
    for name in listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat("/proc/self/fd/" + name), status):
                with open("/proc/self/fdinfo/" + name, "rb") as stream:
                    found.extend(line.split()[2:] for line in stream if line.startswith(b"lock:"))
        except OSError:
            continue
    return found


def _writers_of_our_own(fd: int) -> bool:
    status = os.fstat(fd)
    for name in listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat("/proc/self/fd/" + name), status) and os.lstat("/proc/self/fd/" + name).st_mode & stat.S_IWUSR:
                return True
        except OSError:
            continue
    return False


def _is_local(fd: int) -> bool:
    """Whether it is a regular file on a filesystem that no other host can open it on."""
    mount = linux.mount_of(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    return mount is not None and mount.fstype in _LOCAL


def _leasable(fd: int) -> bool:
    """Whether a refused lease would prove a writer: a local file that we do not write ourselves."""
    return _is_local(fd) and not _writers_of_our_own(fd)


def _only_we(fd: int) -> bool:
    """Whether the kernel says that this is the only open file on its inode (``fs/locks.c``, ``check_conflicting_open``): it grants a write lease
    only then, whoever holds the others and wherever. ``False`` where it cannot be asked, and where we have opened it twice."""
    try:
        if not _is_local(fd):
            return False
        before = linux.get_lease(fd)  # of a guard, or none
        linux.set_lease(fd, fcntl.F_WRLCK, _IGNORED_SIGNAL)
    except OSError:
        return False
    # Somebody who opens it in this very instant waits for these microseconds, no longer. One who wants to write goes on being announced to the guard.
    linux.set_lease(fd, before, _IGNORED_SIGNAL)
    return True


def _open_for_writing(fd: int) -> bool:
    """Whether the kernel knows a writer. False where it cannot be asked: other owner, network filesystem, a writer of our own."""
    try:
        if linux.get_lease(fd) != fcntl.F_UNLCK:
            return False  # our guard has it, so there is none
        if not _leasable(fd):
            return False
        linux.set_lease(fd, fcntl.F_RDLCK, _IGNORED_SIGNAL)
    except OSError as error:
        return error.errno == errno.EAGAIN
    # Somebody who opens it for writing in this very instant waits for these microseconds, no longer.
    linux.set_lease(fd, fcntl.F_UNLCK, _IGNORED_SIGNAL)
    return False


class Guard:
    """Keeps writers out of an open image while we read it (context manager).

    * Read locks on QEMU's bytes 100, 201 and 203: every later QEMU writer fails with ``Failed to get "write" lock``, also on
      another host where the filesystem carries locks (NFS does); QEMU readers go on working.
    * On local filesystems a lease: whoever else opens the image for writing is held at its ``open`` until :meth:`check`
      notices (the kernel lets it go on after ``/proc/sys/fs/lease-break-time``, 45 s, in any case). A QEMU then fails on the
      locks and all is as before; anything else is refused as a writer. This includes this very process: do not open the
      image for writing while it is guarded.

    ``warnings`` says in sentences which of the two could not be had.
    """

    def __init__(self, fd: int, path: Optional[bytes] = None, *, lease: bool = True, ignore_pids: Iterable[int] = ()) -> None:
        """:param fd: opened for reading only; stays the caller's. :param path: for messages. :param lease: False leaves the lease out."""
        self.warnings: List[str] = []
        self._fd = fd
        self._path = path
        self._wants_lease = lease
        self._ignored = tuple(ignore_pids)
        self._leased = False
        self._locked: List[int] = []
        self._identity = identity(fd)

    def __enter__(self) -> "Guard":
        """:raises ImageInUse: a writer is there already."""
        try:
            self._lock()
            self._refuse_locked_writer()
            self._lease()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *dummy: Any) -> None:
        self.release()

    def _lock(self) -> None:
        for byte in _GUARD_BYTES:
            try:
                linux.set_lock(self._fd, fcntl.F_RDLCK, byte, 1)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise self._in_use(list(lock_users(self._fd))) from error
                self.warnings.append("QEMU writers cannot be kept out by locks here: {0}.".format(error.strerror))
                return
            self._locked.append(byte)

    def _refuse_locked_writer(self) -> None:
        if any(use.kind == WRITER for use in lock_users(self._fd)):
            raise self._in_use([use for use in find_users(self._fd, ignore_pids=self._ignored) if use.kind == WRITER])

    def _lease(self) -> None:
        if not self._wants_lease or not _leasable(self._fd):
            return
        try:
            linux.set_lease(self._fd, fcntl.F_RDLCK, _IGNORED_SIGNAL)
            self._leased = True
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise self._in_use([use for use in find_users(self._fd, ignore_pids=self._ignored) if use.kind == WRITER]) from error
            self.warnings.append(
                "Writers that take no locks cannot be kept out, only noticed by what they change: {0}.".format(error.strerror)
            )

    def check(self) -> None:
        """Three cheap questions to the kernel; ask them every few megabytes and before publishing.

        Changes of name, owner or mode (as libvirt makes them when it tries to start a domain) are no writes and pass.

        :raises ImageInUse: a writer came and stayed. :raises ImageChanged: size or modification time is not what it was at the start.
        """
        if self._leased and linux.get_lease(self._fd) != fcntl.F_RDLCK:
            self._let_pass()
        if self._locked and any(linux.find_lock(self._fd, byte, 1) is not None for byte in (_USED + 1, _USED + 3)):
            raise self._in_use(lock_users(self._fd))
        if not identity(self._fd).same_content(self._identity):
            raise ImageChanged(
                "was written while it was read.", path=self._path, hint="Nothing was published. Stop what writes it and run again."
            )

    def _let_pass(self) -> None:
        """Somebody waits to open the image for writing: let it, and see whether it goes away again, as a QEMU does at our locks."""
        linux.set_lease(self._fd, fcntl.F_UNLCK, _IGNORED_SIGNAL)
        self._leased = False
        deadline = time.monotonic() + _PATIENCE
        while not self._leased:
            time.sleep(0.02)
            try:
                linux.set_lease(self._fd, fcntl.F_RDLCK, _IGNORED_SIGNAL)
                self._leased = True
            except OSError:
                if time.monotonic() > deadline:
                    raise self._in_use([use for use in find_users(self._fd, ignore_pids=self._ignored) if use.kind == WRITER]) from None

    def release(self) -> None:
        """End the guard; a second call does nothing."""
        leased, self._leased = self._leased, False
        locked, self._locked = self._locked, []
        try:
            if leased:
                linux.set_lease(self._fd, fcntl.F_UNLCK, _IGNORED_SIGNAL)
            for byte in locked:
                linux.set_lock(self._fd, fcntl.F_UNLCK, byte, 1)
        except OSError:
            pass  # the descriptor is closed, and with it lease and locks have gone

    def _in_use(self, users: List[Use]) -> ImageInUse:
        users = users or [Use(WRITER, "another process", "a lock or lease was refused")]
        return in_use("the image", users, self._path, "Nothing was changed. Stop what uses it and run again.")
