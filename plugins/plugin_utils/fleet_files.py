# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The report of all hosts: its page, and the files for other programs."""

from __future__ import annotations

import csv
import json
import os
import typing as t
from contextlib import ExitStack
from datetime import datetime, timezone

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_file, host_merge, metrics, run_history
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet import COLUMNS, HOST_COLUMNS, Fleet
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts
from ansible_collections.vmimage.qcow.plugins.plugin_utils.page import render
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import Replacing, locked
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import cell

PAGE = "index.html"


def make(
    directory: str, hosts: t.Iterable[str], title: str, *, inventory: t.Sequence[str] = (), write: bool = True
) -> tuple[bool, dict[str, float]]:
    """Make the report in ``directory`` of what is kept there.

    :param hosts: of the inventory; one of which nothing is known is missing, now and in later reports.
    :param inventory: of the controller, for the commands that are told.
    :return: whether anything was changed (or would be), and the totals.
    :raises OSError: where the directory cannot be read or written; each file is the old one or the new one then.
    """
    hosts = list(hosts)
    with ExitStack() as stack:
        if write:
            host_merge.expect(directory, hosts)
            stack.enter_context(locked(directory, PAGE))
        commands = Hosts(inventory, directory)
        everything = Fleet(commands, run_history.latest(directory))
        files = {
            name: stack.enter_context(Replacing(directory, name, write))
            for name in ("images.csv", "images.jsonl", "hosts.csv", "report.json", "metrics.prom")
        }
        table = csv.writer(files["images.csv"].stream)
        table.writerow(COLUMNS)
        kept = host_file.hosts_in(directory)
        for host in sorted({*kept, *hosts}):
            path = kept.get(host) or os.path.join(directory, host_file.name_of(host))
            for row in everything.add(host, host_file.HostFile(path)):
                damage = row["damage"] and row["damage"]["text"].replace("\n", "; ")
                table.writerow([cell(value) for value in {**row, "damage": damage}.values()])
                files["images.jsonl"].stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        table = csv.writer(files["hosts.csv"].stream)
        table.writerow(HOST_COLUMNS)
        table.writerows([cell(host[column]) for column in HOST_COLUMNS] for host in everything.hosts)
        summary = everything.summary()
        json.dump(dict(summary, title=title), files["report.json"].stream, indent=1, ensure_ascii=False, allow_nan=False)
        files["report.json"].stream.write("\n")
        files["metrics.prom"].stream.writelines(metrics.lines(summary))
        changed = any(one.compare() for one in files.values())
        # The page comes first: where this is cut short, the tables still differ, and the next report makes the page again.
        if write and (changed or not os.path.exists(os.path.join(directory, PAGE))):
            changed = True
            with Replacing(directory, PAGE) as page:
                for piece in render(summary, everything.rows(), everything.tally, title, datetime.now(timezone.utc), commands):
                    page.stream.write(piece)
        for one in files.values():
            one.finish()
    return changed, summary["totals"]
