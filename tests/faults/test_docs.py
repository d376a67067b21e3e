# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The failure tables of the documentation: every row names a test, and every named test is there."""

import pathlib
import re

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "docsite" / "rst" / "safety.rst"


def test_every_row_is_tied_to_a_test() -> None:
    rows = re.split(r"^   \* - ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    rows = [row for row in rows if not row.startswith(("failure\n", "what happens\n"))]
    assert len(rows) > 25
    for row in rows:
        assert re.search(r"``test_\w+\.py::test_\w+``", row), row


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"``(test_\w+\.py)::(test_\w+)``", PAGE.read_text()))
    assert len(named) > 25
    for file_name, test in named:
        texts = [path.read_text() for path in HERE.parent.rglob(file_name)]
        assert any(re.search(r"^def %s\(" % test, text, flags=re.MULTILINE) for text in texts), (file_name, test)
