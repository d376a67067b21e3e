# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a window, as people write it."""

import datetime as dt
import subprocess
import sys
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.action.qcow_convert import ActionModule
from ansible_collections.vmimage.qcow.plugins.module_utils._options import OptionError, require_at_least
from ansible_collections.vmimage.qcow.plugins.plugin_utils.until import seconds_until

STARTED = dt.datetime(2026, 12, 5, 22, 0, tzinfo=dt.timezone.utc).timestamp()  # a Saturday, 23:00 in Berlin


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("05:30 Europe/Berlin", 6.5),
        ("5:30 Europe/Berlin", 6.5),
        (" 05:30:00 UTC ", 7.5),
        ("05:30Z", 7.5),
        ("05:30+01:00", 6.5),
        ("05:30 -0500", None),
        ("23:59 Europe/Berlin", 59 / 60),
        ("2026-12-06 05:30+01:00", 6.5),
        ("2026-12-06T05:30 Europe/Berlin", 6.5),
        ("2026-12-07 05:30 UTC", 31.5),
        ("22:00 UTC", 0),
    ],
)
def test_the_next_such_moment(text: str, hours: float | None) -> None:
    if hours is None:
        with pytest.raises(OptionError, match="12 h 30 min ahead"):
            seconds_until(text, STARTED)
    else:
        assert seconds_until(text, STARTED) == hours * 3600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("05:30", "no time zone. Add one: 05:30 UTC"),
        ("05:30 Europe/Berln", "Europe/Berln is not a time zone"),
        ("05:30 ../../etc/passwd", "is not a time zone"),
        ("22:55 Europe/Berlin", "23 h 55 min ahead. If that is what you mean, give the date, too: 2026-12-06 22:55 Europe/Berlin"),
        ("2026-12-05 21:30 UTC", "was 30 min before this run was started"),
        ("25:30 UTC", "is not a time"),
        ("2026-13-01 05:30 UTC", "is not a time"),
        ("half past five", "is not a time. Give it as 05:30 Europe/Berlin"),
        ("05:30+99:00", "is not a time zone"),
        ("", "is not a time"),
    ],
)
def test_what_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words.replace("+", "[+]")):
        seconds_until(text, STARTED)


def test_a_night_in_which_the_clock_is_changed() -> None:
    """At 02:00 UTC on 2026-10-25 Berlin has had the hour from two to three twice."""
    started = dt.datetime(2026, 10, 24, 22, 0, tzinfo=dt.timezone.utc).timestamp()
    assert seconds_until("05:30 Europe/Berlin", started) == 6.5 * 3600


def test_a_run_begins_with_its_process() -> None:
    """Not with the first task of this collection: hooks come before."""
    imported = "from ansible_collections.vmimage.qcow.plugins.plugin_utils import this_run"
    code = "import time; time.sleep(1); " + imported + "; print(this_run.age(), time.time() - this_run.STARTED)"
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.split()
    assert all(1 <= float(seconds) < 60 for seconds in told), told


@pytest.mark.parametrize("minutes", [[5], {"a": 1}, "nan", "1e400", "x", -1])
def test_minutes_that_are_none_are_left_to_the_module(minutes: Any) -> None:
    args = {"max_minutes": minutes}
    ActionModule._close_window(object.__new__(ActionModule), args)
    assert args == {"max_minutes": minutes}


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), -1.0])
def test_minutes_that_are_none_are_refused(minutes: float) -> None:
    with pytest.raises(OptionError, match="max_minutes"):
        require_at_least({"max_minutes": minutes}, max_minutes=0)
