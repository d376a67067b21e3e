# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of styles in which text files name images is the one that is tested."""

import pathlib

from ansible_collections.vmimage.qcow.tests.support.reference_styles import table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "docsite" / "rst" / "references.rst"


def test_the_table_is_the_one_that_is_tested() -> None:
    assert "     - found\n" + table() + "\n" in PAGE.read_text()
