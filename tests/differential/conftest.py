# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says at the end of a run how many random images were compared, however many processes shared the work."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Add up what the tests recorded as ``images``, ``distinct`` and ``libqcow``."""
    totals = {"images": 0, "distinct": 0, "libqcow": 0}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name in totals:
                totals[name] += value
    if totals["images"]:
        terminalreporter.write_line(
            "differential: %(images)d random images (%(distinct)d distinct) converted to raw and to qcow2, identical to qemu-img; "
            "%(libqcow)d of them read by libqcow too" % totals
        )
