# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where names lead, looked at and never opened: for thousands of names that text files hold, each directory once."""

import os
import stat
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from .._directories import real_path, status_of
from .._errors import QcowError
from . import linux
from .procfs import foreign_network_mounts
from .tree import PSEUDO

_MOST_LINKS = 40  # as in the kernel


class Directory(NamedTuple):
    """A directory: its path without symbolic links, and what it is under whatever name or mount."""

    path: bytes
    dev: int
    ino: int


class Entry(NamedTuple):
    """A name in a directory."""

    directory: Directory
    name: bytes

    @property
    def key(self) -> Tuple[int, int, bytes]:
        """The same for every path that leads to this name."""
        return self.directory.dev, self.directory.ino, self.name

    @property
    def path(self) -> bytes:
        """Without symbolic links in its directories."""
        return os.path.join(self.directory.path, self.name)


class Places:
    """Names resolved by ``lstat`` alone, symbolic links included, whoever made them: good for comparing names and for nothing else.

    What lies on automounts, in the kernel's own trees and on network mounts (a dead server would hang every look) leads nowhere.

    :param homes: directories whose own mounts count, whatever they are.
    """

    def __init__(self, homes: Iterable[bytes]) -> None:
        keys = set()
        for home in set(homes):
            try:
                status = status_of(real_path(home))
            except (QcowError, OSError):
                continue
            keys.add((status.st_dev, status.st_ino))
        pseudo = [mount.point.rstrip(b"/") + b"/" for mount in linux.mounts() if mount.fstype in PSEUDO]
        self._closed = foreign_network_mounts(keys) + tuple(pseudo)
        self._paths: Dict[bytes, Optional[Directory]] = {}
        self._steps: Dict[Tuple[bytes, bytes], Union[Directory, bytes, None]] = {}
        self._root = Directory(b"/", os.stat("/").st_dev, os.stat("/").st_ino)

    def directory(self, path: bytes) -> Optional[Directory]:
        """The directory that an absolute path leads to; ``None`` where it leads to none."""
        if path not in self._paths:
            self._paths[path] = self._walk(path)
        return self._paths[path]

    def entries(self, path: bytes) -> List[Entry]:
        """The name that an absolute path ends with, and while that is a symbolic link, the name that it leads to."""
        found: List[Entry] = []
        while len(found) <= _MOST_LINKS:
            parent, name = os.path.split(path.rstrip(b"/"))
            directory = None if name in (b"", b".", b"..") else self.directory(parent)
            if directory is None:
                break
            found.append(Entry(directory, name))
            target = self._step(directory, name)
            if not isinstance(target, bytes):
                break
            path = os.path.join(directory.path, target)
        return found

    def _walk(self, path: bytes) -> Optional[Directory]:
        place, pending, links = self._root, _components(path), 0
        while pending:
            found = self._step(place, pending.pop())
            if found is None:
                return None
            if isinstance(found, bytes):
                links += 1
                if links > _MOST_LINKS:
                    return None
                pending.extend(_components(found))
                place = self._root if found.startswith(b"/") else place
            else:
                place = found
        return place

    def _step(self, directory: Directory, name: bytes) -> Union[Directory, bytes, None]:
        """The directory of that name, the target of a symbolic link, or ``None`` for anything else."""
        key = (directory.path, name)
        if key not in self._steps:
            self._steps[key] = self._look(directory, name)
        return self._steps[key]

    def _look(self, directory: Directory, name: bytes) -> Union[Directory, bytes, None]:
        path = os.path.join(directory.path, name) if name != b".." else os.path.dirname(directory.path)
        if self._closed and (path + b"/").startswith(self._closed):
            return None
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(path)
        except (OSError, ValueError):
            return None
        return Directory(path, status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _components(path: bytes) -> List[bytes]:
    """The names of a path, the last one first."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]
