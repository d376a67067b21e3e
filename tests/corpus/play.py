# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook vmimage.qcow.migrate on a folder of this machine."""

import json
import os
import pathlib
from typing import Any, NamedTuple, Optional

from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, path_of

__all__ = ["Played", "path_of", "play"]


class Played(NamedTuple):
    """A finished run: exit code, what it printed, what it changed and converted, and the images of the report on the controller."""

    returncode: int
    output: str
    lines: list[dict[str, Any]]
    changed: int
    converted: list[dict[str, Any]]
    report: Optional[list[dict[str, Any]]]


def play(scratch: pathlib.Path, root: bytes, *arguments: str, environment: Optional[dict[str, str]] = None, **variables: Any) -> Played:
    """Run ``vmimage.qcow.migrate`` on a folder. ``scratch`` takes the state, the report and the recording."""
    settings = {
        "migrate_paths": os.fsdecode(root),
        "migrate_state_dir": str(scratch / "state"),
        "migrate_report_dir": str(scratch / "reports"),
        **variables,
    }
    done = Controller(scratch).run("migrate", *arguments, environment=environment, **settings)
    report = scratch / "reports" / "images.jsonl"
    kept = [json.loads(line) for line in report.read_text(encoding="utf-8").split("\n") if line] if report.exists() else None
    return Played(done.returncode, done.output, done.lines, done.changed, done.converted, kept)
