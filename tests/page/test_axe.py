# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page is one for everybody: axe-core finds nothing, narrow and wide, light and dark, small and large, closed and opened."""

import pytest

try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:  # the fixture that starts the browser says so
    Axe = None


def complaints(page):
    return [(item["id"], [node["html"] for node in item["nodes"]][:3]) for item in Axe().run(page).response["violations"]]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize(("phase", "hosts", "images"), [("after", 3, 9), ("after", 300, 40), ("before", 3, 9), ("during", 300, 40)])
def test_axe_finds_nothing(visit, page_of, phase, hosts, images, width, dark):
    page = visit(page_of(phase, hosts, images), width=width, dark=dark)
    assert complaints(page) == []
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it does not fit the window"
    page.get_by_role("combobox", name="State").select_option(
        "still to migrate" if phase != "after" else "failed" if hosts == 300 else "migrated"
    )
    page.evaluate("document.querySelectorAll('details').forEach((one, index) => { if (index < 60) { one.open = true; } })")
    page.wait_for_timeout(100)
    page.evaluate("document.querySelectorAll('#list tr:nth-child(-n+3) details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(100)
    assert page.get_by_role("table", name="Images of").or_(page.get_by_role("table", name="Images:")).count() > 0
    assert complaints(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "opened, it does not fit the window"


def test_axe_finds_what_is_wrong(visit, page_of):
    page = visit(page_of("after", 3, 9))
    page.evaluate("document.querySelector('input').closest('label').replaceWith(document.querySelector('input'))")
    assert [name for name, _nodes in complaints(page)] == ["label"]


def test_without_scripts_all_is_there_and_axe_finds_nothing(visit, page_of):
    page = visit(page_of("after", 3, 9), java_script_enabled=False)
    assert page.get_by_role("button").count() == 0 and page.get_by_role("search").count() == 0
    host = page.get_by_role("group").filter(has_text="hv001.example.com").last
    assert page.locator("tr", has_text="web001-0001.qcow").last.is_hidden()
    host.locator("summary").first.click()
    line = page.get_by_role("row", name="/srv/vm/pool1/web001-0001.qcow")
    assert line.is_visible() and "migrated verified" in line.inner_text()
    line.get_by_text("Undo").click()
    assert line.get_by_text("ansible-playbook -i inventory.yml vmimage.qcow.rollback -l hv001.example.com").is_visible()
    page.get_by_role("link", name="hv002.example.com").click()
    assert page.get_by_role("row", name="/srv/vm/pool1/web002-0001.qcow").is_visible()


def test_a_few_screens(visit, page_of):
    assert visit(page_of("after", 300, 40)).evaluate("document.documentElement.scrollHeight") < 3600
