# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run does about domains that an interrupted one has left on an overlay, shut down, or with definitions changed in part.

What is said of each is in the journal; every step may be taken again.
"""

import os
from typing import Any, Callable, Dict, List

from .._errors import QcowError
from .._host.files import remove_durably
from .._libvirt import api, control, domain_xml, redefine
from .._paths import decode_exact, show
from .running_domains import REDEFINED, SNAPSHOT, STOPPED
from .session import Session

_SAYS = {
    STOPPED: "domain {0} will be started again",
    SNAPSHOT: "domain {0} will be put back on its image",
    REDEFINED: "the definition of domain {0} will be put back",
}


def recover_definitions(session: Session) -> List[Dict[str, Any]]:
    """Put domains that a run which died has left on an overlay back on their images, and definitions that it has changed in part. To be done before
    its records are dealt with.

    :return: entries like those of :func:`.recover.recover`, one for each image.
    """
    return _recover(session, {SNAPSHOT: _off_the_snapshot, REDEFINED: _same_for_all})


def restart(session: Session) -> List[Dict[str, Any]]:
    """Start domains that a run which died had shut down. To be done when the records have been dealt with."""
    return _recover(session, {STOPPED: _start})


def explain(session: Session) -> List[Dict[str, Any]]:
    """What the next run will do about domains, for check mode."""
    return [
        answer for entry in session.journal.entries() for answer in _answers(entry, _SAYS[entry["kind"]].format(entry["domain"]), False)
    ]


Recovery = Callable[[api.Connection, Dict[str, Any]], str]
"""Does what an entry of the journal asks for; returns in words what was done. May be done again."""


def _recover(session: Session, how: Dict[str, Recovery]) -> List[Dict[str, Any]]:
    answers: List[Dict[str, Any]] = []
    for entry in session.journal.entries():
        if entry["kind"] not in how:
            continue
        try:
            connection = api.connect(session.domains.uri, readonly=False)
            try:
                words = how[entry["kind"]](connection, entry)
            finally:
                api.close(connection)
            session.journal.clear(entry["key"])
            answers += _answers(entry, words, False)
        except QcowError as error:
            answers += _answers(entry, "Domain {0} was left by an interrupted run. {1}".format(entry["domain"], error), True)
    return answers


def _answers(entry: Dict[str, Any], words: str, failed: bool) -> List[Dict[str, Any]]:
    common = {"record": None, "dest": None, "dest_base64": None, "state": entry["kind"], "failed": failed, "msg": words}
    return [dict(common, src=item["path"], src_base64=item["path_base64"]) for item in entry["src"]]


def _off_the_snapshot(connection: api.Connection, entry: Dict[str, Any]) -> str:
    overlays = {item["target"]: decode_exact(item["path"], item["path_base64"]) for item in entry["overlays"]}
    taken = control.Snapshot(
        entry["domain"], entry["uuid"], tuple(control.Overlay(target, b"", path) for target, path in sorted(overlays.items())), None
    )
    if not control.on_overlay(connection, taken):
        _remove_chain_end(connection, entry)
        for path in overlays.values():
            if os.path.lexists(path):
                remove_durably(path)
        return "domain {0} is on no overlay any more".format(entry["domain"])
    if not api.domain(connection, entry["uuid"]).isActive():
        raise QcowError(
            "It is off now, and what it wrote lately is in {0}, on top of its image.".format(
                ", ".join(show(path) for path in overlays.values())
            ),
            reason="snapshot",
            hint="Do not remove that file. Start the domain (virsh start {0}) and run again: it is then put back on its image.".format(
                entry["domain"]
            ),
        )
    control.commit_back(connection, taken)
    now = api.definition(connection, api.domain(connection, entry["uuid"]))
    redefine.restore(connection, domain_xml.put_back(now, entry["before"]), running=True)
    return "domain {0} had been left on an overlay; it was put back on its image".format(entry["domain"])


def _remove_chain_end(connection: api.Connection, entry: Dict[str, Any]) -> None:
    """It pivoted before the run died: libvirt's end-of-chain mark goes from its definition where there was none before."""
    handle = api.domain(connection, entry["uuid"])
    if handle.isPersistent():
        now = api.definition(connection, handle)
        for target, before in entry["before"].items():
            if "<backingStore" not in before:
                now = domain_xml.without_chain_end(now, target)
        redefine.restore(connection, now, running=True)


def _same_for_all(connection: api.Connection, entry: Dict[str, Any]) -> str:
    """All definitions as they were; or, where a domain has been started meanwhile on what it was changed to, all of them changed."""
    found = [(facts, api.find_definition(connection, facts["uuid"])) for facts in entry["definitions"]]
    there = [(facts, *known) for facts, known in found if known is not None]  # one that was undefined since has nothing to be put back
    forward = any(active and _disks(text, facts) == facts["after"] for facts, text, active in there)
    wanted = "after" if forward else "before"
    for facts, text, active in there:
        if _disks(text, facts) != facts[wanted]:
            redefine.restore(connection, domain_xml.put_back(text, facts[wanted]), running=active)
    return "the definition of domain {0} was {1}".format(entry["domain"], "changed to the end" if forward else "put back")


def _disks(text: str, facts: Dict[str, Any]) -> Dict[str, str]:
    return domain_xml.disk_elements(text, facts["before"])


def _start(connection: api.Connection, entry: Dict[str, Any]) -> str:
    control.start(connection, entry["uuid"])
    return "domain {0} had been shut down for the migration; it runs again".format(entry["domain"])
