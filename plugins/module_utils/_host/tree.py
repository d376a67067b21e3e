# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Walking trees of millions of files: every directory once, one open and one small read for each file that could be an image."""

import errno
import fnmatch
import os
import re
import select
import stat
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._directories import behind_links, open_directory, real_directory, real_path, status_of
from .._errors import QcowError
from .._workers import Channel, Worker
from . import linux
from .files import open_source

_LEAST = 8  # bytes: no image of any format is shorter
_O_NOATIME = getattr(os, "O_NOATIME", 0)
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
# The kernel's own trees hold no images, and reading some of their files does something.
PSEUDO = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts efivarfs fusectl mqueue nsfs proc pstore rpc_pipefs securityfs "
    "selinuxfs sysfs tracefs".split()
)


class Found(NamedTuple):
    """One file, or one thing that could not be looked at.

    ``head`` is its first bytes, ``stat`` its ``fstat`` (``st_nlink`` above 1: it may appear under its other names too).
    Where something could not be read, ``error`` says why and ``stat`` may be ``None``.
    """

    path: bytes
    stat: Optional[os.stat_result]
    head: bytes
    error: Optional[str]

    @property
    def key(self) -> Optional[Tuple[int, int]]:
        """``(st_dev, st_ino)``; ``None`` where it could not be looked at."""
        return None if self.stat is None else (self.stat.st_dev, self.stat.st_ino)

    def read_at(self, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes at byte ``offset``; the file is opened again only for what ``head`` does not hold. Empty where that fails."""
        if self.stat is None or offset + length <= len(self.head) or len(self.head) >= self.stat.st_size:
            return self.head[offset : offset + length]
        try:
            fd = open_source(self.path)
        except QcowError:
            return b""
        try:
            return os.pread(fd, length, offset)
        except OSError:
            return b""
        finally:
            os.close(fd)


class Counts:
    """What a walk has passed so far; may be read while it runs. ``links`` has the symbolic links."""

    def __init__(self) -> None:
        self.directories = 0
        self.files = 0
        self.errors = 0
        self.links: List[bytes] = []


def walk(
    paths: Iterable[bytes],
    *,
    prefix: bytes = b"",
    exclude: Iterable[bytes] = (),
    one_filesystem: bool = False,
    recurse: bool = True,
    head_size: int = 4096,
    block_devices: bool = False,
    counts: Optional[Counts] = None,
    workers: int = 1,
) -> Iterator[Found]:
    """Find files that could be disk images, in a stable order: the files of a directory by name, then its subdirectories by name.

    Symbolic links are not followed, except a path of ``paths`` itself, which is resolved. Access times stay where our rights
    allow. Nothing is raised for what cannot be read. The kernel's own trees (/proc, /sys, ...) are left out.

    :param paths: files and directories. A file named here is always reported, whatever it is.
    :param prefix: a file found in a directory is reported if it begins with these bytes and has at least 8.
    :param exclude: shell patterns; what matches one by its name or its full path is left out, a directory with all below it.
    :param one_filesystem: stay on the filesystem (for Btrfs: the subvolume) of each path.
    :param recurse: False looks at the files directly in each directory only.
    :param head_size: how many bytes of each file are read.
    :param block_devices: report block devices too.
    :param workers: processes that look into directories, this one included; more than one only with ``prefix``, which keeps
        what they have to tell small.
    """
    walker = _Walker(prefix, _matcher(exclude), head_size, block_devices, counts or Counts())
    for path in paths:
        try:
            real = behind_links(path)
            status = status_of(real)
            is_link = stat.S_ISLNK(status_of(path).st_mode)
        except (QcowError, OSError, ValueError) as error:
            walker.counts.errors += 1
            yield _failed(path, error)
            continue
        if is_link:
            walker.counts.links.append(path)
            real = real_path(real)
        if stat.S_ISDIR(status.st_mode):
            yield from walker.tree(path, status.st_dev if one_filesystem else None, recurse, workers if prefix else 1)
        else:
            yield walker.named(real)


def _matcher(patterns: Iterable[bytes]) -> Optional[Any]:
    expressions = [fnmatch.translate(pattern.decode("latin-1")).encode("latin-1") for pattern in patterns]
    return re.compile(b"|".join(b"(?:" + expression + b")" for expression in expressions)).match if expressions else None


def _failed(path: bytes, error: Exception) -> Found:
    return Found(path, None, b"", getattr(error, "strerror", None) or getattr(error, "message", None) or str(error))


class _Listing(NamedTuple):
    """One directory: (``st_dev``, ``st_ino``) or ``None`` where it is left out, its number of files, subdirectories, what to report, its links."""

    key: Optional[Tuple[int, int]]
    files: int
    directories: List[bytes]
    reported: List[Found]
    links: List[bytes]


_NOTHING = _Listing(None, 0, [], [], [])
_BATCH = 16  # directories given to a worker at once, at most: a message and a wake-up cost as much as a directory of a hundred files


class _Listings:
    """Workers that list directories, also those that earlier ones lead to (context manager): the kernel's part of a walk is most of it.

    This process works too. A worker that dies loses nothing: its directories are listed here.

    :param function: path -> listing; runs in the workers, and must not raise.
    :param following: listing -> paths of the directories to be listed next, in the order they will be asked for.
    """

    def __init__(self, function: Callable[[bytes], Any], following: Callable[[Any], List[bytes]], workers: int) -> None:
        self._function = function
        self._following = following
        self._done: Dict[bytes, Any] = {}
        self._waiting: List[bytes] = []
        self._given: Dict[Worker, List[bytes]] = {}
        while len(self._given) < workers:
            self._given[Worker(self._serve, list(self._given))] = []

    def _serve(self, channel: Channel) -> None:
        try:
            while True:
                channel.send([self._function(path) for path in channel.receive()])
        except (EOFError, BrokenPipeError):
            pass

    def __enter__(self) -> "_Listings":
        return self

    def __exit__(self, *dummy: Any) -> None:
        while self._given:
            self._given.popitem()[0].end()

    def listing(self, path: bytes) -> Any:
        """The listing of a directory that followed from an earlier one, or of a new one. Listed here where no worker has it."""
        while path not in self._done:
            self._collect(0)
            self._hand_out()
            if path in self._done:
                break
            if not any(path in batch for batch in self._given.values()):
                if path in self._waiting:
                    self._waiting.remove(path)
                self._keep(path, self._function(path))
            elif self._waiting:
                other = self._waiting.pop()
                self._keep(other, self._function(other))
            else:
                self._collect(None)
        return self._done.pop(path)

    def _hand_out(self) -> None:
        # Only to a worker that waits: it reads what we write, so that neither waits for the other with a full pipe.
        for worker in [worker for worker, batch in self._given.items() if not batch]:
            count = min(_BATCH, len(self._waiting) // (len(self._given) + 1))
            if count:
                self._given[worker] = self._waiting[: -count - 1 : -1]
                del self._waiting[-count:]
                try:
                    worker.send(self._given[worker])
                except OSError:
                    self._give_up(worker)

    def _collect(self, timeout: Optional[float]) -> None:
        busy = [worker for worker, batch in self._given.items() if batch]
        for worker in select.select(busy, [], [], timeout)[0] if busy else ():
            try:
                listings = worker.receive()
            except EOFError:
                self._give_up(worker)
                continue
            batch, self._given[worker] = self._given[worker], []
            for path, listing in zip(batch, listings):
                self._keep(path, listing)

    def _keep(self, path: bytes, listing: Any) -> None:
        self._done[path] = listing
        self._waiting.extend(reversed(self._following(listing)))

    def _give_up(self, worker: Worker) -> None:
        self._waiting.extend(reversed(self._given.pop(worker)))
        worker.end()


class _Walker:
    def __init__(self, prefix: bytes, excluded: Optional[Any], head_size: int, block_devices: bool, counts: Counts) -> None:
        self._prefix = prefix
        self._excluded = excluded
        self._head_size = head_size
        self._block_devices = block_devices
        self.counts = counts
        self._visited: Set[Tuple[int, int]] = set()
        self._pseudo = {os.makedev(mount.major, mount.minor) for mount in linux.mounts() if mount.fstype in PSEUDO}

    def named(self, path: bytes) -> Found:
        """A file that the operator named: reported in any case."""
        self.counts.files += 1
        found = self._one(path)
        self.counts.errors += found.error is not None
        return found

    def _one(self, path: bytes) -> Found:
        try:
            fd = open_source(path, block_devices=self._block_devices)
        except QcowError as error:
            return Found(path, None, b"", error.message)
        try:
            return Found(path, os.fstat(fd), os.pread(fd, self._head_size, 0), None)
        except OSError as error:
            return _failed(path, error)
        finally:
            os.close(fd)

    @staticmethod
    def _left_out(top: bytes, *, one_filesystem: bool) -> Set[bytes]:
        """Mount points below a directory that are known not to be walked: they are not even opened, which may be forbidden or wait forever."""
        try:
            fd = open_directory(top)
            try:
                here, real = linux.mount_of(fd), real_directory(top).rstrip(b"/") + b"/"
            finally:
                os.close(fd)
        except (QcowError, OSError):
            return set()
        prefix = top if top.endswith(b"/") else top + b"/"
        return {
            prefix + mount.point[len(real) :]
            for mount in linux.mount_points().values()
            # Subvolumes and bind mounts of one filesystem have the same numbers here: their own st_dev tells.
            if mount.point.startswith(real)
            and (mount.fstype in PSEUDO or (one_filesystem and here is not None and mount[1:3] != here[1:3]))
        }

    def tree(self, top: bytes, only_device: Optional[int], recurse: bool, workers: int) -> Iterator[Found]:
        left_out = self._left_out(top, one_filesystem=only_device is not None)

        def listing(directory: bytes) -> _Listing:
            if directory in left_out:
                return _NOTHING
            return self._listing(directory, directory == top, only_device)

        def following(done: _Listing) -> List[bytes]:
            return done.directories if recurse else []

        with _Listings(listing, following, workers - 1) as listings:
            pending = [top]
            while pending:
                done = listings.listing(pending.pop())
                if done.key in self._visited:
                    continue
                if done.key is not None:
                    self._visited.add(done.key)
                    self.counts.directories += 1
                self.counts.files += done.files
                self.counts.errors += sum(1 for found in done.reported if found.error is not None)
                self.counts.links.extend(done.links)
                yield from done.reported
                pending.extend(reversed(following(done)))

    def _listing(self, directory: bytes, named: bool, only_device: Optional[int]) -> "_Listing":
        """What is to be told of one directory. Raises nothing and changes nothing here: it may run in another process."""
        try:
            fd = self._open_directory(directory)
        except (QcowError, OSError) as error:
            gone = isinstance(error, FileNotFoundError)
            return _NOTHING if gone and not named else _NOTHING._replace(reported=[_failed(directory, error)])
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if key in self._visited or status.st_dev in self._pseudo or only_device not in (None, status.st_dev):
                return _NOTHING
            prefix = directory if directory.endswith(b"/") else directory + b"/"
            files, directories, reported, links = self._list(fd, prefix)
            self._read_heads(fd, prefix, files, reported)
        except OSError as error:
            return _NOTHING._replace(reported=[_failed(directory, error)])
        finally:
            os.close(fd)
        reported.sort(key=lambda found: found.path)
        return _Listing(key, len(files), sorted(prefix + name for name in directories), reported, links)

    @staticmethod
    def _open_directory(path: bytes) -> int:
        directory = open_directory(path)
        try:
            try:
                return os.open(b".", _DIRECTORY_FLAGS | _O_NOATIME, dir_fd=directory)
            except PermissionError:
                return os.open(b".", _DIRECTORY_FLAGS, dir_fd=directory)
        finally:
            os.close(directory)

    def _list(self, fd: int, prefix: bytes) -> Tuple[List[Any], List[bytes], List[Found], List[bytes]]:
        """The directory's regular files (as entries, in inode order: so a disk reads forward), subdirectories, block devices and symbolic links."""
        # By descriptor, so that nobody can put another directory in this one's place; scandir itself takes one only since 3.7.
        with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
            listed = list(entries)
        excluded = self._excluded
        if excluded is not None:
            listed = [entry for entry in listed if not excluded(entry.name) and not excluded(prefix + entry.name)]
        files, directories, devices, links = [], [], [], []
        for entry in listed:
            if entry.is_file(follow_symlinks=False):
                files.append(entry)
            elif entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            elif entry.is_symlink():
                links.append(prefix + entry.name)
            elif self._block_devices and stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode):
                devices.append(self._one(prefix + entry.name))
        files.sort(key=os.DirEntry.inode)
        return files, directories, devices, links

    def _read_heads(self, directory: int, prefix: bytes, files: List[Any], reported: List[Found]) -> None:
        # The loop that is run a million times: no stat (the directory says what is a file, a short read what is too short),
        # no path longer than a name, no call into our own code, and no more read than decides.
        magic, size = self._prefix, self._head_size
        first = len(magic) or size
        flags = _FILE_FLAGS | _O_NOATIME
        open_, read, close = os.open, os.read, os.close
        for entry in files:
            name = entry.name
            try:
                try:
                    fd = open_(name, flags, dir_fd=directory)
                except PermissionError:
                    fd = open_(name, _FILE_FLAGS, dir_fd=directory)
                try:
                    head = read(fd, first)
                    if head == magic or not magic:
                        if first < size:
                            head += read(fd, size - first)
                        status = os.fstat(fd)
                        if len(head) >= _LEAST and stat.S_ISREG(status.st_mode):
                            reported.append(Found(prefix + name, status, head, None))
                finally:
                    close(fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ELOOP):  # gone or replaced since it was listed
                    reported.append(_failed(prefix + name, error))
