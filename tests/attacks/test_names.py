# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of files as data: whatever a name holds, it does nothing on a terminal, in a table or on a page."""

import csv
import json
import os
import pathlib
import unicodedata

import pytest

from ansible_collections.vmimage.qcow.plugins.action import qcow_convert
from ansible_collections.vmimage.qcow.plugins.action.qcow_report import make
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_report
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import cell, visible
from ansible_collections.vmimage.qcow.tests.support.returned import converted, looked_at

EVIL = [
    "\x1b[2K\r\x1b[32mok: [hv1]",
    "\x9b31mred",
    "\x1b]0;title\x07",
    "line\nok: [hv1] => changed",
    "\u202egnp.wocq",
    "\u2066isolate\u2069",
    "zero\u200bwidth",
    "paragraph\u2029end",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "caf\u00e9 \u65e5\u672c",
]


def acts(text: str) -> list[str]:
    """The characters in a text that do something other than be seen."""
    return [character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.mark.parametrize("name", EVIL)
def test_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(qcow_convert.display, "display", shown.append)
    action = qcow_convert.ActionModule.__new__(qcow_convert.ActionModule)
    action._host = "hv1"
    action._say("/srv/%s: copy 3 %%" % name)
    path = "/srv/" + name
    results = host_report.Results(done={"images": [converted(path)], "summary": {}})
    failed = host_report.Results(done={"images": [converted(path, failed=True, msg=path + ": damaged")], "summary": {}})
    shown += host_report.lines("migrate", results, check_mode=False) + host_report.lines("migrate", failed, check_mode=False)
    shown += host_report.problems("migrate", failed)
    assert len(shown) >= 4 and not [line for line in shown if acts(line)]
    assert visible(name) == name or acts(name)


@pytest.mark.parametrize("name", EVIL)
def test_table_and_page(name: str, tmp_path: pathlib.Path) -> None:
    path = "/srv/" + name
    report = host_report.report(
        "scan", "hv1", "2026-11-01T02:15:12Z", [path], host_report.Results(found={"images": [looked_at(path)]}), [path]
    )
    (tmp_path / "scan-hv1.json").write_text(json.dumps(report))
    make(os.fspath(tmp_path), ["hv1"], "title")
    with open(tmp_path / "images.csv", newline="") as stream:
        cells = [text for row in csv.reader(stream) for text in row]
    assert not [text for text in cells if acts(text)]
    page = (tmp_path / "index.html").read_text()
    assert not acts(page.replace("\n", "")) and "<script>alert" not in page and "/srv/49" not in page


@pytest.mark.parametrize("name", EVIL)
def test_cell_is_no_formula(name: str) -> None:
    assert cell(name)[:1] not in ("=", "+", "-", "@", "\t", "\r")
