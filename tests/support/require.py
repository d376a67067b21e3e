# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a test needs from the machine, said in one place."""

import os
import shutil

import pytest


def require(condition: object, reason: str) -> None:
    """Skip the running test, with ``reason``, when ``condition`` is false.

    Under ``CI=true`` the test fails instead: there the machine is set up by tests/support/system-packages.sh, and a test
    that silently did not run is a lie. May be called in a test, in a fixture, or at the top of a module.
    """
    if condition:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail("needed in CI, but missing: %s" % reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def require_root() -> None:
    """Skip (fail under CI) when the test does not run as root."""
    require(os.geteuid() == 0, "needs root")


def require_tool(name: str) -> str:
    """Return the path of program ``name``; skip (fail under CI) when PATH does not have it."""
    path = shutil.which(name)
    require(path, "needs the program %s (see tests/support/system-packages.sh)" % name)
    return str(path)
