# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tells what a run amounts to, on the controller."""

from __future__ import annotations

import os
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_report, terminal
from ansible_collections.vmimage.qcow.plugins.plugin_utils.run_total import Run

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "play": {"type": "str", "required": True, "choices": list(host_report.PLAYS)},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "counts": {"type": "list", "elements": "dict", "required": True},
    "path": {"type": "str"},
    "write_plan": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    """All of it: there is nothing to do on a host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        _checked, args = self.validate_argument_spec(ARGUMENTS)
        directory = os.path.abspath(os.path.expanduser(args["path"])) if args["path"] else None
        told = [entry for entry in args["counts"] if entry]
        planned = directory is not None and args["write_plan"]
        run = Run(args["play"], args["hosts"], told, self._task.check_mode, directory, planned)
        lines = run.lines()
        terminal.tell(lines)
        return dict(result, changed=False, lines=lines, hosts=run.by_state(), report=run.page(), command=run.command())
