# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time on a host, and who that is."""

import fcntl
import json
import os
import time
from typing import Any, Callable, NamedTuple, Optional

from .._directories import make_directory, require_ours
from .._errors import StateError
from .calls import Call, call_of

_LOCK = b"lock"
_LOOKED_AT = 0.5  # seconds; a lock may be held for a moment by somebody who only looks


class Exclusive:
    """Keeps two runs on one host from changing things at the same time (context manager).

    :param wait: seconds to wait for the other run to end.
    :param call: written into the lock's file, for :func:`holder`.
    :param waiting: called from time to time while it waits; what it raises ends the wait.
    """

    def __init__(self, state_dir: bytes, wait: float = 0, call: Optional[Call] = None, waiting: Callable[[], None] = lambda: None) -> None:
        self._path = os.path.join(state_dir, _LOCK)
        self._wait = wait
        self._call = call
        self._waiting = waiting
        self._fd = -1

    def __enter__(self) -> "Exclusive":
        """:raises StateError: with reason ``locked`` where another run holds the lock; the directory is not ours."""
        require_ours(os.path.dirname(self._path))
        try:
            make_directory(os.path.dirname(self._path))
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(
                "the state directory cannot be used: {0}".format(error.strerror),
                self._path,
                hint="Nothing was changed. Run with the rights to write there, or choose another state_dir.",
            ) from error
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise
        self._sign("" if self._call is None else json.dumps(self._call.facts(), sort_keys=True) + "\n")
        return self

    def _take(self) -> None:
        deadline = time.monotonic() + max(self._wait, _LOOKED_AT)
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() >= deadline:
                    raise StateError(
                        "another migration is running on this host",
                        self._path,
                        reason="locked",
                        hint="Nothing was changed. Wait until it ends and run again; vmimage.qcow.status shows how far it is.",
                    ) from None
                self._waiting()
                time.sleep(0.2)

    def _sign(self, text: str) -> None:
        try:
            os.pwrite(self._fd, text.encode("ascii"), 0)
            os.ftruncate(self._fd, len(text))
        except OSError:
            pass  # on a full disk the lock holds as well; only nobody can tell who has it

    def __exit__(self, *dummy: Any) -> None:
        self._sign("")
        os.close(self._fd)


class Holder(NamedTuple):
    """Who has the lock."""

    held: bool
    call: Optional[Call] = None  # None: nobody, or it is not known who


def holder(state_dir: bytes) -> Holder:
    """Who is at work on this host. Does not wait, and keeps nobody from taking the lock.

    :raises StateError: the directory is not ours, or the lock cannot be read.
    """
    require_ours(state_dir)
    path = os.path.join(state_dir, _LOCK)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return Holder(False)
    except OSError as error:
        raise StateError(
            "cannot be read: {0}".format(error.strerror), path, reason="unreadable", hint="Run with the rights to read it (become)."
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Holder(False)
        except OSError:
            return Holder(True, _read(fd))
    finally:
        os.close(fd)


def _read(fd: int) -> Optional[Call]:
    try:
        facts = json.loads(os.pread(fd, 4096, 0).split(b"\n")[0].decode("ascii"))
    except (OSError, ValueError):
        return None
    return call_of(facts) if isinstance(facts, dict) else None
