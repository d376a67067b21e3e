# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that jobs are run in and faults are injected into; ways in which files get other inode numbers."""

from typing import Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.faults import Server
from ansible_collections.vmimage.qcow.tests.support.moves import MOVES


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(params=sorted(MOVES))
def move(request: pytest.FixtureRequest) -> Callable[[str], None]:
    return MOVES[request.param]
