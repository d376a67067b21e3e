# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests only: writes what each task returned, and the final counts, as JSON lines to the file $RECORD_RESULTS."""

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record_results
type: aggregate
short_description: Write task results as JSON lines
description: For the tests of this collection.
"""


class CallbackModule(CallbackBase):
    """One line a result: event, task, module and what it returned."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record_results"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, line):
        with open(os.environ["RECORD_RESULTS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    def _result(self, event, result):
        # The attributes without an underscore exist from ansible-core 2.19 on.
        task = getattr(result, "task", None) or result._task
        value = result.result if hasattr(result, "result") else result._result
        host = getattr(result, "host", None) or result._host
        self._write({"event": event, "host": host.get_name(), "task": task.get_name(), "module": task.action, "result": value})

    def v2_runner_on_ok(self, result):
        self._result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._result("unreachable", result)

    def v2_playbook_on_stats(self, stats):
        self._write({"event": "stats", "hosts": {host: stats.summarize(host) for host in stats.processed}})
