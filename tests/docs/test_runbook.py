# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the runbook tells a person to look for is on the page of the fleet under that name. (Its commands are run by test_examples.py.)"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "docsite" / "rst" / "runbook.rst").read_text(encoding="utf-8")
PAGE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "plugins" / "plugin_utils" / "templates").glob("report.html.j2"))


def test_names_of_parts_of_the_page() -> None:
    # A phrase in italics that begins with a capital is one; a heading of a paragraph ends with a full stop.
    names = set(re.findall(r"(?<![*\w])\*([A-Z][^*]*[^*.])\*(?![*\w])", " ".join(RUNBOOK.split())))
    assert len(names) >= 8, names
    assert [name for name in sorted(names) if name not in PAGE] == []
