# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of a made-up fleet, as the page of a fleet gets it: before, during and after a migration. Every number follows from the rows."""

import random
import shlex
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_words import IMAGES, PENDING

Facts = dict[str, t.Any]

GIB = 1 << 30
MADE = "2026-11-29T04:12:00+00:00"
"""When the page is made."""

_SPEED = 180 << 20
_MESSAGES = {
    "in-use": "the image is in use: qemu-system-x86 (pid 4711) has it open for writing. Nothing was changed. Shut the guest down and run again.",
    "no-space": "it needs 41.2 GiB in /srv/vm, 12.9 GiB are free. Nothing was changed. Free 28.3 GiB or set migrate_dest_dir.",
    "damaged": "damaged: L2 table 3 lies beyond the end of the file. Nothing was changed. Restore it from a backup or set migrate_salvage.",
    "exists": "{0}2 exists already and is no result of a migration. Nothing was changed. Move it away and run again.",
    "missing-base": "its backing file /srv/vm/templates/debian-etch.qcow is missing. Nothing was changed.",
    "verification-failed": "guest bytes 1073741824 to 1073807359 differ from the original. The result was removed, the original is in place.",
    "window": "it would take about 9 min, and the window closes at 02:00 UTC. Run again to continue with it.",
    "unfinished": "a run was interrupted while it copied. Run migrate again: it is completed or undone first.",
}
_PRODUCERS = ("qemu-img 0.9 to 0.13", "Xen blktap (qcow-create)", "QEMU 0.8")


def image(host: str, path: str, state: str, **facts: t.Any) -> Facts:
    """The row of one image, whole for its state."""
    size = facts.pop("bytes", 10 * GIB)
    row: Facts = {
        "host": host,
        "path": path,
        "state": state,
        "reason": None,
        "message": None,
        "domains": [],
        "format": "qcow",
        "producer": _PRODUCERS[0],
        "virtual_size": 4 * size,
        "bytes": size,
        "bytes_after": None,
        "dest": None,
        "retired": None,
        "verified": None,
        "fingerprint": None,
        "seconds": None,
        "bytes_per_second": None,
        "rests_on": [],
        "used_by": [],
        "record": None,
        "rollback": None,
        "known_at": "2026-11-29T04:10:00Z",
        "planned_seconds": None,
        "planned_bytes": None,
        "damage": None,
    }
    row.update(facts)
    if state == "migrated":
        row["record"] = row["record"] or f"20261129T0112{abs(hash_of(host + path)) % 100:02d}-{hash_of(path + host):012x}"
        results = {"rollback_records": [row["record"]]}
        command = ["ansible-playbook", "-i", "inventory.yml", "vmimage.qcow.rollback", "-l", host, "-e", str(results).replace("'", '"')]
        made = {"dest": path + "2", "retired": path + ".qcow1.orig", "verified": True, "fingerprint": f"sha256:{hash_of(path):064x}"}
        made.update(bytes_after=size - size // 9, seconds=round(size / _SPEED, 1), bytes_per_second=_SPEED, rollback=shlex.join(command))
        row.update({key: value for key, value in made.items() if facts.get(key) is None})
    elif state in PENDING:
        row["reason"] = row["reason"] or "planned"
        row.update(planned_seconds=round(size / _SPEED, 1), planned_bytes=size - size // 9)
    return row


def hash_of(text: str) -> int:
    """A number for a text, the same in every run."""
    return random.Random(text).getrandbits(48)


def summary_of(rows: list[Facts], hosts: list[Facts], runs: list[Facts]) -> Facts:
    """What :meth:`fleet.Fleet.summary` makes of such rows and hosts.

    :param hosts: ``host``, and what the rows do not tell of it.
    """
    told = [_host(host, [row for row in rows if row["host"] == host["host"]]) for host in hosts] if len(hosts) < 20 else _hosts(hosts, rows)
    totals: Facts = {
        "hosts": len(told),
        "missing": sum(host["state"] == "missing" for host in told),
        "unreached": sum(host["state"] == "unreached" for host in told),
        "bytes": sum(row["bytes"] for row in rows),
        "verified": sum(row["state"] == "migrated" and bool(row["verified"]) for row in rows),
    }
    totals.update({state: sum(row["state"] == state for row in rows) for state in IMAGES if state != "left"})
    for key in ("files", "images", "left", "left_bytes", "bytes_before", "bytes_after", "seconds", "planned_seconds", "planned_bytes"):
        totals[key] = sum(host[key] or 0 for host in told)
    problems = [
        {"host": row["host"], "path": row["path"], "reason": row["reason"], "message": row["message"]}
        for row in rows
        if row["message"] and row["state"] in PENDING
    ]
    problems += [{"host": host["host"], "path": None, "reason": "error", "message": text} for host in told for text in host["problems"]]
    retry = [host["host"] for host in told if host["state"] not in ("done",)]
    return {
        "schema": 1,
        "totals": totals,
        "hosts": told,
        "runs": runs,
        "formats": _table(rows, "format"),
        "producers": _table([row for row in rows if row["format"] == "qcow"], "producer"),
        "reasons": {},
        "problems": problems,
        "chains": [],
        "retry": [{"host": host, "command": f"ansible-playbook -i inventory.yml vmimage.qcow.migrate -l {host}"} for host in retry],
    }


def _hosts(hosts: list[Facts], rows: list[Facts]) -> list[Facts]:
    by_host: dict[str, list[Facts]] = {}
    for row in rows:
        by_host.setdefault(row["host"], []).append(row)
    return [_host(host, by_host.get(host["host"], [])) for host in hosts]


def _host(facts: Facts, rows: list[Facts]) -> Facts:
    done = [row for row in rows if row["state"] == "migrated"]
    pending = [row for row in rows if row["state"] in PENDING]
    host: Facts = {"host": facts["host"], "known_at": "2026-11-29T04:10:00Z", "unreached_since": None, "problems": []}
    host.update({state: sum(row["state"] == state for row in rows) for state in IMAGES})
    state = "failed" if host["failed"] or host["interrupted"] else next((s for s in ("running", "left", "deferred") if host[s]), "done")
    host.update(
        state=state,
        left=len(pending),
        last_play="migrate",
        last_run_at=host["known_at"],
        files=len(rows) * 3,
        images=len(rows),
        left_bytes=sum(row["bytes"] for row in pending),
        bytes_before=sum(row["bytes"] for row in done),
        bytes_after=sum(row["bytes_after"] for row in done),
        seconds=sum(row["seconds"] for row in done),
        planned_seconds=sum(row["planned_seconds"] or 0 for row in pending),
        planned_bytes=sum(row["planned_bytes"] or 0 for row in pending),
        domains=len({name for row in rows for name in row["domains"]}),
    )
    del host["other"]
    return {**host, **facts}


def _table(rows: list[Facts], key: str) -> list[Facts]:
    found: dict[str, Facts] = {}
    for row in rows:
        entry = found.setdefault(row[key], {"name": row[key], "images": 0, "bytes": 0})
        entry["images"] += 1
        entry["bytes"] += row["bytes"]
    return sorted(found.values(), key=lambda entry: -entry["images"])


def _state(phase: str, number: int, of_host: int, chance: random.Random) -> tuple[str, str | None]:
    """What has become of an image of host ``number``: state and reason."""
    if phase == "before":
        return "left", chance.choice(("in-use", "exists", "missing-base")) if number % 30 == 7 and of_host % 13 == 0 else None
    if number % 25 == 3 and of_host % 10 == 4:
        return "failed", ("in-use", "no-space", "damaged", "exists", "verification-failed")[number // 25 % 5]
    if phase == "during" and number % 60 == 20 and of_host > 10:
        return ("running", None) if of_host == 11 else ("left", None)
    if number % 60 == 59 and of_host == 20:
        return "interrupted", "unfinished"
    if number % 6 == 5 and of_host > 25:
        return "deferred", "window"
    return "migrated", None


def fleet(phase: str, hosts: int, images: int) -> tuple[Facts, list[Facts]]:
    """A fleet: what its page gets.

    :param phase: ``before``, ``during`` or ``after``.
    :param images: of each host.
    """
    chance = random.Random(20261129)
    rows, known = [], []
    for number in range(hosts):
        host = f"hv{number + 1:03d}.example.com"
        facts: Facts = {"host": host}
        away = hosts > 20 and number % 60 == 41
        if away:
            facts.update(state="unreached", unreached_since="2026-11-29T01:12:00Z", known_at="2026-11-28T22:04:00Z")
            facts["problems"] = ["Failed to connect to the host via ssh: connection timed out"]
        known.append(facts)
        for of_host in range(images):
            state, reason = ("left", None) if away else _state(phase, number, of_host, chance)
            size = int(GIB * chance.lognormvariate(2.2, 0.8))
            path = f"/srv/vm/pool{of_host % 4 + 1}/web{number + 1:03d}-{of_host + 1:04d}.qcow"
            more: Facts = {"reason": reason, "message": f"{path}: {_MESSAGES[reason].format(path)}" if reason else None}
            if reason == "damaged":
                more["damage"] = {
                    "text": "12.5 MiB of 41.2 GiB cannot be read: they lie beyond the end of the file.\nThe guest sees them as 3 ranges.",
                    "ranges": [f"{at} to {at + 4194303}" for at in (1 << 30, 3 << 30, 5 << 30)],
                }
            if reason == "in-use":
                more["used_by"] = ["qemu-system-x86 4711 (open for writing)"]
            if of_host % 3 != 2:
                more["domains"] = [f"web{number + 1:03d}-{of_host + 1:04d}"]
            rows.append(image(host, path, state, bytes=size, producer=_PRODUCERS[of_host % 3], **more))
    return summary_of(rows, known, _runs(phase, hosts, rows)), rows


def _runs(phase: str, hosts: int, rows: list[Facts]) -> list[Facts]:
    none = dict.fromkeys(("migrated", "failed", "deferred", "rolled_back", "cleaned", "bytes"), 0)
    scan = {
        "id": "1",
        "play": "scan",
        "started": "2026-11-28T22:00:00Z",
        "ended": "2026-11-28T22:09:00Z",
        "hosts": hosts,
        "reached": hosts,
        **none,
    }
    if phase == "before":
        return [scan]
    amount = {state: sum(row["state"] == state for row in rows) for state in ("migrated", "failed", "deferred")}
    migrate = {
        "id": "2",
        "play": "migrate",
        "started": "2026-11-29T01:00:00Z",
        "hosts": hosts,
        "reached": hosts - hosts // 60,
        **none,
        **amount,
    }
    migrate.update(ended="2026-11-29T04:11:00Z", bytes=sum(row["bytes"] for row in rows if row["state"] == "migrated"))
    return [scan, migrate]
