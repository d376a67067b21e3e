# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the module of the same name as a job of its own on the host, and tells how far it has come until it ends."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shlex
import time
import typing as t
from contextlib import contextmanager

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import RUN_AGE, SENT, WATCHED_AS
from ansible_collections.vmimage.qcow.plugins.module_utils._options import OptionError, seconds_of
from ansible_collections.vmimage.qcow.plugins.plugin_utils import plan_files, this_run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import JobStatus, ProgressReport
from ansible_collections.vmimage.qcow.plugins.plugin_utils.terminal import progress, tells
from ansible_collections.vmimage.qcow.plugins.plugin_utils.until import seconds_until

MODULE = "vmimage.qcow.qcow_convert"
DEFAULTS = {"progress_interval": "15s", "reconnect_timeout": "1h", "time_limit": "365d"}
FIRST = 2.0
"""Seconds until the first report; from there on each takes half as long again, up to the interval."""

SOONEST = 0.5
"""Seconds from one look to the next, at least; where the job has been watched for long, a twentieth of that."""

PATIENCE = 300.0
"""Seconds that a job may take to give its first sign of life."""

GRACE = 15.0
"""Seconds in which the result of a process that has ended must appear."""

_JOB_KEYS = ("ansible_job_id", "started", "finished", "results_file", "stdout", "stdout_lines", "stderr", "stderr_lines", "erased")

display = Display()


class ActionModule(ActionBase):
    """Controller side of the module."""

    _supports_check_mode = True
    _supports_async = True

    @tells("done")
    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._host = (task_vars or {}).get("inventory_hostname", "")
        self._sent, self._age = time.time(), this_run.age()
        try:
            self._args = self._arguments()
        except plan_files.PlanError as error:  # returned, not raised: the task says what a failure means
            return dict(super().run(tmp, task_vars), failed=True, reason="plan", msg=str(error))
        except OptionError as error:
            return dict(super().run(tmp, task_vars), failed=True, reason="option", msg=f"{error}. Nothing was changed.")
        watched = self._can_watch()
        if watched:
            self._notice_dead_connections()
        result = super().run(tmp, task_vars)
        if watched:
            answer = self._watch(task_vars or {})
            if answer is not None:
                return merge_hash(result, answer)
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        with self._telling():
            result = merge_hash(result, self._execute_module(MODULE, self._args, task_vars=task_vars, wrap_async=wrap_async))
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    @contextmanager
    def _telling(self, **more: str) -> t.Iterator[None]:
        """The module is told how old this run is, and more, by its environment."""
        environment = self._task.environment
        self._task.environment = [*(environment or []), {RUN_AGE: f"{self._age:.3f}", SENT: f"{self._sent:.3f}", **more}]
        try:
            yield
        finally:
            self._task.environment = environment

    def _arguments(self) -> dict[str, t.Any]:
        """The task's arguments, with the images of a plan instead of its name: the plan is on the controller. So is the beginning of the window.

        :raises PlanError: the plan cannot be carried out. :raises OptionError: ``until`` cannot be meant.
        """
        args = dict(self._task.args)
        self._close_window(args)
        if not args.get("plan") or args.keys() & {"src", "images", "paths"}:
            return args
        missing_ok = boolean(args.get("missing_ok", False), strict=False)  # the module will say what is wrong with it
        wanted = plan_files.read(str(args.pop("plan")), self._host, missing_ok=missing_ok)
        backing_dirs = args.get("backing_dirs") or []
        args.update(
            images=wanted.images, backing_dirs=[*wanted.paths, *([backing_dirs] if isinstance(backing_dirs, str) else backing_dirs)]
        )
        return args

    def _close_window(self, args: dict[str, t.Any]) -> None:
        """Have ``max_minutes`` say what is left of the window for this host: a window is one for all hosts of a run, whenever their turn comes."""
        until = args.pop("until", None)
        ends = [] if until is None else [seconds_until(str(until), this_run.STARTED)]
        try:
            ends += [] if args.get("max_minutes") is None else [float(args["max_minutes"]) * 60]
        except (TypeError, ValueError, OverflowError):
            return  # the module will say what is wrong with it
        if ends and all(0 <= end < math.inf for end in ends):
            args["max_minutes"] = max(0.0, min(ends) - self._age) / 60

    def _seconds(self, option: str) -> float:
        try:
            return seconds_of({**DEFAULTS, **self._task.args}, option)
        except OptionError:
            return 0.0  # the module will say what is wrong with it

    def _can_watch(self) -> bool:
        """Whether to run a job of our own: not in check mode, not inside the task's own ``async``, not where the connection cannot."""
        if self._task.async_val or self._task.check_mode or self._seconds("progress_interval") <= 0 or self._seconds("time_limit") < 1:
            return False
        return not (self._connection.has_native_async or self._connection.always_pipeline_modules)

    def _notice_dead_connections(self) -> None:
        """Have ssh end a connection that is dead, through a master of our own: one that an earlier task has opened would not."""
        connection = self._connection
        if connection.transport != "ssh":
            return
        try:
            who = repr([connection.get_option(name) for name in ("host", "port", "remote_user", "ssh_common_args", "private_key_file")])
            connection.set_option("control_path", "%(directory)s/q" + hashlib.sha256(who.encode()).hexdigest()[:10])
            extra = connection.get_option("ssh_extra_args") or ""
            connection.set_option("ssh_extra_args", f"{extra} -o ServerAliveInterval=10 -o ServerAliveCountMax=3".strip())
        except (KeyError, AttributeError):
            pass

    def _watch(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any] | None:
        """Start the job, watch it and fetch its result; ``None`` where it could not even be started."""
        token = secrets.token_hex(8)
        self._task.async_val = int(self._seconds("time_limit"))
        try:
            with self._telling(**{WATCHED_AS: token}):
                job = self._execute_module(MODULE, self._args, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0
        if not job.get("ansible_job_id") or not job.get("results_file"):
            display.vv(f"{MODULE} cannot run in the background here: {job.get('msg', job)}", host=self._host)
            return None
        results_file = str(job["results_file"])
        state_dir = self._remote_expand_user(str(self._task.args.get("state_dir", "/var/lib/vmimage-qcow")))
        status = self._connection._shell.join_path(state_dir, "progress")
        lost = self._until_it_ends(results_file, status, token)
        if lost is not None:
            return lost
        return self._fetch(str(job["ansible_job_id"]), os.path.dirname(results_file), task_vars)

    def _until_it_ends(self, results_file: str, status: str, token: str) -> dict[str, t.Any] | None:
        """Look at the job until it has ended; a failure where it has gone without a result."""
        interval = self._seconds("progress_interval")
        wait = min(FIRST, interval)
        report = ProgressReport(token)
        unreachable_since: float | None = None
        sign_of_life = time.monotonic()
        process: tuple[int, int] | None = None
        time.sleep(SOONEST)  # most calls with nothing to do end at once
        begun = time.monotonic()
        pause, told = wait, begun
        while True:
            try:
                now = self._look(results_file, status, token, process)
            except AnsibleConnectionFailure as error:
                if unreachable_since is None:
                    unreachable_since = time.monotonic()
                    self._say("connection lost; the migration continues on the host; reconnecting")
                if time.monotonic() - unreachable_since > self._seconds("reconnect_timeout"):
                    raise AnsibleConnectionFailure(
                        f"The host has been unreachable for {time.monotonic() - unreachable_since:.0f} s. The migration may continue there; "
                        f"run again to see. {error}"
                    ) from error
                self._forget_connection()
                time.sleep(min(wait * 2, interval))
                continue
            moment = time.monotonic()
            if unreachable_since is not None:
                self._say(f"connected again after {moment - unreachable_since:.0f} s")
                unreachable_since, sign_of_life = None, moment
            if now.finished:
                return None
            if now.alive:
                sign_of_life = moment
            elif moment - sign_of_life > (GRACE if now.gone else PATIENCE):
                return {
                    "failed": True,
                    "reason": "killed",
                    "msg": "The migration on this host has ended without a result: it was killed, or the host was restarted. "
                    "Nothing is lost. Run again: unfinished work is completed or cleaned up first.",
                }
            process = now.process
            if moment >= told + pause:
                for line in report.lines(now):
                    self._say(line)
                pause, told = min(pause * 1.5, interval), moment
            soonest = max(SOONEST, (moment - begun) / 20)
            time.sleep(wait if now.gone else min(max(report.left(now, moment), soonest), told + pause - moment))

    def _look(self, results_file: str, status: str, token: str, process: tuple[int, int] | None) -> JobStatus:
        """One look by one cheap command: no module is started for it.

        :raises AnsibleConnectionFailure: where the host cannot be reached.
        """
        # A job that has not ended has a results file of one short line; of a long one, which may be huge, only the size is of interest.
        command = (
            f"f={shlex.quote(results_file)}; n=$(wc -c <$f) && echo job $n && if [ $n -lt 400 ]; then cat $f; echo; fi; "
            f"cat {shlex.quote(status)}/*.json; cat /proc/{process[0] if process else 'none'}/stat"
        )
        answer = self._low_level_execute_command(f"({command}) 2>/dev/null; true")
        if answer.get("rc") not in (0, None):
            raise AnsibleConnectionFailure(f"cannot look at the job: {answer.get('stderr', '')}")
        return JobStatus.of(str(answer.get("stdout", "")), token, process)

    def _fetch(self, job_id: str, async_dir: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result, and no trace of the job left on the host."""
        result = self._patiently(lambda: self._status_of(job_id, async_dir, "status", task_vars))
        self._patiently(lambda: self._status_of(job_id, async_dir, "cleanup", task_vars))
        for key in _JOB_KEYS:
            result.pop(key, None)
        result.pop("invocation", None)
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _patiently(self, call: t.Callable[[], dict[str, t.Any]]) -> dict[str, t.Any]:
        end = time.monotonic() + self._seconds("reconnect_timeout")
        while True:
            try:
                return call()
            except AnsibleConnectionFailure:
                if time.monotonic() > end:
                    raise
                self._forget_connection()
                time.sleep(FIRST)

    def _status_of(self, job_id: str, async_dir: str, mode: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        args = {"jid": job_id, "mode": mode, "_async_dir": async_dir}
        return self._execute_module("ansible.legacy.async_status", args, task_vars=task_vars)

    def _forget_connection(self) -> None:
        try:
            self._connection.reset()
        except Exception as error:  # whatever it is, the next look tells
            display.vvv(f"resetting the connection: {error}", host=self._host)
        self._connection._shell.tmpdir = None

    def _say(self, line: str) -> None:
        progress(self._host, line)
