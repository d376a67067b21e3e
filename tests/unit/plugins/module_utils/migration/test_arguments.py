# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugin tells the module of its run."""

import time
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.action import qcow_convert
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import arguments


def settings(max_minutes: float) -> Any:
    params = {name: option.get("default") for name, option in arguments.ARGUMENTS.items()}
    return arguments.settings_of(dict(params, max_minutes=max_minutes), check_mode=False)


def test_both_sides_name_the_same_variables() -> None:
    for name in ("WATCHED_AS", "RUN_AGE", "SENT"):
        assert getattr(qcow_convert, name) == getattr(arguments, name)


@pytest.mark.parametrize(("ago", "late"), [(0.0, 0.0), (120.0, 120.0), (-40.0, 0.0), (7200.0, 0.0)])
def test_time_on_the_way_is_part_of_the_window_and_of_the_run(monkeypatch: pytest.MonkeyPatch, ago: float, late: float) -> None:
    """Unless it can only be the difference of two clocks."""
    monkeypatch.setenv(arguments.SENT, str(time.time() - ago))
    monkeypatch.setenv(arguments.RUN_AGE, "60")
    found = settings(30)
    assert found.max_minutes == pytest.approx(30 - late / 60, abs=0.5)
    assert found.run_age == pytest.approx(60 + late, abs=30)
    assert settings(1).max_minutes >= 0
