# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work on an image by this process alone, and by a pool of workers."""

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils import _workers


@pytest.fixture(params=["alone", "workers"])
def hands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who does the work, however small it is."""
    monkeypatch.setattr(_workers, "SMALL", 1 << 62 if request.param == "alone" else -1)
    return str(request.param)
