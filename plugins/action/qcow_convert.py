# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the module of the same name as a job of its own on the host, and tells how far it has come until it ends."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
import typing as t
from contextlib import contextmanager
from functools import partial

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.calls import RUN_AGE, SENT, WATCHED_AS
from ansible_collections.vmimage.qcow.plugins.module_utils._options import OptionError, seconds_of
from ansible_collections.vmimage.qcow.plugins.plugin_utils import plan_files, this_run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import JobStatus, ProgressReport, look, removal, started_job
from ansible_collections.vmimage.qcow.plugins.plugin_utils.terminal import progress, tells
from ansible_collections.vmimage.qcow.plugins.plugin_utils.until import seconds_until

MODULE = "vmimage.qcow.qcow_convert"
DEFAULTS = {"progress_interval": "15s", "reconnect_timeout": "1h", "time_limit": "365d"}
FIRST = 2.0
"""Seconds until the first report; from there on each takes half as long again, up to the interval."""

LONGEST = 15.0
"""Seconds that a look may wait on the host for the job's end, at most."""

PATIENCE = 300.0
"""Seconds that a job may take to give its first sign of life."""

GRACE = 15.0
"""Seconds in which the result of a process that has ended must appear."""

_LOST = {
    "failed": True,
    "reason": "killed",
    "msg": "The migration on this host has ended without a result: it was killed, or the host was restarted. "
    "Nothing is lost. Run again: unfinished work is completed or cleaned up first.",
}

_JOB_KEYS = ("ansible_job_id", "started", "finished", "stdout", "stdout_lines", "stderr", "stderr_lines", "invocation")
"""What is not the module's own in the result of a job."""

display = Display()


class ActionModule(ActionBase):
    """Controller side of the module."""

    _supports_check_mode = True
    _supports_async = True

    _token: str | None = None
    """By which the progress of the job is found that is about to be started; ``None`` where none is."""
    _ended: dict[str, t.Any] | None = None
    """What the job's result says of ``changed``, which may be nothing; ``None`` where there has been no job."""

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
        """The result of the module, run as a job that is watched; ``None`` where it could not even be started."""
        self._token, self._ended = secrets.token_hex(8), None
        self._task.async_val = int(self._seconds("time_limit"))
        try:
            with self._telling(**{WATCHED_AS: self._token}):
                result = self._execute_module(MODULE, self._args, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val, self._token = 0, None
        if self._ended is None:
            display.vv(f"{MODULE} cannot run in the background here: {result.get('msg', result)}", host=self._host)
            return None
        for key in {*_JOB_KEYS, "changed"}:  # the start of a job always counts as a change
            result.pop(key, None)
        return result | self._ended

    def _low_level_execute_command(self, *args: t.Any, **options: t.Any) -> dict[str, t.Any]:
        """As in the base class, but the command that starts the job is answered with the job's result.

        So ansible-core reads it as that of a module that was waited for, each version in its way, and no other module is started to fetch it.
        """
        answer: dict[str, t.Any] = super()._low_level_execute_command(*args, **options)
        results_file = started_job(str(answer.get("stdout", ""))) if self._token else None
        if results_file is None or self._token is None:
            return answer
        token, self._token = self._token, None
        state_dir = self._remote_expand_user(str(self._task.args.get("state_dir", "/var/lib/vmimage-qcow")))
        directory = self._connection._shell.join_path(state_dir, "progress")
        text = self._until_it_ends(results_file, directory, token)
        # Only now that the result is here: it may have been printed to a connection that was dead.
        self._patiently(removal(results_file, directory, token))
        try:
            # No more than that is kept: the result may be huge, and ansible-core reads all of it.
            self._ended = {key: value for key, value in dict(json.loads(text)).items() if key == "changed"}
        except (TypeError, ValueError):  # cut off: a full disk
            text, self._ended = json.dumps(_LOST), {}
        return {**answer, "stdout": text}

    def _until_it_ends(self, results_file: str, directory: str, token: str) -> str:
        """Look at the job until it has ended, and tell how far it has come meanwhile; its result, or that it has gone without one."""
        interval = self._seconds("progress_interval")
        report = ProgressReport(token)
        process: tuple[int, int] | None = None
        silent: float | None = None  # seconds waited since the job was missed; None: it is there
        begun = told = time.monotonic()
        pause, moment = min(FIRST, interval), begun
        while True:
            seconds = min(told + pause - moment, LONGEST)
            command = partial(look, results_file, directory, token, process, age=moment - begun)
            now = JobStatus.of(self._patiently(command(seconds=seconds), again=command(seconds=0.0)), token, process)
            moment = time.monotonic()
            if now.result is not None:
                return now.result
            silent = None if now.alive else 0.0 if silent is None else silent + seconds
            if silent is not None and silent > (GRACE if now.gone else PATIENCE):
                return json.dumps(_LOST)
            process = now.process
            if moment >= told + pause:
                for line in report.lines(now):
                    self._say(line)
                pause, told = min(pause * 1.5, interval), moment

    def _patiently(self, command: str, again: str | None = None) -> str:
        """What a command prints on the host.

        :param again: what to ask instead once the host could not be reached, until it can be.

        :raises AnsibleConnectionFailure: it cannot be reached for too long.
        """
        since: float | None = None
        while True:
            try:
                answer = super()._low_level_execute_command(f"({command}) 2>/dev/null; true")
                if answer.get("rc") not in (0, None):
                    raise AnsibleConnectionFailure(f"cannot look at the job: {answer.get('stderr', '')}")
            except AnsibleConnectionFailure as error:
                if since is None:
                    since = time.monotonic()
                    self._say("connection lost; the migration continues on the host; reconnecting")
                away = time.monotonic() - since
                if away > self._seconds("reconnect_timeout"):
                    raise AnsibleConnectionFailure(
                        f"The host has been unreachable for {away:.0f} s. The migration may continue there; run again to see. {error}"
                    ) from error
                command = again or command
                self._forget_connection()
                time.sleep(min(FIRST * 2, self._seconds("progress_interval")))
                continue
            if since is not None:
                self._say(f"connected again after {time.monotonic() - since:.0f} s")
            return str(answer.get("stdout", ""))

    def _forget_connection(self) -> None:
        try:
            self._connection.reset()
        except Exception as error:  # whatever it is, the next look tells
            display.vvv(f"resetting the connection: {error}", host=self._host)
        self._connection._shell.tmpdir = None

    def _say(self, line: str) -> None:
        progress(self._host, line)
