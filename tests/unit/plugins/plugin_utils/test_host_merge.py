# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller keeps of a host is true after any run, in any order: its records, the latest look, the latest attempt."""

import json
import multiprocessing
import pathlib
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import encode_exact, show
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_file, host_merge
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet import Fleet
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files import make
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_state import TO_MIGRATE
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.tests.support.returned import converted, damaged, looked_at, recorded

Entry = dict[str, Any]
A, B = "/i/a", "/i/b"


class Kept:
    """One controller's directory. Every method is a run of a playbook on the host."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = str(directory)
        self.minute = 0

    def run(self, play: str, paths: tuple[str, ...] = ("/i",), limits: Optional[Entry] = None, host: str = "h", **results: Entry) -> None:
        self.minute += 1
        moment = "2026-11-01T02:%02d:00Z" % self.minute
        host_merge.keep(self.directory, host, Run(play, moment, paths, limits or {}), Results(**results))

    def scan(self, images: list[Entry], records: Any = (), plan: Optional[list[Entry]] = None, **how: Any) -> None:
        found = {"images": images, "records": list(records), "summary": {"files": len(images)}, "errors": how.pop("errors", [])}
        self.run("scan", found=found, planned={} if plan is None else {"images": plan}, **how)

    def migrate(self, images: list[Entry], records: Any = (), play: str = "migrate", **how: Any) -> None:
        more = {key: how.pop(key) for key in ("reason", "msg", "running", "recovered") if key in how}
        self.run(play, done={"images": images, "records": list(records), **more}, **how)

    def rows(self, host: str = "h") -> dict[str, Entry]:
        fleet = Fleet()
        kept = host_file.HostFile(str(pathlib.Path(self.directory, host_file.name_of(host))))
        rows = list(fleet.add(host, kept))
        self.fleet, self.host = fleet.summary(), fleet.hosts[0]
        to_do = [row for row in rows if row["state"] in TO_MIGRATE]
        assert self.host["left"] == len(to_do) and self.host["left_bytes"] == sum(row["bytes"] or 0 for row in to_do)
        assert (self.host["left"] == 0) == (self.host["left_bytes"] == 0)
        assert len({(row["path"], row["dest"]) for row in rows}) == len(rows)
        return {row["path"]: row for row in rows}

    def states(self) -> dict[str, tuple[str, Optional[str]]]:
        return {path: (row["state"], row["reason"]) for path, row in self.rows().items()}


@pytest.fixture(name="kept")
def _kept(tmp_path: pathlib.Path) -> Kept:
    return Kept(tmp_path / "reports")


def refused(path: str, reason: str = "in-use", **facts: Any) -> Entry:
    return converted(path, changed=False, failed=True, action="refuse", reason=reason, msg="%s: %s" % (path, reason), after={}, **facts)


def deferred(path: str, reason: str = "window") -> Entry:
    return converted(path, changed=False, action="defer", reason=reason, msg="later", after={})


def unchanged(path: str) -> Entry:
    return converted(path, changed=False, action="noop", after={})


def after(path: str) -> list[Entry]:
    """What a scan finds after a migration."""
    result = looked_at(path + ".qcow2", format="qcow2", candidate=False, reasons=[], producer=None)
    retired = looked_at(path + ".qcow1.orig", candidate=False, reasons=["retired original"])
    return [result, retired]


PLANNED = ("left", "planned")


def test_migrate_and_migrate_again(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)], plan=[converted(A), converted(B)])
    assert kept.states() == {A: PLANNED, B: PLANNED}
    kept.migrate([converted(A), deferred(B)], [recorded(A)])
    assert kept.states() == {A: ("migrated", None), B: ("deferred", "window")} and kept.host["state"] == "deferred"
    kept.migrate([converted(B)], [recorded(A), recorded(B, 2)])
    assert kept.states() == {A: ("migrated", None), B: ("migrated", None)} and kept.host["state"] == "done"
    row = kept.rows()[A]
    assert (row["dest"], row["retired"], row["verified"], row["producer"]) == (A + ".qcow2", A + ".qcow1.orig", True, "qemu")
    assert row["rollback"] == "ansible-playbook vmimage.qcow.rollback -l h -e '%s'" % json.dumps(
        {"rollback_records": [row["record"]], "rollback_paths": []}
    )
    kept.migrate([], [recorded(A), recorded(B, 2)])
    kept.scan(after(A) + after(B), [recorded(A), recorded(B, 2)])
    assert kept.states() == {A: ("migrated", None), B: ("migrated", None)} and kept.host["files"] == 4


def test_roll_back_one_and_migrate_it_again(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)], plan=[converted(A), converted(B)])
    kept.migrate([converted(A), converted(B)], [recorded(A), recorded(B, 2)])
    back = recorded(A, state="rolled-back", time="2026-11-02T00:00:00Z", retired=None, reversible=False)
    kept.migrate([], [back, recorded(B, 2)], play="rollback")
    assert kept.states() == {A: ("left", "rolled-back"), B: ("migrated", None)}
    assert kept.rows()[A]["rollback"] is None and kept.rows()[A]["record"] is None
    kept.scan([looked_at(A), *after(B)], [back, recorded(B, 2)], plan=[converted(A)])
    assert kept.states() == {A: PLANNED, B: ("migrated", None)}
    kept.migrate([converted(A)], [back, recorded(B, 2), recorded(A, 3)])
    assert kept.states() == {A: ("migrated", None), B: ("migrated", None)}


def test_cleaned_up(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.migrate([], [recorded(A, state="cleaned", time="2026-12-01T00:00:00Z", returned=7, reversible=False)], play="cleanup")
    row = kept.rows()[A]
    assert (row["state"], row["retired"], row["rollback"], row["verified"]) == ("migrated", None, None, True)
    kept.scan(after(A)[:1], [recorded(A, state="cleaned", time="2026-12-01T00:00:00Z")])
    assert kept.states() == {A: ("migrated", None)}


def test_retired_overlay_of_a_chain_is_no_error(kept: Kept) -> None:
    chain = [{"path": A, "path_base64": None, "format": "qcow"}]
    kept.scan([looked_at(A), looked_at(B, chain=chain)], plan=[converted(A), converted(B)])
    records = [recorded(A), recorded(B, 2)]
    kept.migrate([converted(A), converted(B)], records)
    seen = after(A) + after(B)
    seen[3].update(error="%s: there is no such file" % A, backing={"name": "a", "name_base64": None, "format": None})
    kept.scan(seen, records)
    assert kept.states() == {A: ("migrated", None), B: ("migrated", None)} and kept.host["state"] == "done"
    assert kept.fleet["problems"] == []
    (tree,) = kept.fleet["chains"]
    assert (tree["path"], tree["state"], [over["path"] for over in tree["overlays"]]) == (A, "migrated", [B])


def test_what_is_wrong_with_a_result_is_told_with_its_original(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.scan([dict(after(A)[0], error="it cannot be read")], [recorded(A)])
    assert [(one["path"], one["message"]) for one in (kept.rows(), kept.fleet["problems"])[1]] == [(A, "it cannot be read")]
    assert kept.states() == {A: ("migrated", "error")}


def test_original_that_is_kept(kept: Kept) -> None:
    record = recorded(A, retired=None)
    kept.migrate([converted(A, retired=None)], [record])
    kept.scan([looked_at(A), after(A)[0]], [record], plan=[converted(A, action="retire")])
    assert kept.states() == {A: ("migrated", None)}
    kept.migrate([unchanged(A)], [record])
    assert kept.states() == {A: ("migrated", None)}


def test_result_that_keeps_the_name(kept: Kept) -> None:
    record = recorded(A, dest=A)
    kept.scan([looked_at(A)], plan=[converted(A, dest=A)])
    kept.migrate([converted(A, dest=A)], [record])
    kept.scan([looked_at(A, format="qcow2", candidate=False, reasons=[]), after(A)[1]], [record])
    assert kept.states() == {A: ("migrated", None)}


def test_another_image_under_the_name_of_one_that_was_migrated(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.scan([looked_at(A), *after(A)], [recorded(A)], plan=[converted(A)])
    assert kept.states() == {A: PLANNED}


@pytest.mark.parametrize("again", ["migrated", "scanned", "gone"])
def test_failed_then_fixed(kept: Kept, again: str) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.migrate([refused(A)])
    assert kept.states() == {A: ("failed", "in-use")} and kept.host["state"] == "failed"
    if again == "migrated":
        kept.migrate([converted(A)], [recorded(A)])
        assert kept.states() == {A: ("migrated", None)}
    elif again == "scanned":
        kept.scan([looked_at(A)], plan=[converted(A)])
        assert kept.states() == {A: PLANNED}
    else:
        kept.scan([])
        assert kept.states() == {}
    assert kept.host["failed"] == 0 and kept.fleet["problems"] == []


def test_what_no_plan_foresees_stays_failed_until_it_is_tried_again_or_is_another_file(kept: Kept) -> None:
    kept.scan([looked_at(A, mtime=1.0)], plan=[converted(A)])
    kept.migrate([refused(A, "verification-failed")], [recorded(A, state="failed", error="differs")])
    kept.scan([looked_at(A, mtime=1.0)], [recorded(A, state="failed", error="differs")], plan=[converted(A)])
    assert kept.states() == {A: ("failed", "verification-failed")}
    kept.scan([looked_at(A, mtime=2.0)], [recorded(A, state="failed", error="differs")], plan=[converted(A)])
    assert kept.states() == {A: PLANNED}


def test_a_look_without_a_plan_says_nothing_of_what_failed(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)])
    kept.migrate([refused(A, "exists"), refused(B, "in-use")])
    kept.scan([looked_at(A), looked_at(B)])
    assert kept.states() == {A: ("failed", "exists"), B: ("left", None)}


def test_the_plan_says_what_stands_in_the_way(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)], plan=[refused(A, "no-space"), converted(B, copy_bytes=400000000, after={"file_size": 5})])
    assert kept.states() == {A: ("left", "no-space"), B: PLANNED} and kept.host["state"] == "left"
    assert (kept.host["planned_seconds"], kept.host["planned_bytes"]) == (2, 5)
    assert kept.rows()[A]["message"] == "no-space" and kept.fleet["reasons"] == {"no-space": 1}


def test_damage_in_two_lines(kept: Kept) -> None:
    kept.scan([damaged(A)], plan=[refused(A, "damaged")])
    row = kept.rows()[A]
    assert (row["state"], row["reason"]) == ("failed", "damaged")
    assert (
        len(row["damage"]["text"].split("\n")) == 2 and row["damage"]["ranges"] and row["message"] == row["damage"]["text"].split("\n")[0]
    )
    ranges = [{"start": 4096 * n, "length": 4096, "offset": 9 * n, "what": "it lies outside the file"} for n in range(500)]
    kept.migrate([refused(A, "damaged", details={"ranges": ranges})])
    row = kept.rows()[A]
    assert row["damage"]["text"] == "it lies outside the file\n500 places, 2048000 bytes of the guest"
    assert len(row["damage"]["ranges"]) == 65 and row["damage"]["ranges"][-1] == "and 436 more"
    lost = [{"path": A, "start": 0, "length": 512, "offset": 3, "what": "cut off"}]
    kept.migrate([converted(A, lost=lost)], [recorded(A)])
    assert kept.rows()[A]["damage"] == {
        "text": "cut off\n1 place, 512 bytes of the guest",
        "ranges": ["guest bytes 0 to 511: cut off (file offset 3)"],
    }


@pytest.mark.parametrize("state", ["planned", "copying", "verified", "published", "repointed", "retired", "rolling-back", "cleaning"])
def test_interrupted_and_finished(kept: Kept, state: str) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    record = recorded(A, state=state, unfinished="the next run goes on", reversible=False)
    kept.migrate([], [record], play="status")
    assert kept.states() == {A: ("interrupted", "unfinished")} and kept.rows()[A]["message"] == "the next run goes on"
    kept.migrate([], [record], play="status", running={"pid": 1})
    assert kept.states() == {A: ("running", None)} and kept.host["state"] == "running"
    kept.scan([looked_at(A)], [record])  # nobody has asked who is at work
    assert kept.states() == {A: ("running", None)}
    kept.run("migrate", done={"reason": "locked", "msg": "another migration is running", "records": [record]})
    assert kept.states() == {A: ("running", None)}
    kept.migrate([], [record], play="cleanup")
    assert kept.states() == {A: ("interrupted", "unfinished")}
    kept.migrate([], [dict(record, state="done", unfinished=None, time="2026-11-02T00:00:00Z")])
    assert kept.states() == {A: ("migrated", None)}


def test_a_status_tells_what_the_run_is_at_from_what_an_earlier_one_has_left(kept: Kept) -> None:
    at_it = dict(recorded(A, state="copying", unfinished=None), in_progress=True)
    left = dict(recorded(B, 2, state="copying", unfinished="interrupted"), in_progress=False)
    kept.migrate([], [at_it, left], play="status", running={"pid": 1})
    assert kept.states() == {A: ("running", None), B: ("interrupted", "unfinished")}


def test_interrupted_copy_that_a_rollback_has_cleaned_up(kept: Kept) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.migrate([], [recorded(A, state="failed", error="interrupted", reversible=False)], play="rollback")
    assert kept.states() == {A: ("failed", "interrupted")}
    kept.migrate([converted(A)], [recorded(A, state="failed", error="interrupted"), recorded(A, 2)])
    assert kept.states() == {A: ("migrated", None)}


def test_killed_controller_is_made_up_for_by_the_next_run_of_anything(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)], plan=[converted(A), converted(B)])
    # The job on the host has migrated both; nobody has fetched its result.
    kept.migrate([], [recorded(A), recorded(B, 2)], play="cleanup")
    assert kept.states() == {A: ("migrated", None), B: ("migrated", None)}


def test_a_refused_rollback_leaves_the_image_migrated(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.migrate([refused(A, "changed")], [recorded(A)], play="rollback")
    assert kept.states() == {A: ("migrated", "changed")} and kept.host["left"] == 0
    kept.scan(after(A), [recorded(A)])
    assert kept.states() == {A: ("migrated", None)}


def test_unreached_host_stays_with_the_age_of_what_is_known(kept: Kept) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    for minute in (2, 3):
        kept.run("migrate", done={"unreachable": True, "msg": "no route"})
        assert kept.states() == {A: PLANNED}
        assert {key: kept.host[key] for key in ("state", "known_at", "unreached_since", "last_run_at", "last_play")} == {
            "state": "unreached",
            "known_at": "2026-11-01T02:01:00Z",
            "unreached_since": "2026-11-01T02:02:00Z",
            "last_run_at": "2026-11-01T02:%02d:00Z" % minute,
            "last_play": "migrate",
        }
    assert kept.fleet["reasons"] == {"unreached": 1} and "no route" in kept.fleet["problems"][0]["message"]
    kept.migrate([converted(A)], [recorded(A)])
    assert kept.states() == {A: ("migrated", None)} and kept.host["unreached_since"] is None


def test_hosts_that_are_not_in_this_run_stay(kept: Kept) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)], host="one")
    make(kept.directory, ["one", "two"], "t")
    kept.migrate([converted(A)], [recorded(A)], host="three")
    totals = make(kept.directory, ["three"], "t")[1]
    hosts = {host["host"]: host["state"] for host in json.loads(pathlib.Path(kept.directory, "report.json").read_text())["hosts"]}
    assert hosts == {"one": "left", "three": "done", "two": "missing"} and (totals["hosts"], totals["missing"]) == (3, 1)
    pathlib.Path(kept.directory, host_file.name_of("two")).unlink()
    assert make(kept.directory, ["three"], "t")[1]["hosts"] == 2


def test_second_controller_that_only_reads_records(kept: Kept, tmp_path: pathlib.Path) -> None:
    other = Kept(tmp_path / "other")
    back = recorded(B, 2, state="rolled-back", retired=None, reversible=False)
    other.migrate([], [recorded(A), back, recorded("/i/c", 3, state="failed", error="no space")], play="status")
    assert other.states() == {A: ("migrated", None), B: ("left", "rolled-back"), "/i/c": ("failed", "error")}
    row = other.rows()[A]
    assert row["bytes"] and row["bytes_after"] and row["virtual_size"] == 1 << 20 and row["seconds"]
    other.scan([*after(A), looked_at(B), looked_at("/i/c")], [recorded(A), back], plan=[converted(B), converted("/i/c")])
    assert other.states() == {A: ("migrated", None), B: PLANNED, "/i/c": PLANNED}
    # What it did is not lost to the first one.
    kept.scan([looked_at(A), looked_at(B)], plan=[converted(A), converted(B)])
    kept.migrate([], [recorded(A), back], play="cleanup")
    assert kept.states() == {A: ("migrated", None), B: ("left", "rolled-back")}


def test_scan_of_a_part_replaces_what_lies_there(kept: Kept) -> None:
    kept.scan([looked_at("/i/x/a"), looked_at("/i/xy/b")], plan=[converted("/i/x/a"), converted("/i/xy/b")])
    kept.scan([], paths=("/i/x",))
    assert kept.states() == {"/i/xy/b": PLANNED} and kept.rows()["/i/xy/b"]["known_at"] == "2026-11-01T02:01:00Z"
    kept.scan([looked_at("/i/x/new")], paths=("/i/x/new",))
    assert kept.states() == {"/i/xy/b": PLANNED, "/i/x/new": ("left", None)}


@pytest.mark.parametrize("failure", [{"msg": "state", "reason": "state"}, {"msg": "MODULE FAILURE"}])
def test_scan_that_failed_keeps_everything(kept: Kept, failure: Entry) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.run("scan", found=failure)
    assert kept.states() == {A: PLANNED} and kept.host["state"] == "failed" and kept.host["problems"] == [failure["msg"]]
    assert (kept.host["known_at"], kept.host["last_run_at"]) == ("2026-11-01T02:01:00Z", "2026-11-01T02:02:00Z")
    kept.scan([looked_at(A)], plan=[converted(A)])
    assert kept.states() == {A: PLANNED} and kept.host["state"] == "left"


def test_what_could_not_be_looked_at_keeps_what_is_below_it(kept: Kept) -> None:
    kept.scan([looked_at("/i/private/a"), looked_at(B)])
    error = {"path": "/i/private", "path_base64": None, "msg": "/i/private: Permission denied."}
    closed = looked_at("/i/private", format="unknown", candidate=False, reasons=[], error=error["msg"])
    kept.scan([closed], errors=[error])
    assert kept.states() == {"/i/private/a": ("left", None)} and kept.host["problems"] == [error["msg"]] and kept.host["state"] == "failed"
    kept.migrate([], paths=("/j",))
    assert kept.rows() and kept.host["problems"] == [error["msg"]]
    kept.scan([])
    assert kept.states() == {} and kept.host["problems"] == []


def test_limited_scan_keeps_what_it_may_not_have_seen(kept: Kept) -> None:
    limits = {"exclude": ["b"], "one_filesystem": False, "report": "known"}
    kept.scan([looked_at(A), looked_at(B)])
    kept.scan([looked_at(A)], limits=limits)
    assert set(kept.states()) == {A, B}
    kept.scan([], limits=limits)
    assert set(kept.states()) == {B}, "it was found under the same limits"
    kept.scan([looked_at("/i/new.qcow2", format="qcow2", candidate=False, reasons=[])])
    kept.scan([], limits={"report": "v1"})
    assert kept.states() == {"/i/new.qcow2": ("other", None)}


def test_run_that_another_one_keeps_out(kept: Kept) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.run("migrate", done={"failed": True, "reason": "locked", "msg": "another migration is running", "path": "/lock", "details": {}})
    assert kept.states() == {A: PLANNED} and kept.host["state"] == "failed"
    kept.migrate([converted(A)], [recorded(A)])
    assert kept.states() == {A: ("migrated", None)} and kept.host["state"] == "done"


def exact(role: str, path: bytes) -> Entry:
    return {role: show(path), role + "_base64": encode_exact(path)}


def test_names_that_look_alike(kept: Kept) -> None:
    one, other = b"/i/\xff", b"/i/\\xff"
    looks = [dict(looked_at(""), **exact("path", name)) for name in (one, other)]
    record = recorded("", **exact("src", one), **exact("dest", one + b".qcow2"), **exact("retired", one + b".orig"))
    kept.scan(looks)
    kept.migrate([converted("", **exact("src", one), **exact("dest", one + b".qcow2"))], [record])
    rows = list(Fleet().add("h", host_file.HostFile(str(pathlib.Path(kept.directory, "host-h.jsonl")))))
    assert [(row["path"], row["state"]) for row in rows] == [("/i/\\xff", "left"), ("/i/\\xff", "migrated")]


def test_the_same_path_twice(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(A)], plan=[converted(A), converted(A)])
    kept.migrate([converted(A), unchanged(A)], [recorded(A), recorded(A)])
    assert kept.states() == {A: ("migrated", None)}


def test_domains_of_the_image_and_of_its_result(kept: Kept) -> None:
    user = {"domain": "shop", "device": "disk", "target": "vda"}
    kept.scan([looked_at(A, users=[user, dict(user, target="vdb")])])
    assert kept.rows()[A]["domains"] == ["shop"] and kept.host["domains"] == 1
    kept.migrate([converted(A)], [recorded(A, domains=["shop"])])
    assert kept.rows()[A]["domains"] == ["shop"]
    kept.scan([dict(after(A)[0], users=[dict(user, domain="new")])], [recorded(A, domains=["shop"])])
    assert kept.rows()[A]["domains"] == ["new", "shop"]


def _keep_one(directory: str, number: int) -> None:
    kept = Kept(pathlib.Path(directory))
    kept.scan([looked_at("/i/%d" % number)], paths=("/i/%d" % number,))


def test_no_update_is_lost_between_processes(kept: Kept) -> None:
    workers = [multiprocessing.Process(target=_keep_one, args=(kept.directory, number)) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(kept.states()) == {"/i/%d" % number for number in range(12)}


def test_damaged_file_is_told_and_made_anew(kept: Kept) -> None:
    kept.scan([looked_at(A), looked_at(B)])
    path = pathlib.Path(kept.directory, "host-h.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40] + "\n" + lines[2])
    assert set(kept.rows()) == {B} and "line 2" in kept.fleet["problems"][0]["message"] and kept.host["state"] == "failed"
    kept.scan([looked_at(A), looked_at(B)])
    assert set(kept.rows()) == {A, B} and kept.fleet["problems"] == []


@pytest.mark.parametrize("host", ["fe80::1%eth0", "a/b", "100%25"])
def test_host_names(kept: Kept, host: str) -> None:
    kept.scan([looked_at(A)], host=host)
    assert list(host_file.hosts_in(kept.directory)) == [host]
