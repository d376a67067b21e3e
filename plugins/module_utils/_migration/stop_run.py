# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stops the run at work on this host, in good order, and waits for its end."""

import os
import signal
import time
from typing import Any, Dict, NamedTuple, Optional, Tuple

from .._errors import StateError
from .._paths import show
from .calls import Call
from .status import Status, look
from .stop import AFTER_IMAGE, NOW, StopRequest, read, write

_TICK = 0.2  # seconds between two looks


class StoppedRun(NamedTuple):
    """What has become of the run."""

    changed: bool  # it was told to stop, and had not been before
    msg: str
    running: Optional[Dict[str, Any]]  # what was at work, see results.Running
    waiting: int  # calls that waited for it to end
    ended: bool
    left: Optional[int]  # images that the run which was stopped last has not dealt with; None: that is not known


def stop_run(state_dir: bytes, when: str, *, wait: float, check_mode: bool) -> StoppedRun:
    """Ask every run that has begun by now to end.

    :param when: ``after_image`` or ``now``. :param wait: seconds to wait for the end; 0 does not wait.
    :raises StateError: the state directory cannot be used, or a process may not be ended; with reason ``running`` where the run has not ended in time.
    """
    before, earlier = look(state_dir), read(state_dir)
    fresh = [call for call in before.calls if earlier is None or not earlier.covers(call) or (when == NOW and earlier.when == AFTER_IMAGE)]
    changed = bool(fresh) or (before.running is not None and before.call is None)
    if check_mode:
        return _answer(before, changed, _would(before, when), ended=before.running is None and not before.waiting)
    used = os.path.exists(os.path.join(state_dir, b"lock"))
    request = write(state_dir, when)
    if when == NOW:
        _terminate(look(state_dir).call, request)
    ended, last = _until_ended(state_dir, request, time.monotonic() + wait)
    before = before if last is None else before._replace(running=last)
    if ended:
        after = look(state_dir).last or {}
        left = after.get("left") if after.get("stopped") else None
        return _answer(before, changed, _ended(before, after, state_dir, used), ended=True, left=left)
    at = _at(before.running)
    if wait > 0:
        raise StateError(
            "the run has not ended within {0:g} s; it is at {1}".format(wait, at),
            reason="running",
            hint="It ends when that is done; look with vmimage.qcow.status. To have it undone instead, stop with when=now.",
        )
    return _answer(before, changed, "The run ends when this is done: {0}. Look with vmimage.qcow.status.".format(at), ended=False)


def _answer(before: Status, changed: bool, msg: str, *, ended: bool, left: Optional[int] = None) -> StoppedRun:
    return StoppedRun(changed, msg, before.running, len(before.waiting), ended, left)


def _at(running: Optional[Dict[str, Any]]) -> str:
    """What a run is at, in words."""
    facts = running or {}
    return ", ".join(image["path"] for image in facts.get("current") or []) or str(facts.get("stage", "its beginning"))


def _would(before: Status, when: str) -> str:
    if before.running is None:
        return "No run is at work on this host."
    words = "The work in progress would be undone: {0}." if when == NOW else "The run would end when this is done: {0}."
    return words.format(_at(before.running))


def _ended(before: Status, after: Dict[str, Any], state_dir: bytes, used: bool) -> str:
    stopped = bool(after.get("stopped"))
    if before.running is not None or before.waiting:
        words = "The run has ended"
    else:
        words = "No run is at work on this host ({0}state_dir {1}); runs that were started before now begin nothing here any more".format(
            "" if used else "and none has ever used the ", show(state_dir)
        )
        if stopped and after.get("time"):
            words += "; the last one was stopped and ended at {0}".format(after["time"])
    left, failed = (after.get("left"), after.get("failed")) if stopped else (None, None)
    if left == 0 and not failed:
        return words + ". Nothing is left to do."
    if left:
        words += "; {0} {1} left".format(left, "image is" if left == 1 else "images are")
    if failed:
        words += "; {0} failed".format(failed)
    return words + ". Run again to continue."


def _terminate(call: Optional[Call], request: StopRequest) -> None:
    """:raises StateError: we may not."""
    if call is None or not call.alive or not request.covers(call):
        return
    try:
        os.kill(call.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise StateError(
            "process {0} cannot be ended: {1}".format(call.pid, error.strerror),
            reason="unreadable",
            hint="The run ends after the image in progress. Run as the user of that run (become) to end it now.",
        ) from error


def _until_ended(state_dir: bytes, request: StopRequest, deadline: float) -> Tuple[bool, Optional[Dict[str, Any]]]:
    """Whether the runs that the request concerns have ended in time; and how far the one at work was when it was last seen."""
    last = None
    while True:
        now = look(state_dir)
        concerned = now.running is not None and (now.call is None or request.covers(now.call))
        if concerned:
            last = now.running
        elif not any(map(request.covers, now.waiting)):
            return True, last
        if time.monotonic() >= deadline:
            return False, last
        time.sleep(_TICK)
