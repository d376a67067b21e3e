# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What action plugins say while a play runs, besides what the callback prints of their results.

Progress goes to standard error. What has become of a host is said as soon as it is known, not when the slowest host has come as far: a task that shows it
would wait for all of them. It belongs to what the callback prints for people; where the callback prints for programs, it goes to standard error too, and
the result has it.
"""

from __future__ import annotations

import functools
import typing as t

from ansible import constants
from ansible.utils.display import Display

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_report
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible

Facts = t.Dict[str, t.Any]
Run = t.Callable[..., Facts]

FOR_PEOPLE = ("default", "debug", "yaml", "minimal", "oneline", "dense", "unixy", "diy", "skippy", "actionable", "selective")
"""Callbacks whose output people read."""

display = Display()


def progress(host: str, line: str) -> None:
    """Say how far a host is."""
    display.display(f"  [{host}] {visible(line)}", stderr=True)


def tell(lines: t.Iterable[str]) -> None:
    """Say what has become of something, in one piece: other hosts say something, too."""
    text = "\n".join(f"  {visible(line)}" for line in lines)
    if text:
        display.display(text, stderr=str(constants.DEFAULT_STDOUT_CALLBACK).rpartition(".")[2] not in FOR_PEOPLE)


def tells(part: str) -> t.Callable[[Run], Run]:
    """Have an action plugin tell what its module has returned, where a role of this collection wants that.

    A task of a role wants it by the variable ``__<role>_tell``: the part of :class:`.host_report.Results` that the result is.

    :param part: the part that it is by default.
    """

    def decorate(run: Run) -> Run:
        @functools.wraps(run)
        def told(self: t.Any, tmp: t.Any = None, task_vars: Facts | None = None) -> Facts:
            result = run(self, tmp, task_vars)
            play = next((play for play in host_report.PLAYS if f"__{play}_tell" in self._task.vars), None)
            if play is not None and not self._task.async_val and f"__{play}_planning" not in (task_vars or {}):
                host = (task_vars or {}).get("inventory_hostname", "")
                results = host_report.Results(**{self._task.vars[f"__{play}_tell"] or part: host_report.ran(result)})
                tell(f"[{host}] {line}" for line in host_report.lines(play, results, check_mode=self._task.check_mode))
            return result

        return told

    return decorate
