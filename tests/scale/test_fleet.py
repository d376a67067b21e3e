# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The night of `make fleet` in small: the report is true after each step, and nothing begins when the window has closed or the run was stopped."""

import pathlib

import pytest

from ansible_collections.vmimage.qcow.tests.scale.fleet import STEPS, Fleet, night
from ansible_collections.vmimage.qcow.tests.support.require import require_tool


@pytest.mark.timeout(900)
def test_a_night(tmp_path: pathlib.Path) -> None:
    require_tool("ssh")
    # One host at a time and a copy of some seconds: much is left when the window closes, and when the first is done.
    fleet = Fleet(str(tmp_path), hosts=6, images=2, unreachable=1, refusing=1, forks=1, window=20, bandwidth="200K")
    steps = {step.name: step for step in night(fleet)}
    assert list(steps) == list(STEPS)
    assert (steps["window"].late, steps["stop"].late) == (0, 0)
    assert steps["scan"].left == fleet.to_migrate + fleet.refusing
    assert steps["window"].left > steps["stop"].left > steps["rest"].left == fleet.refusing
    assert steps["stop"].migrated < steps["rest"].migrated == fleet.to_migrate
    assert (steps["status"].migrated, steps["status"].left) == (fleet.to_migrate, fleet.refusing)
