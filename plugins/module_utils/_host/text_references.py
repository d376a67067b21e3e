# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text files that name an image: configuration of Xen and Proxmox guests, units, scripts. They are read, never written."""

import os
import re
import stat
from typing import Dict, Iterable, Iterator, List, NamedTuple, Pattern

MAX_BYTES = 1 << 20
"""Files that people and tools write by hand are smaller; what is larger is data."""

_WORD = rb"[A-Za-z0-9_./\x80-\xff-]"


class Mention(NamedTuple):
    """A line (counted from 1) of a file that names an image."""

    file: bytes
    line: int


def search(directories: Iterable[bytes], paths: Iterable[bytes]) -> Dict[bytes, List[Mention]]:
    """Which lines below the directories name which of these images.

    A name counts in full (with a prefix as Xen writes it too, ``tap:qcow:/srv/a.qcow``), without its symbolic links, and as Proxmox writes
    volumes (``storage:100/a.qcow``). Files that cannot be read, or hold no text, name nothing.
    """
    patterns = {path: _pattern(path) for path in paths}
    found: Dict[bytes, List[Mention]] = {}
    for file in _files(directories):
        data = _text(file)
        for path, pattern in patterns.items():
            if os.path.basename(path) not in data:
                continue
            lines = sorted({data.count(b"\n", 0, match.start()) + 1 for match in pattern.finditer(data)})
            found.setdefault(path, []).extend(Mention(file, line) for line in lines)
    return {path: hits for path, hits in found.items() if hits}


def _pattern(path: bytes) -> Pattern[bytes]:
    names = {path, os.path.realpath(path)}
    volume = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
    full = b"|".join(re.escape(name) for name in sorted(names))
    return re.compile(rb"(?:(?<!" + _WORD + rb")(?:" + full + rb")|(?<=:)" + re.escape(volume) + rb")(?!" + _WORD + rb")")


def _files(directories: Iterable[bytes]) -> Iterator[bytes]:
    for directory in directories:
        if os.path.isfile(directory):
            yield directory
        for parent, subdirectories, names in os.walk(directory):
            subdirectories.sort()
            for name in sorted(names):
                yield os.path.join(parent, name)


def _text(path: bytes) -> bytes:
    """The content of a text file, else nothing. Links are followed: units are often links."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return b""
        data = os.read(fd, MAX_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"" if b"\0" in data else data
