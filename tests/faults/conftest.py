# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fault tests say how much they have tried: the counts are printed at the end, also from other processes."""

import time
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.faults import Server


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a line with counts, and the seconds since the test began."""
    started = time.monotonic()
    return lambda text: record_property("faults", "%s (%.1f s)" % (text, time.monotonic() - started))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        (report.nodeid.rpartition("/")[2], value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "faults" and getattr(report, "when", "") == "call"
    ]
    if lines:
        terminalreporter.section("fault injection")
        for nodeid, text in sorted(lines):
            terminalreporter.write_line("%s: %s" % (nodeid, text))
