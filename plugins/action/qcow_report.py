# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes one report of all hosts, on the controller."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import typing as t
from contextlib import ExitStack
from datetime import datetime, timezone

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.plugins.action import ActionBase

from ansible_collections.vmimage.qcow.plugins.plugin_utils import fleet, host_report, plan_files
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page import render
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import cell

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "path": {"type": "str"},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "title": {"type": "str", "default": "QCOW version 1 migration"},
    "fleet": {"type": "bool", "default": True},
    "play": {"type": "str", "choices": list(host_report.PLAYS)},
    "results": {"type": "dict"},
    "requested_paths": {"type": "list", "elements": "str", "default": []},
    "write_plan": {"type": "bool", "default": True},
    "plan_speed": {"type": "str", "default": "200M"},
    "fail_on_found": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """All of it: there is nothing to do on a host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        _checked, args = self.validate_argument_spec(ARGUMENTS, required_by={"results": ("play",)}, required_one_of=[("path", "results")])
        try:
            args["plan_speed"] = human_to_bytes(args["plan_speed"])
        except ValueError as error:
            raise AnsibleActionFail(f"plan_speed: {error}") from error
        if args["plan_speed"] < 1:
            raise AnsibleActionFail("plan_speed: the minimum is 1 byte per second")
        directory = os.path.abspath(os.path.expanduser(args["path"])) if args["path"] else None
        write = not self._task.check_mode
        result["changed"] = False
        try:
            if args["results"] is not None:
                result.update(self._of_host(args, directory if write else None, str((task_vars or {}).get("inventory_hostname", ""))))
            if directory is not None and args["fleet"]:
                if write:
                    os.makedirs(directory, exist_ok=True)
                elif not os.path.isdir(directory):
                    return dict(result, changed=True, report=os.path.join(directory, "index.html"), totals=fleet.Fleet().totals)
                changed, totals = make(directory, args["hosts"], args["title"], write=write)
                result.update(changed=changed, report=os.path.join(directory, "index.html"), totals=totals)
        except OSError as error:
            raise AnsibleActionFail(f"The report cannot be created: {error}. The reports of the hosts were not changed.") from error
        return result

    def _of_host(self, args: dict[str, t.Any], directory: str | None, host: str) -> dict[str, t.Any]:
        """What one host's run amounts to; kept in ``directory`` unless that is ``None``."""
        play = args["play"]
        results = host_report.Results(**{name: host_report.ran(args["results"].get(name)) for name in host_report.Results._fields})
        left = host_report.problems(play, results, host, fail_on_found=args["fail_on_found"])
        if directory is not None and results.reached:
            try:
                _keep(args, directory, host, results, left)
            except OSError as error:
                left.append(f"The report of this host cannot be written: {error}.")
        return host_report.told(play, host, results, left, check_mode=self._task.check_mode)


def _keep(args: dict[str, t.Any], directory: str, host: str, results: host_report.Results, left: list[str]) -> None:
    """Write the report of one host, and its plan."""
    os.makedirs(directory, exist_ok=True)
    play, paths = args["play"], args["requested_paths"]
    moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    files = {
        f"{play}-{host}.json": json.dumps(host_report.report(play, host, moment, paths, results, left), indent=1, ensure_ascii=False) + "\n"
    }
    if play == "scan" and args["write_plan"]:
        files[plan_files.name_of(host)] = plan_files.text(host, directory, moment, paths, results.planned, args["plan_speed"])
    for name, content in files.items():
        with _Replacing(directory, name, True) as replaced:
            replaced.stream.write(content)


def make(directory: str, hosts: list[str], title: str, *, write: bool = True) -> tuple[bool, dict[str, float]]:
    """Make the report in ``directory`` of what is there.

    :param hosts: that should have reports.
    :return: whether anything was changed, and the totals.
    :raises OSError: where the directory cannot be read or written; each file is the old one or the new one then.
    """
    everything = fleet.Fleet()
    with ExitStack() as stack:
        table = stack.enter_context(_Replacing(directory, "images.csv", write))
        lines = stack.enter_context(_Replacing(directory, "images.jsonl", write))
        writer = csv.writer(table.stream)
        writer.writerow(fleet.COLUMNS)
        for names in fleet.reports(directory, hosts):
            for row in everything.add(names.host, fleet.read(names.scan), fleet.read(names.migrate)):
                writer.writerow([cell(row[column]) for column in fleet.COLUMNS])
                lines.stream.write(json.dumps({column: row[column] for column in fleet.COLUMNS}, ensure_ascii=False) + "\n")
        summary = everything.summary()
        by_host = stack.enter_context(_Replacing(directory, "hosts.csv", write))
        writer = csv.writer(by_host.stream)
        writer.writerow(fleet.HOST_COLUMNS)
        writer.writerows([cell(host[column]) for column in fleet.HOST_COLUMNS] for host in everything.hosts)
        whole = stack.enter_context(_Replacing(directory, "report.json", write))
        json.dump(dict(summary, title=title), whole.stream, indent=1, ensure_ascii=False)
        whole.stream.write("\n")
    changed = any(one.changed for one in (table, lines, by_host, whole))
    page = os.path.join(directory, "index.html")
    if write and (changed or not os.path.exists(page)):
        changed = True
        moment = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        with _Replacing(directory, "index.html", write) as replaced:
            for piece in render(summary, everything.rows(), title, moment):
                replaced.stream.write(piece)
    return changed, summary["totals"]


class _Replacing:
    """A text file that appears whole or not at all, and stays as it is where its content would (context manager)."""

    def __init__(self, directory: str, name: str, write: bool) -> None:
        self._target = os.path.join(directory, name)
        self._write = write
        self.changed = False
        fd, self._temporary = tempfile.mkstemp(dir=directory if write else None, prefix=f".{name}.")
        self.stream = os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="")

    def __enter__(self) -> _Replacing:
        return self

    def __exit__(self, kind: t.Any, *rest: t.Any) -> None:
        try:
            self.stream.close()
            self.changed = kind is None and not _same(self._temporary, self._target)
            if self.changed and self._write:
                os.chmod(self._temporary, 0o644)
                os.replace(self._temporary, self._target)
        finally:
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)


def _same(one: str, other: str) -> bool:
    try:
        with open(one, "rb") as left, open(other, "rb") as right:
            while True:
                pieces = left.read(1 << 20), right.read(1 << 20)
                if pieces[0] != pieces[1]:
                    return False
                if not pieces[0]:
                    return True
    except OSError:
        return False
