# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The system's Chromium, driven by Playwright, and the page of a made-up fleet as a file for it."""

import contextlib
import pathlib
import typing as t
from datetime import datetime

from playwright.sync_api import Browser, sync_playwright

from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page import render
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page_rows import tally_of
from ansible_collections.vmimage.qcow.tests.support.fleet_data import MADE, Facts

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium(program: str) -> t.Iterator[Browser]:
    """A browser without windows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def write_page(target: pathlib.Path, summary: Facts, rows: t.Iterable[Facts]) -> pathlib.Path:
    """The page of a fleet as a file."""
    with target.open("w", encoding="utf-8") as stream:
        stream.writelines(
            render(summary, rows, tally_of(rows), "QCOW version 1 migration", datetime.fromisoformat(MADE), Hosts(["inventory.yml"]))
        )
    return target
