# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No report says that all is well where it is not: what failed around an image, what has gone since, and files that are damaged."""

import json
import pathlib
import re
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils.chain_forest import ChainForest
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files import PAGE, make
from ansible_collections.vmimage.qcow.tests.support.returned import converted, damaged, looked_at, recorded
from ansible_collections.vmimage.qcow.tests.unit.plugins.plugin_utils.test_host_merge import PLANNED, A, B, Kept, after, refused

DEST = A + ".qcow2"


@pytest.fixture(name="kept")
def _kept(tmp_path: pathlib.Path) -> Kept:
    return Kept(tmp_path / "reports")


def page_of(kept: Kept) -> str:
    make(kept.directory, ["h"], "t")
    return pathlib.Path(kept.directory, PAGE).read_text(encoding="utf-8")


def hooks(**facts: str) -> dict[str, Any]:
    return {"failed": [dict({"option": "migrate_after_image_tasks", "src": A, "record": "r", "task": "ask", "msg": "no answer"}, **facts)]}


def test_task_of_the_operator_that_failed(kept: Kept) -> None:
    kept.run("migrate", done={"images": [converted(A)], "records": [recorded(A)]}, hooks=hooks())
    kept.scan(after(A), [recorded(A)])
    assert kept.states() == {A: ("migrated", None)} and kept.host["state"] == "failed" and "no answer" in kept.host["problems"][0]
    assert "no answer" in page_of(kept) and "vmimage.qcow.cleanup" not in page_of(kept)
    kept.migrate([], [recorded(A)])
    assert kept.rows() and kept.host["problems"] == [] and "vmimage.qcow.cleanup" in page_of(kept)


def test_host_that_a_task_of_the_operator_has_stopped_was_reached(kept: Kept) -> None:
    kept.run("migrate", hooks=hooks(option="migrate_before_host_tasks", src="", record=""))
    assert kept.rows() == {} and kept.host["state"] == "failed"


@pytest.mark.parametrize("dest", [A, DEST])
def test_guest_that_did_not_start(kept: Kept, dest: str) -> None:
    record, user = recorded(A, dest=dest), {"domain": "shop", "state": "shut off"}
    kept.scan([looked_at(A, mtime=1.0)], plan=[converted(A)])
    kept.migrate([converted(A, dest=dest, failed=True, reason="start-failed", msg="shop did not start")], [record])
    for _number in range(2):
        assert kept.states() == {A: ("migrated", "start-failed")} and kept.host["state"] == "failed"
        assert "vmimage.qcow.cleanup" not in page_of(kept)
        result = looked_at(dest, format="qcow2", candidate=False, reasons=[], mtime=2.0, users=[user])
        kept.scan([result, after(A)[1]], [record])
    kept.scan([dict(result, users=[dict(user, state="running")]), after(A)[1]], [record])
    assert kept.states() == {A: ("migrated", None)} and kept.host["state"] == "done"


@pytest.mark.parametrize(("found", "way_back"), [(after(A)[1:], True), ([], False)])
def test_result_that_is_gone(kept: Kept, found: list[Any], way_back: bool) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.scan([], [recorded(A)], paths=("/elsewhere",))
    assert kept.states() == {A: ("migrated", None)}
    kept.scan(found, [recorded(A)])
    assert kept.states() == {A: ("migrated", "missing")} and kept.host["state"] == "failed"
    assert bool(kept.rows()[A]["rollback"]) == way_back and "vmimage.qcow.cleanup" not in page_of(kept)
    kept.scan(after(A), [recorded(A)])
    assert kept.states() == {A: ("migrated", None)} and kept.rows()[A]["rollback"]


def test_records_that_are_gone(kept: Kept) -> None:
    half = recorded(B, 2, state="copying", unfinished="goes on", reversible=False)
    kept.scan([looked_at(B)], plan=[converted(B)])
    kept.migrate([converted(A)], [recorded(A), half])
    assert kept.states() == {A: ("migrated", None), B: ("interrupted", "unfinished")}
    kept.run("status", done={"msg": "no right to read them", "failed": True})
    assert kept.states()[A] == ("migrated", None)
    kept.scan([*after(A), looked_at(B)], [], plan=[converted(B)])
    assert kept.states() == {A: ("migrated", "state"), B: PLANNED} and kept.rows()[A]["rollback"] is None
    assert kept.host["state"] == "failed"
    kept.scan([*after(A), looked_at(B)], [recorded(A)], plan=[converted(B)])
    assert kept.states()[A] == ("migrated", None) and kept.rows()[A]["rollback"]


def test_result_with_the_name_of_its_original_is_looked_at(kept: Kept) -> None:
    record = recorded(A, dest=A)
    kept.migrate([converted(A, dest=A)], [record])
    bad = looked_at(A, format="qcow2", candidate=False, reasons=["x", "damaged"], error="cut off", users=[{"domain": "shop"}])
    kept.scan([bad, after(A)[1]], [record])
    assert kept.states() == {A: ("migrated", "damaged")} and kept.rows()[A]["domains"] == ["shop"]


def test_image_that_took_the_name_of_a_result(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    kept.scan([looked_at(DEST), after(A)[1]], [recorded(A)], plan=[converted(DEST)])
    assert kept.states() == {A: ("migrated", "missing"), DEST: PLANNED}
    kept.migrate([], [recorded(A)], play="status")
    assert set(kept.states()) == {A, DEST}


def test_what_was_found_of_an_earlier_result_is_not_said_of_the_next(kept: Kept) -> None:
    lost = [{"path": A, "start": 0, "length": 512, "offset": 3, "what": "cut off"}]
    kept.migrate([converted(A, lost=lost)], [recorded(A)])
    kept.scan([dict(after(A)[0], error="it cannot be read"), after(A)[1]], [recorded(A)])
    back = recorded(A, state="rolled-back", time="2026-11-02T00:00:00Z")
    kept.migrate([], [back], play="rollback")
    kept.migrate([converted(A)], [back, recorded(A, 2)])
    assert kept.states() == {A: ("migrated", None)} and kept.rows()[A]["damage"] is None


def test_the_clock_of_the_host_was_set_back(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A, 5)])
    back = recorded(A, 5, state="rolled-back", time="2026-11-02T00:00:00Z")
    kept.migrate([], [back], play="rollback")
    kept.migrate([converted(A)], [back, recorded(A, 1)])
    assert kept.states() == {A: ("migrated", None)}
    kept.migrate([], [recorded(A, 1), back], play="status")  # as the host lists them
    assert kept.states() == {A: ("migrated", None)}


def test_migrated_again_stays_so(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    back = recorded(A, state="rolled-back", time="2026-11-02T00:00:00Z")
    kept.migrate([], [back], play="rollback")
    for play in ("migrate", "cleanup", "status", "scan"):
        kept.migrate([converted(A)] if play == "migrate" else [], [back, recorded(A, 2)], play=play)
        assert kept.states() == {A: ("migrated", None)}, play


def test_a_run_that_has_ended_is_not_running(kept: Kept) -> None:
    half = recorded(A, state="copying", unfinished="goes on", reversible=False)
    kept.migrate([], [half], play="status", running={"pid": 1})
    for running, state in ((True, "running"), (None, "running"), (False, "interrupted")):
        kept.run("scan", found={"images": [looked_at(A)], "records": [half], "running": running})
        assert kept.states()[A][0] == state


@pytest.mark.parametrize("reason", ["process", "verification-failed"])
def test_what_no_plan_foresees(kept: Kept, reason: str) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.migrate([refused(A, reason)])
    kept.scan([looked_at(A)], plan=[converted(A)])
    assert kept.states() == {A: ("failed", reason)}


def test_home_is_looked_at(kept: Kept) -> None:
    for images in ([looked_at("/root/a")], []):
        found = {"images": images, "records": [], "searched": [{"path": "/srv", "recurse": True}, {"path": "/root", "recurse": True}]}
        kept.run("scan", paths=("/srv", "~"), found=found)
    assert kept.states() == {}


def test_damaged_image_stands_against_it(kept: Kept) -> None:
    kept.scan([looked_at(A), damaged(B)], plan=[converted(A)])
    assert "1 of them would be refused" in page_of(kept) and "Go: nothing stands against it" not in page_of(kept)


def test_what_is_not_known_is_not_done(kept: Kept) -> None:
    kept.migrate([converted(A)], [recorded(A)])
    make(kept.directory, ["h", "other"], "t")
    assert "Nothing is left to migrate on the other hosts; of 1 host that is not known." in page_of(kept)


def test_damaged_line_is_told_until_everything_was_looked_at_again(kept: Kept) -> None:
    kept.scan([looked_at("/x/c")], paths=("/x",))
    kept.scan([looked_at(A), looked_at(B)])
    path = pathlib.Path(kept.directory, "host-h.jsonl")
    whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([whole[0], whole[1][:40] + "\n", *whole[2:]]), encoding="utf-8")
    was = path.read_bytes()
    kept.migrate([], play="status")
    kept.scan([looked_at(A), looked_at(B)])
    assert kept.rows() and "line 2" in kept.host["problems"][0] and kept.host["state"] == "failed"
    assert pathlib.Path(kept.directory, "host-h.jsonl.bad").read_bytes() == was
    kept.scan([looked_at(A), looked_at(B)], paths=("/i", "/x"))
    assert kept.rows() and kept.host["problems"] == []


def test_head_that_is_lost_makes_no_old_look_newer(kept: Kept) -> None:
    for _number in range(4):
        kept.scan([looked_at(A)], plan=[converted(A)])
    path = pathlib.Path(kept.directory, "host-h.jsonl")
    path.write_text("{\n" + path.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    kept.migrate([refused(A, "verification-failed")])
    assert kept.states() == {A: ("failed", "verification-failed")}


@pytest.mark.parametrize(
    "line",
    ['{"path":"/x","record":{"n":1}}', '{"path":"/x","seen":{"n":1,"at":"","bytes":"many","format":"qcow"}}', '{"x":NaN}', '{"path":7}'],
)
def test_one_bad_file_does_not_end_the_report(kept: Kept, line: str) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.scan([looked_at(A)], plan=[converted(A)], host="good")
    with open(pathlib.Path(kept.directory, "host-h.jsonl"), "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    make(kept.directory, [], "t")
    hosts = json.loads(pathlib.Path(kept.directory, "report.json").read_text(encoding="utf-8"))["hosts"]
    assert {host["host"]: host["state"] for host in hosts} == {"good": "left", "h": "failed"}
    kept.scan([looked_at(A)], plan=[converted(A)])
    kept.scan([looked_at(A)], plan=[converted(A)])
    assert kept.states()[A] == PLANNED


@pytest.mark.parametrize("images", [7, [{"path": 7}], [dict(looked_at(A), allocated_size=float("nan"))]])
def test_what_a_hostile_host_returns_changes_nothing(kept: Kept, images: Any) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    was = pathlib.Path(kept.directory, "host-h.jsonl").read_bytes()
    with pytest.raises(OSError, match="what the modules have returned"):
        kept.run("scan", found={"images": images, "records": []})
    assert pathlib.Path(kept.directory, "host-h.jsonl").read_bytes() == was


def test_report_that_was_cut_short_is_made_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.scan([looked_at(A)], plan=[converted(A)])
    page_of(kept)
    kept.migrate([converted(A)], [recorded(A)])
    with monkeypatch.context() as patched:
        patched.setattr("ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files.render", lambda *dummy: iter([1]))
        with pytest.raises(TypeError):
            make(kept.directory, ["h"], "t")
    assert "1 of 1 host done" in page_of(kept)


def test_all_images_are_counted_not_those_that_are_listed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet.ROWS", 2)
    paths = ["/i/%d" % number for number in range(9)]
    kept.scan([looked_at(path) for path in paths], plan=[refused(path, "exists") for path in paths])
    assert "9 of them would be refused" in page_of(kept)


def test_problems_of_hosts_come_first(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet.PROBLEMS", 2)
    error = {"path": "/i/p", "path_base64": None, "msg": "/i/p: Permission denied."}
    kept.scan([looked_at(A), looked_at(B)], errors=[error], plan=[refused(A, "exists"), refused(B, "exists")])
    why = page_of(kept).split('<h2 id="why">')[1]
    assert re.findall('<span class="muted"><code>([a-z-]+)</code></span>', why)[:2] == ["unreadable", "exists"]


def test_crafted_chains_are_drawn_once() -> None:
    forest = ChainForest()
    for level in range(1, 40):
        for over in "ab":
            for base in "ab":
                forest.add(b"/%d%s" % (level, over.encode()), {"format": "qcow", "state": "left"}, [{"path": "/%d%s" % (level - 1, base)}])
    assert len(json.dumps(forest.trees(2))) < 20000
