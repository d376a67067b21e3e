# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a fleet: its numbers, its files, and what its page has of them; tests/page opens the page."""

import csv
import html
import json
import os
import pathlib
import re
import types

import jsonschema
import pytest

from ansible_collections.vmimage.qcow.plugins.action import qcow_report
from ansible_collections.vmimage.qcow.plugins.plugin_utils import fleet, host_merge, image_row, run_history
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files import make
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import cell
from ansible_collections.vmimage.qcow.tests.support.returned import converted, damaged, looked_at, recorded

GIB = 1 << 30
NASTY = "/srv/<script>alert(1)</script>\"'&{{ 7 * 7 }}.qcow"


def found(path, **more):
    return looked_at(path, **dict({"virtual_size": 4 * GIB, "allocated_size": GIB}, **more))


def keep(folder, play, host, **results):
    host_merge.keep(str(folder), host, Run(play, "2026-11-22T01:00:00Z", ("/",)), Results(**results))


@pytest.fixture(name="folder")
def make_folder(tmp_path):
    scans = {
        "hv1": [
            found("/i/base.qcow"),
            found("/i/over.qcow", chain=[{"path": "/i/base.qcow", "format": "qcow"}]),
            found("/i/top.qcow", backing={"name": "over.qcow", "format": None}),
            found("/i/new.qcow2", format="qcow2", producer=None, candidate=False, reasons=[]),
        ],
        "hv2": [
            found(NASTY, in_use=[{"kind": "writer", "who": "=cmd()", "how": "open for writing"}]),
            damaged("/i/bad.qcow", virtual_size=4 * GIB, allocated_size=GIB),
            found("/i/later.qcow"),
        ],
    }
    for host, images in scans.items():
        keep(tmp_path, "scan", host, found={"summary": {"files": 9}, "images": images})
    sizes = {"before": {"allocated_size": GIB, "virtual_size": 4 * GIB}, "after": {"allocated_size": GIB // 2}, "seconds": 2.0}
    records = [recorded(f"/i/{name}.qcow", number, **sizes) for number, name in enumerate(("base", "over", "top"))]
    busy = converted(NASTY, changed=False, failed=True, action="refuse", reason="in-use", msg=NASTY + ": the image is in use", after={})
    later = converted("/i/later.qcow", changed=False, action="defer", reason="window", msg="deferred", after={})
    keep(tmp_path, "migrate", "hv1", done={"images": [converted(record["src"]) for record in records], "records": records})
    keep(tmp_path, "migrate", "hv2", done={"images": [busy, later], "records": []})
    (tmp_path / "host-hv3.jsonl").write_text("{half a report")
    return tmp_path


def test_the_numbers(folder):
    changed, totals = make(str(folder), ["hv4"], "Fleet")
    assert changed
    report = json.loads((folder / "report.json").read_text())
    assert report["schema"] == fleet.SCHEMA
    assert totals == report["totals"]
    expected = {"hosts": 4, "missing": 1, "images": 7, "migrated": 3, "left": 3, "failed": 2, "deferred": 1, "other": 1, "verified": 3}
    assert {key: totals[key] for key in expected} == expected
    assert (totals["bytes_before"], totals["bytes_after"], totals["seconds"], totals["left_bytes"]) == (3 * GIB, 3 * GIB // 2, 6, 3 * GIB)
    assert {host["host"]: host["state"] for host in report["hosts"]} == {"hv1": "done", "hv2": "failed", "hv3": "failed", "hv4": "missing"}
    assert [(problem["host"], problem["reason"]) for problem in report["problems"]] == [
        ("hv2", "damaged"),
        ("hv2", "in-use"),
        ("hv3", "report"),
        ("hv4", "missing"),
    ]
    chain = report["chains"][0]
    assert (chain["path"], chain["overlays"][0]["path"], chain["overlays"][0]["overlays"][0]["path"]) == (
        "/i/base.qcow",
        "/i/over.qcow",
        "/i/top.qcow",
    )
    retry = {one["host"]: one["command"] for one in report["retry"]}
    assert retry["hv4"] == "ansible-playbook vmimage.qcow.scan -l hv4" and set(retry) == {"hv2", "hv3", "hv4"}
    assert retry["hv2"] == 'ansible-playbook vmimage.qcow.migrate -l hv2 -e \'{"migrate_paths": ["/"]}\''


def test_the_tables(folder):
    make(str(folder), [], "Fleet")
    with open(folder / "images.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == image_row.COLUMNS
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [line["path"] for line in lines] and len(rows) == 7
    with open(folder / "hosts.csv", newline="") as stream:
        assert [row["host"] for row in csv.DictReader(stream)] == ["hv1", "hv2", "hv3"]


SCHEMAS = pathlib.Path(fleet.__file__).parent / "schemas"


def test_the_schemas(folder):
    host_merge.keep(str(folder), "hv5", Run("scan", "2026-11-22T01:00:00Z"), Results(found={"unreachable": True, "msg": "no route"}))
    run_history.add(
        str(folder), run_history.line_of("hv5", Run("scan", "2026-11-22T01:00:00Z", id="1", started="2026-11-22T01:00:00Z"), Results())
    )
    make(str(folder), ["hv4"], "Fleet")
    image, report = (json.loads((SCHEMAS / f"{name}.schema.json").read_text()) for name in ("image", "report"))
    kept = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    for schema in (image, report):
        jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(kept, report, jsonschema.Draft202012Validator)
    for row in rows:
        jsonschema.validate(row, image, jsonschema.Draft202012Validator)
    # Nothing is told that is not described.
    assert tuple(image["properties"]) == image_row.COLUMNS == tuple(rows[0])
    assert set(report["properties"]) == set(kept) and set(report["properties"]["totals"]["properties"]) == set(kept["totals"])
    for key, entry in (
        ("hosts", kept["hosts"][0]),
        ("runs", kept["runs"][0]),
        ("problems", kept["problems"][0]),
        ("retry", kept["retry"][0]),
    ):
        assert set(report["properties"][key]["items"]["properties"]) == set(entry), key
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(dict(rows[0], state="retired"), image, jsonschema.Draft202012Validator)


def test_metrics(folder):
    make(str(folder), ["hv4"], "Fleet")
    text = (folder / "metrics.prom").read_text()
    samples = dict(re.findall(r"^(vmimage_qcow_fleet_[a-z_]+(?:{[^}]*})?) (\S+)$", text, re.MULTILINE))
    assert samples['vmimage_qcow_fleet_host_left{host="hv2"}'] == "3" and samples["vmimage_qcow_fleet_left"] == "3"
    assert samples["vmimage_qcow_fleet_left_bytes"] == str(3 * GIB) and samples["vmimage_qcow_fleet_hosts_missing"] == "1"
    assert samples['vmimage_qcow_fleet_host_known_timestamp_seconds{host="hv1"}'] == "1795309200"
    assert 'vmimage_qcow_fleet_host_known_timestamp_seconds{host="hv4"}' not in samples
    names = re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)
    assert len(names) == len(set(names)) and {re.sub("{.*", "", sample) for sample in samples} == set(names)


def test_a_second_report_of_the_same_changes_nothing(folder):
    make(str(folder), [], "Fleet")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make(str(folder), [], "Fleet")[0] is False
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_check_mode_writes_nothing(folder):
    before = sorted(os.listdir(folder))
    assert make(str(folder), [], "Fleet", write=False)[0] is True
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1"])
def test_no_cell_is_a_formula(text):
    assert cell(text) == "'" + text
    assert cell("\t=1") == "\\x09=1"


def test_the_page_needs_nothing_else_and_runs_nothing_of_what_it_tells(folder):
    make(str(folder), [], "A <b>fleet</b>")
    page = (folder / "index.html").read_text()
    assert "<b>fleet" not in page and "alert(1)</script>" not in page and html.escape(NASTY) in html.escape(html.unescape(page))
    assert not re.search(r'(src|href)="(https?:)?//', page) and "url(" not in page
    assert page.count("<h1>") == 1 and '<html lang="en">' in page


@pytest.mark.parametrize(
    ("batch", "every", "last"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a", "b", "c"], False),
        (["c"], ["a", "b", "c"], True),
        (["c"], ["a", "c"], True),  # the last host of all has failed
        ([], [], True),
    ],
)
def test_the_report_is_not_made_for_each_batch(folder, batch, every, last, monkeypatch):
    variables = {"ansible_play_batch": batch, "ansible_play_hosts": every, "ansible_inventory_sources": ["/etc/my hosts"]}
    action = qcow_report.ActionModule.__new__(qcow_report.ActionModule)
    monkeypatch.setattr(action, "_task", types.SimpleNamespace(check_mode=False), raising=False)
    args = {"hosts": ["hv4"], "title": "Fleet"}
    assert action._of_all(args, str(folder), variables)["totals"]["hosts"] == 4, "there is none yet"
    (folder / "host-hv4.jsonl").unlink()
    again = action._of_all(dict(args, hosts=[]), str(folder), variables)
    assert ("totals" in again) == last and again["report"] == str(folder / "index.html")
    os.utime(folder / "index.html", (0, 0))
    assert action._of_all(dict(args, hosts=[]), str(folder), variables)["totals"]["hosts"] == 3
    assert "-i '/etc/my hosts' vmimage.qcow.rollback -l hv1" in (folder / "images.jsonl").read_text()


@pytest.mark.parametrize(
    "signs", [{"hostvars": {"a": {"__migrate_told": {"problems": ["refused"]}}}}, {"ansible_play_hosts_all": ["x", "a", "b"]}]
)
def test_the_report_is_made_where_the_run_may_end(folder, signs, monkeypatch):
    variables = {"ansible_play_batch": ["a"], "ansible_play_hosts": ["a", "b"], "ansible_play_hosts_all": ["a", "b"]}
    action = qcow_report.ActionModule.__new__(qcow_report.ActionModule)
    monkeypatch.setattr(action, "_task", types.SimpleNamespace(check_mode=False), raising=False)
    action._of_all({"hosts": [], "title": "Fleet"}, str(folder), variables)
    assert "totals" not in action._of_all({"hosts": [], "title": "Fleet"}, str(folder), variables)
    assert "totals" in action._of_all({"hosts": [], "title": "Fleet"}, str(folder), {**variables, **signs})


def test_what_changes_nothing_is_no_history(tmp_path):
    args = {"requested_paths": [], "limits": {}, "write_plan": False, "plan_speed": 1}
    for play in ("status", "stop", "scan"):
        qcow_report._keep(dict(args, play=play), str(tmp_path), "h", Results())
    assert [json.loads(line)["play"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["scan"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_run_is_kept_unless_in_check_mode(tmp_path, check_mode, monkeypatch):
    action = qcow_report.ActionModule.__new__(qcow_report.ActionModule)
    monkeypatch.setattr(action, "_task", types.SimpleNamespace(check_mode=check_mode), raising=False)
    summary = {"files": 1, "directories": 1, "formats": {"qcow": 1}}
    results = {"found": {"images": [found("/i/a")], "records": [], "errors": [], "summary": summary}, "planned": {"skipped": True}}
    args = {"play": "scan", "results": results, "requested_paths": ["/i"], "limits": {}, "write_plan": True, "plan_speed": 1e6}
    told = action._of_host(dict(args, fail_on_found=False), str(tmp_path / "reports"), "hv1")
    assert told["reached"] and told["problems"] == []
    there = sorted(os.listdir(tmp_path / "reports")) if (tmp_path / "reports").exists() else []
    assert there == ([] if check_mode else [".lock", "host-hv1.jsonl", "plan-hv1.yml", "runs.jsonl"])


def test_each_image_is_on_the_page_once(folder):
    make(str(folder), ["hv4"], "Fleet", inventory=["/etc/my hosts"])
    page = html.unescape((folder / "index.html").read_text())
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert page.count(" data-n=") == len(rows) == 7
    for row in rows:
        assert page.count(f"<th scope=row><code>{row['path']}</code>") == 1
        assert not row["rollback"] or f"<code>{row['rollback']}</code>" in page
    assert "1 of 4 hosts done, 2 failed, 1 not reached." in page
