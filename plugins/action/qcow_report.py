# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps on the controller what is known of each host, and makes one report of all hosts of that."""

from __future__ import annotations

import os
import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.plugins.action import ActionBase

from ansible_collections.vmimage.qcow.plugins.plugin_utils import (
    fleet,
    fleet_files,
    host_merge,
    host_report,
    next_command,
    plan_files,
    run_history,
    terminal,
    this_run,
)
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import Replacing
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "path": {"type": "str"},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "title": {"type": "str", "default": "QCOW version 1 migration"},
    "play": {"type": "str", "choices": list(host_report.PLAYS)},
    "results": {"type": "dict"},
    "requested_paths": {"type": "list", "elements": "str", "default": []},
    "limits": {"type": "dict", "default": {}},
    "write_plan": {"type": "bool", "default": True},
    "plan_speed": {"type": "str", "default": "200M"},
    "fail_on_found": {"type": "bool", "default": False},
}

OFTEN = 60.0
"""Seconds from one report of all hosts to the next, at least, while a run still has batches of hosts before it."""

Variables = t.Dict[str, t.Any]


class ActionModule(ActionBase):
    """All of it: there is nothing to do on a host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: Variables | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        _checked, args = self.validate_argument_spec(ARGUMENTS, required_by={"results": ("play",)}, required_one_of=[("path", "results")])
        try:
            args["plan_speed"] = human_to_bytes(args["plan_speed"])
        except ValueError as error:
            raise AnsibleActionFail(f"plan_speed: {error}") from error
        if args["plan_speed"] < 1:
            raise AnsibleActionFail("plan_speed: the minimum is 1 byte per second")
        directory = os.path.abspath(os.path.expanduser(args["path"])) if args["path"] else None
        variables = task_vars or {}
        result["changed"] = False
        try:
            if args["results"] is not None:
                result.update(self._of_host(args, directory, str(variables.get("inventory_hostname", ""))))
            elif directory is not None:
                result.update(self._of_all(args, directory, variables))
        except OSError as error:
            raise AnsibleActionFail(f"The report cannot be created: {error}. What is known of the hosts was not changed.") from error
        return result

    def _of_all(self, args: dict[str, t.Any], directory: str, variables: Variables) -> dict[str, t.Any]:
        """Make the report of all hosts."""
        page, write = os.path.join(directory, fleet_files.PAGE), not self._task.check_mode
        if write:
            os.makedirs(directory, exist_ok=True)
        elif not os.path.isdir(directory):
            return {"changed": True, "report": page, "totals": fleet.Fleet().summary()["totals"]}
        if write and not _last_batch(variables) and _goes_on(variables) and _age(page) < OFTEN:
            return {"report": page}
        inventory = [str(source) for source in variables.get("ansible_inventory_sources") or []]
        changed, totals = fleet_files.make(directory, args["hosts"], args["title"], inventory=inventory, write=write)
        return {"changed": changed, "report": page, "totals": totals}

    def _of_host(self, args: dict[str, t.Any], directory: str | None, host: str) -> dict[str, t.Any]:
        """What one host's run amounts to; kept in ``directory``, except in check mode."""
        play = args["play"]
        results = host_report.Results(**{name: host_report.ran(args["results"].get(name)) for name in host_report.Results._fields})
        left = host_report.problems(play, results, host, fail_on_found=args["fail_on_found"])
        if directory is not None and not self._task.check_mode:
            try:
                _keep(args, directory, host, results)
            except Exception as error:  # what this host has returned must not end the report of the others
                left.append(f"The report of this host cannot be written: {error}.")
        terminal.tell(f"[{host}] {line}" for line in host_report.ways_back(results, host))
        return host_report.told(play, host, results, left, check_mode=self._task.check_mode)


def _keep(args: dict[str, t.Any], directory: str, host: str, results: host_report.Results) -> None:
    """Take what was returned into what is kept of the host and of the run, and write its plan."""
    os.makedirs(directory, exist_ok=True)
    play, paths = args["play"], args["requested_paths"]
    run = Run(
        play, _moment(time.time()), paths, args["limits"], args["plan_speed"], this_run.ID, _moment(this_run.STARTED), next_command.given()
    )
    host_merge.keep(directory, host, run, results)
    if play not in ("status", "stop") and not results.hooks.get("again"):
        run_history.add(directory, run_history.line_of(host, run, results))
    if play == "scan" and args["write_plan"] and results.reached:
        with Replacing(directory, plan_files.name_of(host)) as replaced:
            replaced.stream.write(plan_files.text(host, directory, run.moment, paths, results.planned, args["plan_speed"]))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _last_batch(variables: Variables) -> bool:
    """Whether no batch of hosts (``serial``) comes after this one."""
    batch, every = variables.get("ansible_play_batch") or [], variables.get("ansible_play_hosts") or []
    return not batch or not every or batch[-1] == every[-1]


def _goes_on(variables: Variables) -> bool:
    """Whether there is no sign that the run ends with this batch of hosts: one that has failed may end it."""
    if len(variables.get("ansible_play_hosts") or []) < len(variables.get("ansible_play_hosts_all") or []):
        return False
    names = [f"__{play}_told" for play in host_report.PLAYS]
    known, batch = variables.get("hostvars", {}), variables.get("ansible_play_batch") or []
    told = (known[host].get(name) for host in batch if host in known for name in names)
    return not any(one.get("problems") for one in told if isinstance(one, dict))


def _age(path: str) -> float:
    """Seconds since a file was written; endless where there is none."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return float("inf")
