# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running domains that are kept off their images: shut down and started again, or on an external snapshot until they pivot to the results.

What is done to a domain is in the journal before it is done, so that a run which dies leaves no domain behind: the next one starts what was shut
down, and puts back on its image what was left on a snapshot's overlay.
"""

import os
import time
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from .._errors import QcowError
from .._libvirt import api, control, domain_xml, redefine
from .commit import in_place, withdraw
from .domain_definitions import PendingPivot
from .domain_references import overlay_path
from .record import State, named
from .request import Request
from .rollback import plan_rollback, roll_back
from .session import Session

STOPPED = "stopped"
SNAPSHOT = "snapshot"
REDEFINED = "redefined"


def add_leftovers(error: Any, problems: List[str]) -> None:
    """Have an error tell what could not be undone after it; its details then have ``left``, a list of sentences."""
    if problems and isinstance(error, QcowError):
        error.hint = " ".join(filter(None, [error.hint, *problems]))
        error.details["left"] = [*error.details.get("left", []), *problems]


class _RunningDomains:
    """Domains that are kept off their images (context manager): whatever happens inside, they run again afterwards as they ran before."""

    def __init__(self, session: Session, connection: api.Connection, paths: Sequence[bytes]) -> None:
        self._session = session
        self._connection = connection
        self._paths = [named(path) for path in paths]

    def release(self) -> List[str]:
        """Let the domains run as they should.

        :return: what could not be done, in sentences; the journal has it, and the next run tries again.
        """
        raise NotImplementedError

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        add_leftovers(error, self.release())
        self._session.domains.forget()


class ShutDown(_RunningDomains):
    """Domains that are shut down, and started again.

    :param domains: their names by their UUIDs.
    :param timeout: seconds that each guest has to shut down.
    :param paths: of the images this is done for.
    """

    def __init__(
        self, session: Session, connection: api.Connection, domains: Dict[str, str], timeout: float, paths: Sequence[bytes]
    ) -> None:
        super().__init__(session, connection, paths)
        self._wanted, self._timeout = domains, timeout
        self.stopped: Dict[str, str] = {}

    def __enter__(self) -> "ShutDown":
        """:raises QcowError: a guest does not listen; those that have shut down were started again."""
        try:
            for uuid, name in self._wanted.items():
                self._shut_down(uuid, name)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self._session.domains.forget()
        return self

    def _shut_down(self, uuid: str, name: str) -> None:
        key = _key(STOPPED, uuid)
        self._session.journal.note(key, kind=STOPPED, uuid=uuid, domain=name, src=self._paths)
        try:
            was_running = control.shutdown(self._connection, uuid, self._timeout)
        except BaseException:
            self._session.journal.clear(key)
            raise
        if was_running:
            self.stopped[uuid] = name
        else:
            self._session.journal.clear(key)

    def stop_again(self) -> List[str]:
        """Shut down what :meth:`release` has started; what cannot be is said."""
        problems = []
        for uuid in self._wanted:
            try:
                control.shutdown(self._connection, uuid, self._timeout)
            except QcowError as error:
                problems.append(str(error))
        self._session.domains.forget()
        return problems

    def leave_off(self) -> None:
        """The domains are not to be started again."""
        for uuid in self.stopped:
            self._session.journal.clear(_key(STOPPED, uuid))
        self.stopped = {}

    def release(self) -> List[str]:
        """See :meth:`_RunningDomains.release`. May be called again for what did not start."""
        problems = []
        for uuid, name in list(self.stopped.items()):
            try:
                control.start(self._connection, uuid)
            except QcowError as error:
                problems.append("Domain {0} could not be started again: {1}".format(name, error))
                continue
            self._session.journal.clear(_key(STOPPED, uuid))
            del self.stopped[uuid]
        self._session.domains.forget()
        return problems


class HeldDisk(NamedTuple):
    """A disk to move while its domain runs: the request for its image, and where the result will be."""

    request: Request
    dest: bytes


class DomainsOnOverlays(_RunningDomains):
    """Domains that write to overlays while the images below are converted; each disk pivots when its result is published.

    :param domains: their names by their UUIDs.
    """

    def __init__(self, session: Session, connection: api.Connection, domains: Dict[str, str], disks: List[HeldDisk]) -> None:
        super().__init__(session, connection, [disk.request.src for disk in disks])
        self._wanted, self._disks = domains, disks
        self._taken: List[control.Snapshot] = []

    def __enter__(self) -> "DomainsOnOverlays":
        """:raises QcowError: a domain cannot be put on an overlay; all of them run as before."""
        try:
            for uuid, name in self._wanted.items():
                self._take(uuid, name)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self._session.domains.forget()
        return self

    def _take(self, uuid: str, name: str) -> None:
        domains = self._session.domains
        answer, identifier = domains.survey(), "{0:x}-{1}".format(int(time.time()), os.urandom(3).hex())
        moves: List[Tuple[HeldDisk, redefine.Repoint]] = []
        for disk in self._disks:
            move = redefine.Move(disk.request.src, disk.dest, disk.request.format)
            moves += [(disk, planned) for planned in redefine.plan(self._connection, answer, [move], [uuid])]
        overlays = {
            target: overlay_path(disk.request.src, "{0}-{1}".format(identifier, target))
            for disk, planned in moves
            for target in planned.targets
        }
        key = _key(SNAPSHOT, uuid)
        self._session.journal.note(
            key,
            kind=SNAPSHOT,
            uuid=uuid,
            domain=name,
            overlays=[named(path, target=target) for target, path in overlays.items()],
            before=domain_xml.disk_elements(moves[0][1].before, overlays),
            src=[named(disk.request.src) for disk, _planned in moves],
        )
        try:
            taken = control.take_snapshot(self._connection, uuid, overlays)
        except BaseException:
            self._session.journal.clear(key)
            raise
        self._taken.append(taken)
        domains.pending += [PendingPivot(self._connection, taken, planned, disk.request) for disk, planned in moves]

    def release(self) -> List[str]:
        """See :meth:`_RunningDomains.release`. Every disk that has not pivoted is put back on its image."""
        problems = [problem for taken in self._taken for problem in self._put_back(taken)]
        self._taken = []
        self._session.domains.pending = []
        return problems

    def _put_back(self, taken: control.Snapshot) -> List[str]:
        own = [pending for pending in self._session.domains.pending if pending.snapshot.uuid == taken.uuid]
        try:
            if control.on_overlay(self._connection, taken):
                control.commit_back(self._connection, taken)
                if taken.before is not None:
                    changes = [change for pending in own if pending.done for change in pending.planned.changes]
                    redefine.restore(self._connection, domain_xml.repoint(taken.before, changes), running=True)
            self._session.journal.clear(_key(SNAPSHOT, taken.uuid))
            for pending in own:
                if not pending.done:
                    self._withdraw(pending.src)
        except QcowError as error:
            return ["Domain {0} is still on its overlay: {1} The next run tries again.".format(taken.domain, error)]
        return []

    def _withdraw(self, src: bytes) -> None:
        """A result that was not pivoted to is out of date: the guest has written to the original again."""
        for record in self._session.records.of_source(src):
            if record.state in (State.PUBLISHED, State.REPOINTED) and not in_place(record):
                withdraw(record, self._session.references, "the running domain could not be moved to it")


def start_or_roll_back(held: ShutDown, session: Session, results: List[Dict[str, Any]]) -> None:
    """Start the domains whose images have been migrated. Where one does not start, files and definitions go back together, and then it starts.

    :param results: of the images; changed where that happens.
    """
    problems = held.release()
    changed = [result for result in results if result["changed"] and result["record"] is not None]
    if not problems:
        return
    if not any(result["changed"] for result in results):
        results[0]["warnings"].extend(problems)
        return
    why = " ".join(problems)
    left = held.stop_again()
    by_name = {record.id: record for record in session.records.all()}
    for result in sorted(changed, key=lambda item: -len(item["chain"])):  # a base goes back after what rests on it
        try:
            roll_back(plan_rollback(by_name[result["record"]], session.references, discard_changes=True), session.references)
            result.update(changed=False, failed=True, reason="start-failed", retired=None, retired_base64=None)
            result["msg"] = "{0}: {1} The migration was rolled back.".format(result["src"], why)
        except QcowError as error:
            left.append("{0} could not be rolled back: {1}".format(result["src"], error))
            result.update(failed=True, reason="start-failed", msg="{0}: {1} {2}".format(result["src"], why, left[-1]))
    session.domains.forget()
    left += held.release()
    results[0]["msg"] += " {0}".format(" ".join(left) if left else "Every domain runs as before.")


class Redefinition:
    """Definitions that change together: all of them, or none. The journal says so until all have changed.

    :param planned: the changes.
    """

    def __init__(self, session: Session, connection: api.Connection, planned: List[redefine.Repoint], src: bytes, dest: bytes) -> None:
        self._session, self._connection, self._planned = session, connection, planned
        self._facts = {"src": [named(src)], "dest": named(dest), "domain": ", ".join(item.domain for item in planned)}
        self._key = _key(REDEFINED, os.urandom(6).hex())

    def apply(self) -> None:
        """Change all of them.

        :raises QcowError: all of them are as they were (the hint says which are not).
        """
        self._note()
        try:
            for item in self._planned:
                redefine.apply(self._connection, item)
        except BaseException as error:
            add_leftovers(error, self.restore())
            raise
        self._session.journal.clear(self._key)

    def restore(self) -> List[str]:
        """Change all of them back; what could not be is said, and the next run tries again."""
        self._note()
        left = []
        for item in reversed(self._planned):
            try:
                redefine.restore(self._connection, item.before)
            except QcowError as error:
                left.append("The definition of domain {0} could not be put back: {1}".format(item.domain, error))
        if not left:
            self._session.journal.clear(self._key)
        return left

    def _note(self) -> None:
        definitions = [
            {
                "uuid": item.uuid,
                "domain": item.domain,
                "before": domain_xml.disk_elements(item.before, item.targets),
                "after": domain_xml.disk_elements(item.after, item.targets),
            }
            for item in self._planned
        ]
        self._session.journal.note(self._key, kind=REDEFINED, definitions=definitions, **self._facts)


def _key(kind: str, identifier: str) -> str:
    return "{0}-{1}".format(kind, identifier)
