# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stopping a run: a request in a file, which calls ask for before they begin something.

It concerns the calls whose run of ``ansible-playbook`` began before it was made, and no others. So it is never removed: a host whose turn comes later
in such a run begins nothing, and a run that is started later does not heed it.
"""

import json
import os
import time
from typing import List, NamedTuple, Optional

from .._access import access_of
from .._directories import make_directory, require_ours
from .._errors import QcowError, StateError
from .._host.files import sync_directory
from .calls import Call, boot_id, boot_seconds, started

AFTER_IMAGE = "after_image"
NOW = "now"

REASON = "stopped"
"""Why an image, or a record, was left to another run."""

_FILE = b"stop.json"


class StopRequest(NamedTuple):
    """That runs are to end, and how."""

    when: str  # AFTER_IMAGE or NOW
    boot: str  # of the host when it was made
    at: float  # seconds since that boot
    time: float  # seconds since 1970
    problem: str = ""  # why it is not known whether there is a request

    def covers(self, call: Call) -> bool:
        """Whether the call's run began before it was made. Clocks only count where the host was restarted in between."""
        if self.boot and self.boot == call.boot:
            return call.began <= self.at
        return (call.began < 0 or not self.boot) and time.time() - (boot_seconds() - call.began) <= self.time

    @property
    def words(self) -> str:
        """What has happened."""
        if self.problem:
            return "it cannot be seen whether the run was stopped: {0}".format(self.problem)
        return "stopped by vmimage.qcow.stop at {0}".format(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time)))

    @property
    def reasons(self) -> List[str]:
        """Why something was left to another run."""
        return ["deferred: {0}; run again to go on".format(self.words)]


class Stopped(QcowError):
    """A run was asked to end before it had begun with anything."""

    default_reason = REASON
    request: Optional[StopRequest] = None


class Stop:
    """What one call knows of being stopped."""

    def __init__(self, state_dir: bytes, call: Call) -> None:
        self._state_dir = state_dir
        self._call = call

    def request(self) -> Optional[StopRequest]:
        """The request that concerns this call, if there is one. Where that cannot be seen, nothing more is begun either. Raises nothing."""
        try:
            return self._request()
        except QcowError as error:
            return StopRequest(AFTER_IMAGE, self._call.boot, boot_seconds(), time.time(), str(error))

    def _request(self) -> Optional[StopRequest]:
        found = read(self._state_dir)
        return found if found is not None and found.covers(self._call) else None

    @property
    def heeded(self) -> bool:
        """Whether the run ends because of a request. Raises nothing."""
        found = self.request()
        return found is not None and not found.problem

    def check(self) -> None:
        """:raises Stopped: there is a request that concerns this call. :raises StateError: that cannot be seen."""
        found = self._request()
        if found is not None:
            error = Stopped(found.words, hint="Nothing was begun. Run again to go on.")
            error.request = found
            raise error


def read(state_dir: bytes) -> Optional[StopRequest]:
    """The last request on this host. One that others could have written is none.

    :raises StateError: the directory is not ours, or the request cannot be read.
    """
    path = os.path.join(state_dir, _FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateError("cannot be read: {0}".format(error.strerror), path, hint="Run with the rights to read it (become).") from error
    try:
        require_ours(state_dir)
        text = b"" if access_of(fd).writers() else os.read(fd, 4096)
    finally:
        os.close(fd)
    try:
        facts = json.loads(text.decode("ascii"))
        return StopRequest(str(facts["when"]), str(facts["boot"]), float(facts["at"]), float(facts["time"]))
    except (ValueError, KeyError, TypeError):
        return None


def write(state_dir: bytes, when: str) -> StopRequest:
    """Ask all runs that have begun by now to end; takes the place of an earlier request, as a whole.

    :raises StateError: where that cannot be written; the earlier request holds then.
    """
    request = StopRequest(when, boot_id(), boot_seconds(), time.time())
    path = os.path.join(state_dir, _FILE)
    fresh = path + b"." + str(os.getpid()).encode("ascii")
    require_ours(state_dir)
    try:
        make_directory(state_dir)
        require_ours(state_dir)  # what was not there before is looked at now
        _sweep(state_dir)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(request._asdict(), file, sort_keys=True)
            file.flush()
            os.fsync(fd)
        os.rename(fresh, path)
        sync_directory(state_dir)
    except OSError as error:
        _remove(fresh)
        raise StateError(
            "no run can be stopped: {0}".format(error.strerror),
            path,
            hint="Nothing was changed. Run with the rights to write there (become), or give the state_dir of the run.",
        ) from error
    return request


def _sweep(state_dir: bytes) -> None:
    """Remove what others have left that were killed while they wrote a request."""
    for name in os.listdir(state_dir):
        base, _dot, pid = name.rpartition(b".")
        if base == _FILE and pid.isdigit() and (int(pid) == os.getpid() or started(int(pid)) is None):
            _remove(os.path.join(state_dir, name))


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
