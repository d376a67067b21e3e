# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sorting, filtering and grouping in a browser: what is shown is what the rows say."""

import re

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_words import PENDING
from ansible_collections.vmimage.qcow.tests.support.fleet_data import fleet

SUMMARY, ROWS = fleet("after", 300, 40)


@pytest.fixture(name="page")
def open_page(visit, page_of):
    return visit(page_of("after", 300, 40))


def number(text):
    return int("".join(filter(str.isdigit, text.partition(" image")[0].rpartition(" of ")[0] or text.partition(" image")[0])))


def shown(page):
    """Paths of the images that are seen, in their order."""
    return page.locator("#list th code:visible").all_inner_texts()


def everything(page):
    while page.get_by_role("button", name="Show more").count():
        page.get_by_role("button", name="Show more").first.click()
    return shown(page)


def paths(wanted):
    return {row["path"] for row in ROWS if wanted(row)}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("Contains", "web104-00", lambda row: "web104-00" in row["path"]),
        ("Contains", "CANNOT BE READ", lambda row: row["damage"] is not None),
        ("Host", "hv054.example.com", lambda row: row["host"] == "hv054.example.com"),
        ("Host", "hv05", lambda row: row["host"].startswith("hv05")),
        ("Domain", "web054-0002", lambda row: "web054-0002" in row["domains"]),
        ("Domain", "web054-000", lambda row: any("web054-000" in name for name in row["domains"])),
    ],
)
def test_filter_by_text(page, field, value, wanted):
    page.get_by_label("Group images by").select_option("nothing")
    page.get_by_label(field, exact=True).fill(value)
    assert set(everything(page)) == paths(wanted)
    assert number(page.get_by_role("status").inner_text()) == len(paths(wanted))


@pytest.mark.parametrize("state", ["failed", "interrupted", "deferred", "migrated", "left", "pending"])
def test_filter_by_state(page, state):
    page.get_by_role("combobox", name="State").select_option(state)
    wanted = [row for row in ROWS if row["state"] == state or (state == "pending" and row["state"] in PENDING)]
    assert number(page.get_by_role("status").inner_text()) == len(wanted)
    hosts = {row["host"] for row in wanted}
    assert f"{len(hosts)} host" in page.get_by_role("status").inner_text()


def test_filter_by_reason_and_state_together_and_back(page):
    page.get_by_role("combobox", name="Reason").select_option("in-use")
    page.get_by_role("combobox", name="State").select_option("failed")
    assert set(shown(page)) == paths(lambda row: row["reason"] == "in-use")
    page.get_by_role("button", name="Clear filter").click()
    page.get_by_role("status").filter(has_text=re.compile("^12\u202f000 images on 300 hosts")).wait_for()
    assert shown(page) == []


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("Image", lambda row: row["path"]),
        ("On disk", lambda row: row["bytes"]),
        ("Virtual size", lambda row: row["virtual_size"]),
        ("Result", lambda row: row["bytes_after"]),
        ("Time", lambda row: row["seconds"]),
    ],
)
def test_sort(page, column, key):
    page.get_by_label("Group images by").select_option("nothing")
    page.get_by_role("combobox", name="State").select_option("migrated")
    rows = [row for row in ROWS if row["state"] == "migrated"]
    by_path = {row["path"]: row for row in rows}
    table = page.get_by_role("table", name="Images: all")
    for reverse, direction in ((False, "ascending"), (True, "descending")):
        table.get_by_role("button", name=column).click()
        header = table.get_by_role("columnheader", name=column)
        assert header.get_attribute("aria-sort") == direction
        assert page.evaluate("document.activeElement.textContent") == column, "the keyboard is where it was"
        values = [key(by_path[path]) for path in shown(page)]
        assert len(values) == 100
        assert values == sorted(map(key, rows), reverse=reverse)[:100]


def test_sort_by_state(page):
    page.get_by_label("Group images by").select_option("nothing")
    page.get_by_role("table", name="Images: all").get_by_role("button", name="State").click()
    states = {row["path"]: row["state"] for row in ROWS}
    assert [states[path] for path in shown(page)][:53] == ["failed"] * 48 + ["interrupted"] * 5


def test_sort_hosts(page):
    table = page.get_by_role("table", name="Hosts", exact=True)
    for reverse in (False, True):
        table.get_by_role("button", name="To migrate").click()
        seen = [int(text) for text in table.locator("td[data-label='To migrate']").all_inner_texts()]
        left = [host["left"] for host in SUMMARY["hosts"]]
        assert seen == sorted(left, reverse=reverse)[:10]
    page.get_by_role("button", name="Show all 300 hosts").click()
    assert table.get_by_role("row").count() == 301
    assert page.evaluate("document.activeElement.tagName") == "A"


@pytest.mark.parametrize(("by", "groups"), [("reason", 9), ("state", 5)])
def test_group(page, by, groups):
    page.get_by_label("Group images by").select_option(by)
    assert page.locator("#list > details").count() == groups
    texts = page.locator("#list > details > summary").all_inner_texts()
    counted = [re.search(r"(\d[\d\u202f]*) images?,", text) for text in texts]
    assert sum(int(found.group(1).replace("\u202f", "")) for found in counted) == len(ROWS)


def test_the_address_is_the_view(page, visit, page_of):
    page.get_by_role("combobox", name="State").select_option("deferred")
    page.get_by_label("Host", exact=True).fill("hv006")
    page.get_by_label("Group images by").select_option("nothing")
    page.get_by_role("button", name="On disk").last.click()
    page.get_by_role("button", name="On disk").last.click()
    fragment = page.evaluate("location.hash")
    colleague = visit(page_of("after", 300, 40), fragment)
    assert shown(colleague) == shown(page) != []
    assert colleague.get_by_role("status").inner_text() == page.get_by_role("status").inner_text()
    page.get_by_role("table", name="Images by state").get_by_role("row", name="failed").get_by_role("link").click()
    assert page.evaluate("location.hash") == "#state=failed"
    page.get_by_role("status").filter(has_text="48 of 12\u202f000 images").wait_for()


def test_by_the_keyboard_alone(page):
    page.get_by_role("searchbox").focus()
    page.keyboard.type("web054-0005")
    for _step in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Details":
            break
    page.keyboard.press("Enter")
    row = page.get_by_role("row", name="/srv/vm/pool1/web054-0005.qcow")
    assert row.get_by_text("3 damaged ranges").is_visible()


def test_one_host_with_many_images(visit, page_of):
    page = visit(page_of("after", 1, 5000))
    page.locator("#list summary").first.click()
    assert len(shown(page)) == 100
    page.get_by_role("button", name="Show more").click()
    assert len(shown(page)) == 200
