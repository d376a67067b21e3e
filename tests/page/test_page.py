# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page as a file: its size, what it leaves out, the same numbers and units everywhere, and names that want to be more than names."""

import json
import pathlib
import re
from datetime import datetime

import jsonschema
import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils import page, page_words, standing
from ansible_collections.vmimage.qcow.plugins.plugin_utils.advice import ADVICE
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet import COLUMNS, HOST_COLUMNS
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_rows import tally_of
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible
from ansible_collections.vmimage.qcow.tests.support.fleet_data import MADE, fleet, image, summary_of

MIB = 1 << 20
ROOT = pathlib.Path(__file__).resolve().parents[2]
NASTY = [
    "</script><script>document.title = 'taken'</script>",
    "--><img src=x onerror=\"document.title = 'taken'\">",
    "\"'`{{ 7 * 7 }}&lt;&amp;",
    "\u202egnp.\u2066\u0007\u001b[31m\u2028\u2029",
    "javascript:document.title='taken'",
]


def text_of(summary, rows):
    return "".join(
        page.render(summary, rows, tally_of(rows), "QCOW version 1 migration", datetime.fromisoformat(MADE), Hosts(["inventory.yml"]))
    )


@pytest.mark.parametrize(("phase", "most"), [("before", 3), ("during", 6), ("after", 6)])
def test_how_large_it_is(phase, most, tell):
    summary, rows = fleet(phase, 300, 40)
    size = len(text_of(summary, rows).encode())
    tell(f"300 hosts x 40 images, {phase}: {size / MIB:.2f} MiB")
    assert size <= most * MIB
    assert text_of(summary, rows).count(f"<code>{rows[-1]['path']}</code>") == 1, "no row is there twice"


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(page, "ROWS", 50)
    monkeypatch.setattr(page, "HOSTS", 20)
    text = text_of(*fleet("after", 30, 40))
    assert (
        "These are the 50 images that need attention most, of 1\u202f200: 1\u202f150 are left out here. All are in <code>images.csv</code>."
        in text
    )
    assert "These are the 20 hosts that need attention most, of 30. All are in <code>hosts.csv</code>." in text
    assert text.count(" data-n=") == 50 and "<tr class=migrated" not in text


def test_one_unit_for_one_thing_and_a_zone_with_each_time():
    text = re.sub(r"<(style|script)>.*?</\1>", "", text_of(*fleet("after", 300, 40)), flags=re.DOTALL)
    assert not re.search(r"\d (?:[kKMGT]B|[KMGT]\b)", text)
    assert all(found.startswith(" UTC") for found in re.findall(r"\d\d:\d\d(.{4})", text) if found[0] == " ")
    assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d", re.sub(r'data-v="[^"]*"', "", text))


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_a_name(name, visit, write_page, tmp_path):
    path = "/srv/" + name
    rows = [
        image(name, path, "migrated", domains=[name]),
        image(
            name, path + "2", "failed", reason=name, message=f"{path}: {name}", used_by=[name], rests_on=[name], producer=name, format=name
        ),
        image(name, path + "3", "failed", reason="damaged", damage={"text": f"{name}\n{name}", "ranges": [name, name]}),
    ]
    summary = summary_of(rows, [{"host": name, "problems": [name]}], [])
    summary["chains"] = [
        {
            "host": name,
            "path": path,
            "format": name,
            "state": "migrated",
            "overlays": [{"path": path, "format": None, "state": None, "overlays": []}],
        }
    ]
    opened = visit(write_page(tmp_path / "page.html", summary, rows))
    assert opened.title() == "QCOW version 1 migration"
    opened.get_by_role("searchbox").fill("migrated")
    opened.get_by_role("combobox", name="Group").select_option("nothing")
    opened.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    seen = opened.evaluate("document.body.innerText")
    shown = "".join(visible(character) for character in path)
    assert shown in re.sub(r"\s+", " ", seen) or shown in seen
    assert not re.search("[\u202e\u2066\u2028\u2029\x07\x1b]", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert opened.title() == "QCOW version 1 migration"
    assert opened.evaluate("document.querySelectorAll('img, iframe, script:not(body > script)').length") == 0
    link = opened.get_by_role("table", name="Hosts", exact=True).get_by_role("link")
    link.click()
    assert opened.evaluate("location.hash").startswith("#host=") and opened.title() == "QCOW version 1 migration"
    opened.get_by_role("status").filter(has_text="3 of 3 images").wait_for()
    assert opened.get_by_role("row", name=shown).count() >= 2, "the link to the host finds it"


def test_nothing_but_its_own_script_and_style_may_run(visit, page_of):
    opened = visit(page_of("after", 3, 9), heard=True)
    policy = opened.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "unsafe" not in policy and policy.startswith("default-src 'none'; style-src 'sha256-")
    opened.evaluate("""() => {
      const told = document.documentElement.dataset;
      told.refused = 0;
      document.addEventListener("securitypolicyviolation", () => { told.refused = Number(told.refused) + 1; });
      document.body.insertAdjacentHTML("beforeend", '<p style="color:red" onclick="document.title = 1">x</p>');
      document.body.append(Object.assign(document.createElement("script"), { textContent: "document.title = 2" }));
    }""")
    opened.get_by_text("x", exact=True).click()
    opened.locator("html[data-refused='3']").wait_for(state="attached")
    assert opened.title() == "QCOW version 1 migration"


def test_each_reason_has_advice():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "plugins" / "module_utils").rglob("*.py"))
    codes = set(re.findall(r'(?:\breason|default_reason) ?= ?"([a-z0-9-]+)"', source))
    codes |= set(re.findall(r'errno\.E[A-Z]+: "([a-z-]+)"', source))
    assert len(codes) > 40
    assert codes - {"planned"} - set(ADVICE) == set()


def test_advice_names_options_that_there_are():
    options = (ROOT / "roles" / "migrate" / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    named = {word for entry in ADVICE.values() for word in re.findall(r"\bmigrate_\w+", entry.do)}
    assert len(named) > 5
    assert [word for word in sorted(named) if f"\n      {word}:\n" not in options] == []


@pytest.mark.parametrize("phase", ["before", "during", "after"])
def test_the_made_up_fleet_is_in_the_form_of_a_real_one(phase):
    schemas = ROOT / "plugins" / "plugin_utils" / "schemas"
    summary, rows = fleet(phase, 30, 12)
    jsonschema.validate({**summary, "title": "Fleet"}, json.loads((schemas / "report.schema.json").read_text(encoding="utf-8")))
    image_schema = json.loads((schemas / "image.schema.json").read_text(encoding="utf-8"))
    for row in rows:
        jsonschema.validate(row, image_schema)
    assert {tuple(row) for row in rows} == {COLUMNS}
    assert {tuple(sorted(host)) for host in summary["hosts"]} == {tuple(sorted(HOST_COLUMNS))}


def standing_of(rows, hosts=None, runs=()):
    hosts = hosts or [{"host": name} for name in sorted({row["host"] for row in rows})]
    return standing.Standing(summary_of(rows, hosts, list(runs)), tally_of(rows), Hosts(["the inventory"]))


def test_all_is_done():
    stands = standing_of([image("h1", "/a.qcow", "migrated"), image("h2", "/a.qcow", "migrated")])
    assert (stands.phase, stands.sentence, stands.verdict) == ("after", "2 of 2 hosts done.", "Nothing is left to migrate.")
    assert [step.command for step in stands.steps] == ["ansible-playbook -i 'the inventory' vmimage.qcow.cleanup -l h1,h2"]


def test_one_host_is_left():
    stands = standing_of([image("h1", "/a.qcow", "migrated"), image("h2", "/a.qcow", "deferred", reason="window")])
    assert stands.sentence == "1 of 2 hosts done, 1 still to do."
    assert [step.command for step in stands.steps] == ["ansible-playbook -i 'the inventory' vmimage.qcow.migrate -l h2"]


def test_nothing_to_migrate():
    stands = standing_of([image("h1", "/a.raw", "other", format="raw")])
    assert stands.sentence == "1 host looked at: there is no QCOW version 1 image to migrate."
    assert (stands.verdict, stands.steps) == ("There is nothing to do.", [])


def test_a_run_is_at_work():
    run = {"play": "migrate", "started": "2026-11-29T01:00:00Z"}
    stands = standing_of([image("h1", "/a.qcow", "running"), image("h1", "/b.qcow", "left")], runs=[run])
    assert stands.phase == "during"
    assert [step.command.split(".")[-1] for step in stands.steps] == ["status -l h1", "stop -l h1"]
    assert standing_of([image("h1", "/b.qcow", "left")], runs=[run]).phase == "after"
    assert standing_of([image("h1", "/b.qcow", "left")], runs=[{"play": "scan", "started": "2026-11-29T01:00:00Z"}]).phase == "before"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2026-11-29T03:13:00Z", ""),
        ("2026-11-29T03:12:00Z", "1 hour"),
        ("2026-11-28T04:12:00Z", "24 hours"),
        ("2026-11-26T04:12:00Z", "3 days"),
    ],
)
def test_age(value, words):
    assert page_words.age(value, datetime.fromisoformat(MADE)) == (f"{words} before this report" if words else "")


@pytest.mark.parametrize(
    ("path", "short"), [("/a/b.qcow2", "b.qcow2"), ("/a/c/b.qcow2", "/a/c/b.qcow2"), ("/b.qcow2", "/b.qcow2"), (None, None)]
)
def test_beside(path, short):
    assert page_words.beside(path, "/a/b.qcow") == short
