# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real libvirtd, one for each file of tests that needs it, without domains and pools at the start of each test."""

from typing import Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.libvirtd import Libvirtd


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Libvirt's tests boot guests."""
    for item in items:
        if "libvirtd" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    daemon = Libvirtd(tmp_path_factory.mktemp("libvirtd"))
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    yield libvirtd
    libvirtd.clear()
