# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run at a time on a host; who that is, and how the last one has ended."""

import fcntl
import json
import os
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

from .._directories import make_directory, require_ours
from .._errors import StateError
from .calls import Call, call_of

_LOCK = b"lock"
_LOOKED_AT = 0.5  # seconds; for a moment the lock may be held by somebody who only looks


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
        self.ended: Dict[str, Any] = {}
        """How the run has ended, for :func:`holder`; what is here when it leaves."""

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
        self._sign({} if self._call is None else self._call.facts())
        return self

    def _take(self) -> None:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                passed = time.monotonic() - began
                if passed >= self._wait and (passed >= _LOOKED_AT or _at_work(self._fd)):
                    raise StateError(
                        "another migration is running on this host",
                        self._path,
                        reason="locked",
                        hint="Nothing was changed. Wait until it ends and run again; vmimage.qcow.status shows how far it is.",
                    ) from None
                self._waiting()
                time.sleep(0.2)

    def _sign(self, facts: Dict[str, Any]) -> None:
        data = json.dumps(facts, sort_keys=True).encode("ascii") + b"\n"
        try:
            os.pwrite(self._fd, data, 0)  # readers take the first line
            os.ftruncate(self._fd, len(data))
        except OSError:
            pass  # on a full disk the lock holds as well; only nobody can tell who has it

    def __exit__(self, *dummy: Any) -> None:
        self._sign({"ended": self.ended})
        os.close(self._fd)


class Holder(NamedTuple):
    """Who has the lock."""

    held: bool
    call: Optional[Call] = None  # None: nobody, or it is not known who
    ended: Optional[Dict[str, Any]] = None  # how the last one has ended, where nobody has it


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
            return Holder(False, None, _read(fd).get("ended") or None)
        except OSError:
            return Holder(True, call_of(_read(fd)))
    finally:
        os.close(fd)


def at_work(state_dir: bytes) -> Optional[bool]:
    """Whether a run is at work on this host; ``None``: whoever asks may not know."""
    try:
        return readable(state_dir) and holder(state_dir).held
    except StateError:
        return None


def readable(state_dir: bytes) -> bool:
    """Whether there is a state directory.

    :raises StateError: there is one, but it cannot be read.
    """
    try:
        require_ours(state_dir)
        os.listdir(state_dir)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(
            "the state directory cannot be read: {0}".format(error.strerror),
            state_dir,
            reason="unreadable",
            hint="Only its owner can. Run as that user (become).",
        ) from error


def _at_work(fd: int) -> bool:
    """Whether it is a run that has the lock."""
    call = call_of(_read(fd))
    return call is not None and call.alive


def _read(fd: int) -> Dict[str, Any]:
    try:
        facts = json.loads(os.pread(fd, 4096, 0).split(b"\n")[0].decode("ascii"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
