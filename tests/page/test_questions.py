# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A person's questions, answered by what a person sees on the page: text, links, buttons. The names of the tests are the questions."""

import re

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_words import PENDING, number
from ansible_collections.vmimage.qcow.tests.support.fleet_data import fleet

SUMMARY, ROWS = fleet("after", 300, 40)
ROLLBACK = 'ansible-playbook -i inventory.yml vmimage.qcow.rollback -l {host} -e \'{{"rollback_records": ["{record}"]}}\''


@pytest.fixture(name="page")
def open_page(visit, page_of):
    return visit(page_of("after", 300, 40), permissions=["clipboard-read", "clipboard-write"])


def section(page, name):
    return page.get_by_role("region", name=name)


def copied(page, button):
    element = button.element_handle()
    element.click()
    assert element.inner_text() == "Copied"
    return page.evaluate("navigator.clipboard.readText()")


def command(play, hosts):
    """It names the hosts: nobody has looked at others that the inventory may have."""
    return f"ansible-playbook -i inventory.yml vmimage.qcow.{play} -l {','.join(hosts)}"


def test_where_do_things_stand(page):
    assert page.get_by_text("240 of 300 hosts done, 17 failed, 38 still to do, 5 not reached since 2026-11-29 01:12 UTC.").is_visible()


def test_what_failed_and_why(page):
    why = section(page, "What failed or waits, and why")
    for code in sorted({row["reason"] for row in ROWS if row["state"] == "failed"}):
        rows = [row for row in ROWS if row["reason"] == code]
        hosts = {row["host"] for row in rows}
        group = why.get_by_role("group").filter(has_text=f" {code} ")
        heading = group.locator("summary").inner_text()
        assert f"{len(rows)} images on {len(hosts)} hosts, {size(sum(row['bytes'] for row in rows))}" in heading
        group.locator("summary").click()
        assert group.get_by_text("What to do:").is_visible()
        assert group.get_by_text(rows[0]["path"], exact=True).is_visible()
        assert group.get_by_text(re.compile("Nothing was changed|in place")).first.is_visible()
    group.get_by_role("link", name=re.compile("^Show")).click()
    page.get_by_role("status").filter(has_text=f"{len(rows)} of 12\u202f000 images on {len(hosts)} hosts").wait_for()


def test_what_is_left(page):
    table = section(page, "Status").get_by_role("table", name="Images by state")
    left = [row for row in ROWS if row["state"] in PENDING]
    told = table.get_by_role("row", name="still to migrate").inner_text().split("\t")
    assert told == ["still to migrate", number(len(left)), size(sum(row["bytes"] for row in left))]
    parts = table.get_by_role("row").filter(has=page.get_by_role("link")).all_inner_texts()
    counted = {part.split("\t")[0]: int(part.split("\t")[1].replace("\u202f", "")) for part in parts}
    assert counted.pop("still to migrate") + counted["migrated"] == len(ROWS) == sum(counted.values())
    assert f"{number(len(left))} images ({told[2]}) still to migrate" in page.get_by_role("banner").inner_text()
    table.get_by_role("row", name="still to migrate").get_by_role("link").click()
    page.get_by_role("status").filter(has_text=f"{number(len(left))} of 12\u202f000 images").filter(
        has_text=f", {told[2]} on disk"
    ).wait_for()


def test_which_vm_is_it(page):
    row = next(row for row in ROWS if row["state"] == "failed" and row["domains"])
    page.get_by_role("searchbox", name="Contains").fill(row["path"])
    cells = page.get_by_role("row", name=row["path"]).get_by_role("cell").all_inner_texts()
    assert cells[0] == row["domains"][0]
    page.get_by_role("button", name="Clear filter").click()
    page.get_by_role("textbox", name="Domain").fill(row["domains"][0])
    assert page.get_by_role("row", name=row["path"]).is_visible()


def test_how_do_i_undo_this_one(page):
    row = next(row for row in ROWS if row["state"] == "migrated" and row["host"] == "hv054.example.com")
    section(page, "Hosts and images").get_by_role("link", name="hv054.example.com").click()
    line = page.get_by_role("row", name=row["path"])
    line.get_by_text("Undo", exact=True).click()
    command = ROLLBACK.format(host=row["host"], record=row["record"])
    assert line.get_by_text(command, exact=True).is_visible()
    assert copied(page, line.get_by_role("button", name="Copy")) == command == row["rollback"]


def test_what_do_i_run_next(page):
    follow = section(page, "Next")
    assert follow.get_by_role("button", name="Copy").count() == 2
    left = [host["host"] for host in SUMMARY["hosts"] if host["left"] and host["state"] not in ("unreached", "missing")]
    assert copied(page, follow.get_by_role("button", name="Copy").first) == command("migrate", left)
    away = ",".join(host["host"] for host in SUMMARY["hosts"] if host["state"] == "unreached")
    assert follow.get_by_text(f"ansible-playbook -i inventory.yml vmimage.qcow.migrate -l {away}").is_visible()


def test_what_do_i_retry(page):
    retry = section(page, "What to retry")
    retry.get_by_text("60 hosts, as a list").click()
    assert copied(page, retry.get_by_role("button", name="Copy").first) == ",".join(entry["host"] for entry in SUMMARY["retry"])
    retry.get_by_text("The commands").click()
    assert copied(page, retry.get_by_role("button", name="Copy").last).splitlines() == [entry["command"] for entry in SUMMARY["retry"]]


def test_what_is_damaged_and_where(page):
    row = next(row for row in ROWS if row["damage"])
    page.get_by_role("searchbox", name="Contains").fill(row["path"])
    line = page.get_by_role("row", name=row["path"])
    for text in row["damage"]["text"].splitlines():
        assert line.get_by_text(text, exact=True).is_visible()
    line.get_by_text("Details", exact=True).click()
    assert line.get_by_text(row["damage"]["ranges"][0]).is_hidden()
    line.get_by_text("3 damaged ranges").click()
    assert line.get_by_text(row["damage"]["ranges"][0]).is_visible()


def test_how_old_is_what_i_see(page):
    page.get_by_label("Host", exact=True).fill("hv042.example.com")
    row = page.get_by_role("table", name="Hosts", exact=True).get_by_role("row", name="hv042.example.com")
    assert "not reached\nsince 2026-11-29 01:12 UTC" in row.inner_text()
    assert "2026-11-28 22:04 UTC\n6 hours before this report" in row.inner_text()


def test_which_runs_were_there(page):
    history = section(page, "History")
    history.get_by_text("2 runs").click()
    migrate = history.get_by_role("row", name="migrate").get_by_role("cell").all_inner_texts()
    migrated = sum(row["state"] == "migrated" for row in ROWS)
    assert migrate[:4] == ["migrate", "2026-11-29 04:11 UTC", "295 of 300", number(migrated)]


def test_do_we_go(visit, page_of):
    page = visit(page_of("before", 300, 40))
    told = page.get_by_role("banner").inner_text()
    assert (
        "295 hosts looked at, 5 not reached since 2026-11-29 01:12 UTC: 12\u202f000 images to migrate; 40 of them would be refused." in told
    )
    assert "Not all can go: 40 images would be refused and 5 hosts could not be looked at. The others can. It needs about " in told
    assert "TiB of space" in told
    assert page.get_by_text("ansible-playbook -i inventory.yml vmimage.qcow.migrate -l hv001.example.com,hv002.example.com,").is_visible()
    assert section(page, "What stands against it, and why").locator("summary").count() == 4
    assert page.get_by_text("Go: nothing stands against it.").count() == 0
    assert "Go: nothing stands against it." in visit(page_of("before", 3, 9)).get_by_role("banner").inner_text()


def test_how_far_is_it(visit, page_of):
    page = visit(page_of("during", 300, 40))
    every = [host["host"] for host in SUMMARY["hosts"]]
    assert section(page, "Next").get_by_text(command("status", every), exact=True).is_visible()
    assert section(page, "Next").get_by_text(command("stop", every), exact=True).is_visible()
    assert section(page, "Status").get_by_role("row", name="running").count() == 2
