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
from ansible.plugins.action import ActionBase

from ansible_collections.vmimage.qcow.plugins.plugin_utils import fleet
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page import render


class ActionModule(ActionBase):
    """All of it: there is nothing to do on a host."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("path", "hosts", "title"))

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        path = self._task.args.get("path")
        if not path:
            raise AnsibleActionFail("missing required arguments: path")
        directory = os.path.abspath(os.path.expanduser(str(path)))
        hosts = [str(host) for host in self._task.args.get("hosts") or []]
        title = str(self._task.args.get("title") or "QCOW version 1 migration")
        try:
            changed, totals = make(directory, hosts, title, write=not self._task.check_mode)
        except OSError as error:
            raise AnsibleActionFail(f"The report cannot be made: {error}. The reports of the hosts were not touched.") from error
        result.update(changed=changed, report=os.path.join(directory, "index.html"), totals=totals)
        return result


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
                lines.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
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


def cell(value: t.Any) -> t.Any:
    """A value as a cell of a table; a text that a spreadsheet would take for a formula is kept from being one."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        value = "; ".join(str(item) for item in value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


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
