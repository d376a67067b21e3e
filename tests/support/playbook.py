# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks for real, on this machine, with any supported ansible-core, and tells what each task returned."""

import base64
import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, NamedTuple, Optional

from ansible_collections.vmimage.qcow.tests.support.require import require

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))

CORES = {"2.16": "3.6", "2.17": "3.7", "2.18": "3.8", "2.19": "3.8", "2.20": "3.9", "2.21": "3.9"}
"""Every ansible-core that is supported, and the oldest Python that it talks to on a host."""


def interpreter(version: str) -> str:
    """A Python of this version; the test is skipped (fails in CI) where this machine has none."""
    known = glob.glob("%s/versions/%s.*/bin/python" % (os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")), version))
    path = known[0] if known else shutil.which("python" + version)
    require(path, "needs Python %s" % version)
    return str(path)


def environment_of(core: str) -> pathlib.Path:
    """The directory with the programs of an ansible-core (`make .venv-core-VERSION/ready`)."""
    if core == "2.19":
        return pathlib.Path(sys.executable).parent
    programs = ROOT / (".venv-core-" + core) / "bin"
    require((programs / "ansible-playbook").exists(), "needs %s" % programs)
    return programs


class Played(NamedTuple):
    """A finished run: exit code, what it printed, and the recorded lines, one a task and host, the counts of all hosts last."""

    returncode: int
    output: str
    lines: list[dict[str, Any]]
    errors: str = ""
    """What was printed to standard error, where that was kept apart."""

    @property
    def text(self) -> str:
        """What was printed, all white space alike: callbacks of different cores break lines at different places."""
        return " ".join(self.output.replace("\\n", " ").split())

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The counts of each host."""
        return self.lines[-1]["hosts"] if self.lines else {}

    @property
    def changed(self) -> int:
        """Tasks that changed something, over all hosts."""
        return sum(host["changed"] for host in self.counts.values())

    def results(self, module: str, host: str = "") -> list[dict[str, Any]]:
        """What a module has returned, task by task."""
        return [line["result"] for line in self.lines if line.get("module", "").endswith(module) and (not host or line["host"] == host)]

    @property
    def converted(self) -> list[dict[str, Any]]:
        """What qcow_convert returned for each image."""
        return [image for result in self.results("qcow_convert")[:1] for image in result.get("images", [])]


def path_of(image: dict[str, Any], role: str) -> bytes:
    """The exact path of ``src`` or ``dest`` in a result."""
    encoded = image.get(role + "_base64")
    return base64.b64decode(encoded) if encoded else os.fsencode(image[role])


class Controller:
    """An ansible-core, an inventory, and a directory that it is started in.

    :param hosts: variables by the names of hosts; all of them are this machine, and in the group ``vm_hosts``.
    :param python: version of the Python that runs the modules; the controller's own if not given.
    """

    def __init__(
        self, scratch: pathlib.Path, *, core: str = "2.19", python: str = "", hosts: Optional[dict[str, dict[str, Any]]] = None
    ) -> None:
        self.scratch = scratch
        self.programs = environment_of(core)
        self.record = scratch / "results.jsonl"
        self.work = scratch / "controller"
        self.work.mkdir(exist_ok=True)
        here = {
            "ansible_connection": "local",
            "ansible_python_interpreter": interpreter(python) if python else "{{ ansible_playbook_python }}",
        }
        every = {name: dict(here, **variables) for name, variables in (hosts or {"localhost": {}}).items()}
        (self.work / "inventory.json").write_text(json.dumps({"vm_hosts": {"hosts": every}, "others": {"hosts": {"other": here}}}))
        (self.work / "ansible.cfg").write_text("[defaults]\ncallbacks_enabled = record_results\n")

    def start(
        self, playbook: str, *arguments: str, environment: Optional[dict[str, str]] = None, apart: bool = False, **variables: Any
    ) -> "subprocess.Popen[str]":
        """Start a playbook of the collection, or a file, in a session of its own; ``variables`` are given as extra variables in JSON.

        :param apart: keep standard error apart from the output.
        """
        self.record.unlink(missing_ok=True)
        name = playbook if playbook.endswith(".yml") else "vmimage.qcow." + playbook
        command = [str(self.programs / "ansible-playbook"), "-i", "inventory.json", "-e", json.dumps(variables), name, *arguments]
        return subprocess.Popen(
            command,
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                "PWD": str(self.work),
                "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
                "ANSIBLE_CONFIG": str(self.work / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
                "RECORD_RESULTS": str(self.record),
                "ANSIBLE_LOCAL_TEMP": str(self.scratch / "local"),
                "ANSIBLE_REMOTE_TEMP": str(self.scratch / "remote"),
                **(environment or {}),
            },
        )

    def ended(self, process: "subprocess.Popen[str]") -> Played:
        """Wait for what was started."""
        try:
            output, errors = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
        lines = [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()] if self.record.exists() else []
        return Played(process.returncode, output, lines, errors or "")

    def run(
        self, playbook: str, *arguments: str, environment: Optional[dict[str, str]] = None, apart: bool = False, **variables: Any
    ) -> Played:
        """Start a playbook, see :meth:`start`, and wait for it."""
        return self.ended(self.start(playbook, *arguments, environment=environment, apart=apart, **variables))
