# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far the work on this host is, seen from outside: nothing is changed, nobody waits, and who works does not notice."""

from typing import Any, Dict, List, NamedTuple, Optional

from .._paths import encode_exact, show
from .calls import Call, call_of
from .lock import holder, readable
from .progress import seen
from .record import DomainJournal, Records, State
from .record_entries import explain
from .results import LastRun, Running
from .stop import read


class Status(NamedTuple):
    """What is going on."""

    call: Optional[Call]  # that is at work, where that is known
    running: Optional[Dict[str, Any]]  # how far it is, see Running; None: nobody is at work
    waiting: List[Call]  # calls that wait for it to end
    last: Optional[Dict[str, Any]]  # how the last one has ended, see LastRun; None: that is not known, or one is at work

    @property
    def calls(self) -> List[Call]:
        """All of them."""
        return self.waiting + ([] if self.call is None else [self.call])


def look(state_dir: bytes) -> Status:
    """Look once.

    :raises StateError: the state directory cannot be read, or is not ours.
    """
    if not readable(state_dir):
        return Status(None, None, [], None)
    held, call, ended = holder(state_dir)
    calls, workers = seen(state_dir)
    alive = [(found, facts) for found, facts in ((call_of(facts), facts) for facts in calls) if found is not None and found.alive]
    waiting = [found for found, facts in alive if facts.get("stage") == "waiting" and found != call]
    if not held:
        last = LastRun(**{key: value for key, value in (ended or {}).items() if key in LastRun._fields})
        return Status(None, None, waiting, None if ended is None else dict(last._asdict()))
    own = next((facts for found, facts in alive if found == call), {})
    theirs = [facts for facts in workers if call is not None and facts.get("token") == call.token]
    return Status(call, _running(call, own, theirs), waiting, None)


def _running(call: Optional[Call], own: Dict[str, Any], workers: List[Dict[str, Any]]) -> Dict[str, Any]:
    """:param own: what the call's file says; empty where it has none: it has only begun, or its workers are clearing up after it."""
    done, total = own.get("bytes", 0) + sum(facts["done"] for facts in workers), own.get("total", 0)
    speed = sum(facts["speed"] or 0 for facts in workers)
    return dict(
        Running(
            pid=None if call is None else call.pid,
            since=own.get("since"),
            stage=own.get("stage", "ending"),
            images=own.get("images", 0),
            done=own.get("done", 0),
            failed=own.get("failed", 0),
            percent=min(100, done * 100 // total) if total else None,
            seconds_left=max(total - done, 0) // speed if speed else None,
            current=[
                {
                    "path": facts["path"],
                    "path_base64": facts["path_base64"],
                    "stage": facts["stage"],
                    "percent": facts["percent"],
                    "bytes": facts["bytes"],
                    "size": facts["size"],
                    "speed": facts["speed"],
                    "seconds_left": facts["left"],
                }
                for facts in sorted(workers, key=lambda facts: str(facts["path"]))
            ],
        )._asdict()
    )


def status_of(state_dir: bytes, listed: str) -> Dict[str, Any]:
    """The result of the module.

    :param listed: which records to list: ``none``, ``unfinished`` or ``all``.
    :raises StateError: see :func:`look`; a record cannot be read.
    """
    now = look(state_dir)
    request = read(state_dir)
    journals, records = Records(state_dir), []
    last: Dict[str, str] = {}  # state of the last migration of each image that has not failed
    for record in journals.all():
        entry = explain(record)
        entry["in_progress"] = record.unfinished and _written_by(now.running, entry["time"])
        if entry["in_progress"]:
            entry["unfinished"] = None
        records.append(entry)
        if record.state != State.FAILED:
            last[entry["src_base64"] or entry["src"]] = record.state
    return {
        "running": now.running,
        "waiting": len(now.waiting),
        "last_run": now.last,
        "stopping": request.when if request is not None and any(map(request.covers, now.calls)) else None,
        "domains": _left_domains(state_dir) if now.running is None else [],
        "errors": [
            {
                "path": show(path),
                "path_base64": encode_exact(path),
                "msg": "{0}: this record cannot be read; its storage has failed.".format(show(path)),
            }
            for path in journals.unreadable()
        ],
        "summary": {
            "records": len(records),
            "interrupted": sum(entry["unfinished"] is not None for entry in records),
            "in_progress": sum(entry["in_progress"] for entry in records),
            "migrated": sum(state in (State.DONE, State.CLEANING, State.CLEANED) for state in last.values()),
        },
        "records": [
            entry for entry in records if listed == "all" or (listed == "unfinished" and (entry["unfinished"] or entry["in_progress"]))
        ],
    }


def _left_domains(state_dir: bytes) -> List[str]:
    """What the next run will do about domains that an interrupted one has left. Hardly ever anything, so only then what does it is imported."""
    if not DomainJournal(state_dir).entries():
        return []
    from .recover import explain_domains
    from .session import Session

    return [entry["msg"] for entry in explain_domains(Session(state_dir))]


def _written_by(running: Optional[Dict[str, Any]], moment: Optional[str]) -> bool:
    """Whether the call at work has written the last line of a record; it alone can have since it began."""
    return running is not None and running["since"] is not None and (moment or "") >= running["since"]
