# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A browser for each process of the tests, and pages that are made once."""

import functools
import pathlib
import shutil
import typing as t

import pytest

from ansible_collections.vmimage.qcow.tests.support.fleet_data import fleet
from ansible_collections.vmimage.qcow.tests.support.require import require

try:
    from ansible_collections.vmimage.qcow.tests.support import browser as browsing
except ImportError:
    browsing = None


@pytest.fixture(scope="session", name="chromium")
def start_chromium() -> t.Iterator[t.Any]:
    require(browsing, "needs Playwright for Python (see requirements/dev.in)")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    require(program, "needs Chromium (see tests/support/system-packages.sh)")
    with browsing.chromium(str(program)) as browser:
        yield browser


@pytest.fixture(scope="session", name="write_page")
def find_write_page() -> t.Callable[..., pathlib.Path]:
    require(browsing, "needs Playwright for Python (see requirements/dev.in)")
    return browsing.write_page


@pytest.fixture(scope="session", name="page_of")
def make_page_of(
    tmp_path_factory: pytest.TempPathFactory, write_page: t.Callable[..., pathlib.Path]
) -> t.Callable[[str, int, int], pathlib.Path]:
    """``page_of(phase, hosts, images)``: a file."""
    folder = tmp_path_factory.mktemp("pages")

    @functools.lru_cache
    def make(phase: str, hosts: int, images: int) -> pathlib.Path:
        return write_page(folder / f"{phase}-{hosts}-{images}.html", *fleet(phase, hosts, images))

    return make


@pytest.fixture(name="visit")
def make_visit(chromium: t.Any) -> t.Iterator[t.Callable[..., t.Any]]:
    """``visit(path, fragment, width=, dark=, ...)``: a page in a window of its own. What the browser says of it fails the test, unless ``heard``."""
    contexts, unheard = [], []

    def visit(
        path: pathlib.Path, fragment: str = "", *, width: int = 1600, dark: bool = False, heard: bool = False, **more: t.Any
    ) -> t.Any:
        said = [] if heard else unheard
        context = chromium.new_context(viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light", **more)
        contexts.append(context)
        context.on("console", lambda message: said.append(message.text))
        context.on("weberror", lambda error: said.append(str(error.error)))
        context.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
        page = context.new_page()
        page.goto(path.as_uri() + fragment)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert unheard == []
