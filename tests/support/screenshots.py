# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the pictures of the documentation: ``python -m ansible_collections.vmimage.qcow.tests.support.screenshots docs/images``."""

import pathlib
import sys
import tempfile

from ansible_collections.vmimage.qcow.tests.support.browser import chromium, write_page
from ansible_collections.vmimage.qcow.tests.support.fleet_data import fleet
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

PICTURES = {
    "report-light": ("after", "", 1280, 1500, False),
    "report-dark": ("after", "#state=failed&group=reason", 1280, 1000, True),
    "report-before": ("before", "", 1280, 900, False),
    "report-narrow": ("after", "", 400, 1100, False),
}
"""Name of the file, moment of the migration, what is asked for, width and height, dark."""


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch, chromium(require_tool("chromium")) as browser:
        for name, (phase, fragment, width, height, dark) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
            page.goto(write_page(pathlib.Path(scratch, f"{phase}.html"), *fleet(phase, 300, 40)).as_uri() + fragment)
            page.screenshot(path=folder / f"{name}.png")
            page.close()


if __name__ == "__main__":
    main()
