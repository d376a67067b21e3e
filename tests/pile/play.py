# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks for real, on this machine, and tells what each task returned."""

import base64
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple, Optional

HERE = pathlib.Path(__file__).resolve().parent
COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))


class Played(NamedTuple):
    """A finished run: exit code, what it printed, the recorded lines and the report written on the controller."""

    returncode: int
    output: str
    lines: list[dict[str, Any]]
    report: Optional[dict[str, Any]]

    @property
    def changed(self) -> int:
        """Tasks that changed something, over all hosts."""
        return sum(host["changed"] for host in self.lines[-1]["hosts"].values())

    @property
    def converted(self) -> list[dict[str, Any]]:
        """What qcow_convert returned for each image."""
        for line in self.lines:
            if line.get("module", "").endswith("qcow_convert"):
                return line["result"].get("images", [])
        return []


def path_of(image: dict[str, Any], role: str) -> bytes:
    """The exact path of ``src`` or ``dest`` in a result."""
    encoded = image.get(role + "_base64")
    return base64.b64decode(encoded) if encoded else os.fsencode(image[role])


def play(
    scratch: pathlib.Path, heap_root: bytes, *arguments: str, environment: Optional[dict[str, str]] = None, **variables: Any
) -> Played:
    """Run ``vmimage.qcow.migrate`` on a folder. ``scratch`` takes the state, the report and the recording."""
    record = scratch / "results.jsonl"
    record.unlink(missing_ok=True)
    settings = {
        "qcow_hosts": "localhost",
        "ansible_python_interpreter": sys.executable,
        "migrate_paths": os.fsdecode(heap_root),
        "migrate_state_dir": str(scratch / "state"),
        "migrate_report_dir": str(scratch / "reports"),
        **variables,
    }
    (scratch / "ansible.cfg").write_text("[defaults]\ncallbacks_enabled = record_results\n", encoding="utf-8")
    done = subprocess.run(
        [
            os.path.join(os.path.dirname(sys.executable), "ansible-playbook"),
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            json.dumps(settings),
            "vmimage.qcow.migrate",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
            "ANSIBLE_CONFIG": str(scratch / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
            "RECORD_RESULTS": str(record),
            "ANSIBLE_LOCAL_TEMP": str(scratch / "local"),
            "ANSIBLE_REMOTE_TEMP": str(scratch / "remote"),
            **(environment or {}),
        },
    )
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []
    report = scratch / "reports" / "migrate-localhost.json"
    return Played(
        done.returncode, done.stdout + done.stderr, lines, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    )
