# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Files of a report directory, which several processes and several controllers may write: each appears whole or not at all, and no update is lost."""

from __future__ import annotations

import fcntl
import os
import tempfile
import typing as t
import zlib
from contextlib import contextmanager

_LOCK = ".lock"


class Replacing:
    """A text file that appears whole or not at all, and stays as it is where its content would (context manager).

    :param write: whether to replace it; otherwise :attr:`changed` tells whether it would be.
    """

    def __init__(self, directory: str, name: str, write: bool = True) -> None:
        self._target = os.path.join(directory, name)
        self._write = write
        self.changed = False
        fd, self._temporary = tempfile.mkstemp(dir=directory if write else None, prefix=f".{name[:100]}.")
        self.stream = os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="")

    def __enter__(self) -> Replacing:
        return self

    def __exit__(self, kind: t.Any, *rest: t.Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.stream.close()
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)

    def compare(self) -> bool:
        """Nothing more is written; :attr:`changed` is returned, and tells whether it is another than the old one.

        :raises OSError: it cannot be written.
        """
        if not self.stream.closed:
            self.stream.close()
            self.changed = not _same(self._temporary, self._target)
        return self.changed

    def finish(self) -> None:
        """Have it appear now.

        :raises OSError: it is the old one.
        """
        if self.compare() and self._write and os.path.exists(self._temporary):
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self._target)


def _same(one: str, other: str) -> bool:
    try:
        with open(one, "rb") as left, open(other, "rb") as right:
            while True:
                pieces = left.read(1 << 20), right.read(1 << 20)
                if pieces[0] != pieces[1]:
                    return False
                if not pieces[0]:
                    return True
    except OSError:
        return False


@contextmanager
def locked(directory: str, what: str) -> t.Iterator[None]:
    """Keep other processes and controllers from changing the same thing; waits for them. Not to be nested.

    One file serves all: what is locked is a byte of it (also on NFS). Whoever may write in the directory may lock.

    :raises OSError: the lock file cannot be made.
    """
    path = os.path.join(directory, _LOCK)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, os.stat(directory).st_mode & 0o666 | 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, zlib.crc32(what.encode("utf-8", "surrogateescape")))
        yield
    finally:
        os.close(fd)
