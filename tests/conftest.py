# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all tests share: hypothesis profiles, the locale of the tools they start, and a place to tell how much was tried."""

import os
import time
from collections import Counter
from typing import Any, Callable

import hypothesis
import pytest

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
# In CI a red run must be repeatable from its log alone: no time limits that depend on the machine's load, fixed examples.
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI", "").lower() == "true" else "default")


@pytest.fixture(autouse=True)
def _plain_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools speak English, whatever the developer's locale."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``tell(text, **counts)``: to be printed at the end of the run, with the seconds since the test began; counts of all tests are added up."""
    started = time.monotonic()

    def note(text: str, **counts: int) -> None:
        record_property("told", ("%s (%.1f s)" % (text, time.monotonic() - started), counts))

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests told, whichever process ran them."""
    told = [
        (report.nodeid.rpartition("/")[2], *value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "told" and getattr(report, "when", "") == "call"
    ]
    if told:
        terminalreporter.section("what the tests tell")
        totals: Counter[str] = Counter()
        for nodeid, text, counts in sorted(told, key=lambda entry: entry[:2]):
            terminalreporter.write_line("%s: %s" % (nodeid, text))
            totals.update(counts)
        if totals:
            terminalreporter.write_line("in all: " + ", ".join("%s %d" % entry for entry in sorted(totals.items())))
