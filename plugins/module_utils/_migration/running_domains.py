# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Migrates images whose domains run: these are shut down meanwhile and started again, or write to an overlay and are switched over.

What was done to a domain is written down before it is done, so that a run which dies leaves no domain behind: the next one starts what was
shut down, and puts back on its image what was left on an overlay.
"""

import json
import os
import time
from typing import Any, Callable, Dict, List, Tuple

from .._errors import QcowError, StateError
from .._host.files import open_source, remove_durably, sync_directory
from .._host.in_use import find_users
from .._libvirt import api, control, domain_xml, redefine
from .._paths import decode_exact, encode_exact, show
from . import record as states
from .commit import in_place, withdraw
from .domain_references import Domains, overlay_path
from .guests import SHUTDOWN, Policy
from .plan import Plan
from .record import Record, Records, make_directory
from .request import READ, Request
from .rollback import plan_rollback, roll_back

_CLOSING_SECONDS = 30.0
_LOOK_SECONDS = 0.1

CarryOut = Callable[[List[Request]], List[Dict[str, Any]]]
"""Plans the requests anew and carries them out; one result for each."""


class Journal:
    """What was done to domains and is still to be undone: one file for each domain in the state directory."""

    def __init__(self, state_dir: bytes) -> None:
        self._directory = os.path.join(state_dir, b"held")

    def _path(self, uuid: str) -> bytes:
        return os.path.join(self._directory, uuid.encode("ascii") + b".json")

    def note(self, uuid: str, **facts: Any) -> None:
        """Write it down, durably.

        :raises StateError: where that cannot be done; the domain must not be touched then.
        """
        path = self._path(uuid)
        try:
            make_directory(self._directory)
            fd = os.open(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(dict(facts, uuid=uuid), file)
                file.flush()
                os.fsync(fd)
            os.rename(path + b".new", path)
            sync_directory(self._directory)
        except OSError as error:
            raise StateError("cannot be written: {0}".format(error.strerror), path, hint="No domain was touched for it.") from error

    def clear(self, uuid: str) -> None:
        """The domain is as it should be."""
        try:
            os.unlink(self._path(uuid))
            sync_directory(self._directory)
        except OSError:
            pass  # the next run looks at the domain and finds nothing to do

    def entries(self) -> List[Dict[str, Any]]:
        """What is written down. An entry that was cut short was never acted on."""
        found = []
        try:
            names = sorted(os.listdir(self._directory))
        except OSError:
            return []
        for name in names:
            try:
                with open(os.path.join(self._directory, name), encoding="ascii") as file:
                    found.append(json.load(file))
            except (OSError, ValueError):
                continue
        return [entry for entry in found if isinstance(entry, dict) and "uuid" in entry]


def visit(plans: List[Plan], keeper: Domains, policy: Policy, state_dir: bytes, carry_out: CarryOut) -> List[Dict[str, Any]]:
    """Carry out plans whose images running domains hold; one result for each.

    :raises QcowError: nothing was migrated, and the domains run as before (the hint says which do not).
    """
    keeper.forget()
    domains: Dict[str, str] = {}
    for plan in plans:
        domains.update(keeper.running(plan.request.src))
    requests = [plan.request for plan in plans]
    connection = api.connect(keeper.uri, readonly=False)
    try:
        if policy.running == SHUTDOWN:
            return _Stopped(connection, keeper, Journal(state_dir), state_dir).run(domains, policy.shutdown_timeout, requests, carry_out)
        return _Live(connection, keeper, Journal(state_dir), state_dir).run(domains, plans, carry_out)
    finally:
        keeper.forget()
        api.close(connection)


class _Stopped:
    """Domains that are shut down while their images are migrated."""

    def __init__(self, connection: api.Connection, keeper: Domains, journal: Journal, state_dir: bytes) -> None:
        self._connection, self._keeper, self._journal, self._records = connection, keeper, journal, Records(state_dir)
        self._stopped: Dict[str, str] = {}

    def run(self, domains: Dict[str, str], timeout: float, requests: List[Request], carry_out: CarryOut) -> List[Dict[str, Any]]:
        try:
            for uuid, name in domains.items():
                self._journal.note(uuid, kind="stopped", domain=name, src=[_named(request.src) for request in requests])
                try:
                    if control.shutdown(self._connection, uuid, timeout):
                        self._stopped[uuid] = name
                    else:
                        self._journal.clear(uuid)
                except BaseException:
                    self._journal.clear(uuid)
                    raise
            self._keeper.forget()
            results = carry_out([request._replace(held="") for request in requests])
        except BaseException as error:
            left = self._start_all()
            if left and isinstance(error, QcowError):
                error.hint = " ".join(filter(None, [error.hint, *left]))
            raise
        self._keeper.forget()
        problems = self._start_all()
        if problems and any(result["changed"] for result in results):
            self._undo(results, problems, timeout)
        elif problems:
            results[0]["warnings"].extend(problems)
        return results

    def _start_all(self) -> List[str]:
        """Start what was shut down; what does not start is said, and stays in the journal."""
        problems = []
        for uuid, name in self._stopped.items():
            try:
                control.start(self._connection, uuid)
                self._journal.clear(uuid)
            except QcowError as error:
                problems.append("Domain {0} could not be started again: {1}".format(name, error))
        return problems

    def _undo(self, results: List[Dict[str, Any]], problems: List[str], timeout: float) -> None:
        """Files and definitions back together, then start the domains from what they ran on before."""
        why = " ".join(problems)
        left: List[str] = []
        for uuid in self._stopped:
            try:
                control.shutdown(self._connection, uuid, timeout)
            except QcowError as error:
                left.append(str(error))
        self._keeper.forget()
        changed = [result for result in results if result["changed"] and result["record"] is not None]
        for result in sorted(changed, key=lambda item: -len(item["chain"])):  # a base goes back after what rests on it
            try:
                roll_back(plan_rollback(self._record(result["record"]), discard_changes=True))
                result.update(changed=False, failed=True, reason="start-failed", retired=None)
                result["msg"] = "{0}: {1} The migration was rolled back.".format(result["src"], why)
            except QcowError as error:
                left.append("{0} could not be rolled back: {1}".format(result["src"], error))
                result.update(failed=True, reason="start-failed", msg="{0}: {1} {2}".format(result["src"], why, left[-1]))
        self._keeper.forget()
        left += self._start_all()
        results[0]["msg"] += " {0}".format(" ".join(left) if left else "Every domain runs as before.")

    def _record(self, identifier: str) -> Record:
        return next(record for record in self._records.all() if record.id == identifier)


class Moving:
    """One disk of a running domain on its way: the keeper switches it over when its result is there."""

    def __init__(self, connection: api.Connection, frozen: control.Frozen, planned: redefine.Repoint, request: Request) -> None:
        self.planned = planned
        self.src = request.src
        self.switched = False
        self._connection, self._bandwidth = connection, request.bandwidth
        self.frozen = frozen._replace(overlays=tuple(item for item in frozen.overlays if item.target in planned.targets))

    def switch(self, dest: bytes) -> None:
        """Bring the result up to date, pivot to it, and make the definition say so.

        :raises QcowError: the domain runs on, on its overlay or on the result.
        """
        moved = {layer.target: dest for layer in self.frozen.overlays}
        control.switch(self._connection, self.frozen, moved, bandwidth=self._bandwidth)
        self.switched = True
        now = api.definition(self._connection, api.domain(self._connection, self.frozen.uuid))
        redefine.agree(self._connection, self.planned, control.definition_after(self.frozen, now))
        _wait_until_closed(self.src)


def _wait_until_closed(path: bytes) -> None:
    """QEMU closes the old image a moment after the pivot has been reported. Who has it open for longer will be named by whoever needs it free."""
    fd = open_source(path)
    try:
        end = time.monotonic() + _CLOSING_SECONDS
        while find_users(fd) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
    finally:
        os.close(fd)


class _Live:
    """Domains that run on while their images are migrated."""

    def __init__(self, connection: api.Connection, keeper: Domains, journal: Journal, state_dir: bytes) -> None:
        self._connection, self._keeper, self._journal, self._records = connection, keeper, journal, Records(state_dir)
        self._frozen: List[control.Frozen] = []

    def run(self, domains: Dict[str, str], plans: List[Plan], carry_out: CarryOut) -> List[Dict[str, Any]]:
        results: List[Dict[str, Any]] = []
        try:
            for uuid, name in domains.items():
                self._freeze(uuid, name, plans)
            self._keeper.forget()
            results = carry_out([plan.request._replace(held=READ) for plan in plans])
        finally:
            problems = [problem for frozen in self._frozen for problem in self._let_go(frozen, results)]
            self._keeper.live = []
            self._keeper.forget()
        for problem in problems:
            results[0].update(failed=True, msg="{0} {1}".format(results[0]["msg"], problem))
        return results

    def _freeze(self, uuid: str, name: str, plans: List[Plan]) -> None:
        answer, identifier = self._keeper.survey(), "{0:x}-{1}".format(int(time.time()), os.urandom(3).hex())
        moves: List[Tuple[Plan, redefine.Repoint]] = []
        for plan in plans:
            move = redefine.Move(plan.request.src, plan.dest, plan.request.format)
            moves += [(plan, planned) for planned in redefine.plan(self._connection, answer, [move], [uuid])]
        overlays = {
            target: overlay_path(plan.request.src, "{0}-{1}".format(identifier, target))
            for plan, planned in moves
            for target in planned.targets
        }
        self._journal.note(
            uuid,
            kind="frozen",
            domain=name,
            overlays=[dict(_named(path), target=target) for target, path in overlays.items()],
            before=domain_xml.disk_elements(moves[0][1].before, overlays),
            src=[_named(plan.request.src) for plan, _planned in moves],
        )
        try:
            frozen = control.freeze(self._connection, uuid, overlays)
        except BaseException:
            self._journal.clear(uuid)
            raise
        self._frozen.append(frozen)
        self._keeper.live += [Moving(self._connection, frozen, planned, plan.request) for plan, planned in moves]

    def _let_go(self, frozen: control.Frozen, results: List[Dict[str, Any]]) -> List[str]:
        """Put every disk that was not switched over back on its image; what cannot be done is said, and left to the next run."""
        own = [moving for moving in self._keeper.live if moving.frozen.uuid == frozen.uuid]
        try:
            if control.on_overlay(self._connection, frozen):
                control.thaw(self._connection, frozen)
                if frozen.before is not None:
                    changes = [change for moving in own if moving.switched for change in moving.planned.changes]
                    redefine.restore(self._connection, domain_xml.repoint(frozen.before, changes), running=True)
            self._journal.clear(frozen.uuid)
            for moving in own:
                if not moving.switched:
                    self._take_back(moving.src)
        except QcowError as error:
            return ["Domain {0} is still on its overlay: {1} The next run tries again.".format(frozen.domain, error)]
        return []

    def _take_back(self, src: bytes) -> None:
        """A result that was not switched to is out of date: the guest has written to the original again."""
        for record in self._records.of_source(src):
            if record.state in (states.PUBLISHED, states.REPOINTED) and not in_place(record):
                withdraw(record, "the running domain could not be moved to it")


def recover(state_dir: bytes, uri: str) -> List[Dict[str, Any]]:
    """Put domains that a run which died has left on an overlay back on their images. To be done before its records are dealt with.

    :return: entries like those of :func:`.recover.recover`, one for each image.
    """
    journal = Journal(state_dir)
    answers: List[Dict[str, Any]] = []
    for entry in journal.entries():
        if entry["kind"] == "frozen":
            answers += _answers(entry, lambda entry=entry: _thaw(journal, entry, uri))  # type: ignore[misc]
    return answers


def restart(state_dir: bytes, uri: str) -> List[Dict[str, Any]]:
    """Start domains that a run which died had shut down. To be done when the records have been dealt with."""
    journal = Journal(state_dir)
    answers: List[Dict[str, Any]] = []
    for entry in journal.entries():
        if entry["kind"] == "stopped":
            answers += _answers(entry, lambda entry=entry: _start(journal, entry, uri))  # type: ignore[misc]
    return answers


def explain(state_dir: bytes) -> List[Dict[str, Any]]:
    """What the next run will do about domains, for check mode."""
    says = {"frozen": "will be put back on its image", "stopped": "will be started again"}
    answers: List[Dict[str, Any]] = []
    for entry in Journal(state_dir).entries():
        answers += _answers(entry, lambda entry=entry: "domain {0} {1}".format(entry["domain"], says[entry["kind"]]))  # type: ignore[misc]
    return answers


def _answers(entry: Dict[str, Any], action: Callable[[], str]) -> List[Dict[str, Any]]:
    try:
        told = {"failed": False, "msg": action()}
    except QcowError as error:
        told = {"failed": True, "msg": "Domain {0} was left by an interrupted run. {1}".format(entry["domain"], error)}
    return [
        dict(
            {"record": None, "dest": None, "dest_base64": None, "state": entry["kind"]},
            src=item["path"],
            src_base64=item["path_base64"],
            **told,
        )
        for item in entry["src"]
    ]


def _named(path: bytes) -> Dict[str, Any]:
    return {"path": show(path), "path_base64": encode_exact(path)}


def _thaw(journal: Journal, entry: Dict[str, Any], uri: str) -> str:
    overlays = {item["target"]: decode_exact(item["path"], item["path_base64"]) for item in entry["overlays"]}
    connection = api.connect(uri, readonly=False)
    try:
        frozen = control.Frozen(
            entry["domain"], entry["uuid"], tuple(control.Overlay(target, b"", path) for target, path in sorted(overlays.items())), None
        )
        if not control.on_overlay(connection, frozen):
            _tidy(connection, entry)
            for path in overlays.values():
                if os.path.lexists(path):
                    remove_durably(path)
            journal.clear(entry["uuid"])
            return "domain {0} is on no overlay any more".format(entry["domain"])
        if not api.domain(connection, entry["uuid"]).isActive():
            raise QcowError(
                "It is off now, and what it wrote lately is in {0}, on top of its image.".format(
                    ", ".join(show(path) for path in overlays.values())
                ),
                reason="frozen",
                hint="Do not remove that file. Start the domain (virsh start {0}) and run again: it is then put back on its image.".format(
                    entry["domain"]
                ),
            )
        control.thaw(connection, frozen)
        now = api.definition(connection, api.domain(connection, entry["uuid"]))
        redefine.restore(connection, domain_xml.put_back(now, entry["before"]), running=True)
        journal.clear(entry["uuid"])
        return "domain {0} had been left on an overlay; it was put back on its image".format(entry["domain"])
    finally:
        api.close(connection)


def _tidy(connection: api.Connection, entry: Dict[str, Any]) -> None:
    """It was switched over before the run died: libvirt's end-of-chain mark goes from its definition where there was none before."""
    handle = api.domain(connection, entry["uuid"])
    if handle.isPersistent():
        now = api.definition(connection, handle)
        for target, before in entry["before"].items():
            if "<backingStore" not in before:
                now = domain_xml.without_chain_end(now, target)
        redefine.restore(connection, now, running=True)


def _start(journal: Journal, entry: Dict[str, Any], uri: str) -> str:
    connection = api.connect(uri, readonly=False)
    try:
        control.start(connection, entry["uuid"])
        journal.clear(entry["uuid"])
        return "domain {0} had been shut down for the migration; it runs again".format(entry["domain"])
    finally:
        api.close(connection)
