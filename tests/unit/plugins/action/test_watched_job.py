# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conversation of the action plugin with a host: which commands it sends, and what it makes of the answers, or of none."""

import itertools
import json
import types

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.vmimage.qcow.plugins.action import qcow_convert

START = '{"failed": false, "started": 1, "finished": 0, "ansible_job_id": "j1.2", "results_file": "/a/j1.2"}'
CALL = '{"token": "TOKEN", "pid": 77, "start": 4711, "stage": "planning", "images": 1}\n'
STAT = "77 (python3) S 1 " + "0 " * 17 + "4711 0 0\n"
RESULT = {"changed": False, "dest": "/x.qcow2"}
ENDED = "words of the host\nresult\n" + json.dumps(RESULT)
LOST = AnsibleConnectionFailure("no route to host")


class Host:
    """Answers commands by a script; the clock goes on by as much as each look may wait, or by what is slept."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.sent, self.slept, self.said, self.now = iter(answers), [], [], [], 0.0
        monkeypatch.setattr(ActionBase, "_low_level_execute_command", lambda _self, command, **_options: self.answer(command))
        monkeypatch.setattr(qcow_convert.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(qcow_convert.time, "sleep", self.sleep)
        monkeypatch.setattr(qcow_convert, "look", self.look)
        monkeypatch.setattr(qcow_convert, "progress", lambda _host, line: self.said.append(line))
        self.plugin = object.__new__(qcow_convert.ActionModule)
        self.plugin._task = types.SimpleNamespace(args={}, async_val=0, environment=[])
        shell = types.SimpleNamespace(join_path=lambda *parts: "/".join(parts), tmpdir=None)
        self.plugin._connection = types.SimpleNamespace(_shell=shell, reset=lambda: None)
        self.plugin._host, self.plugin._age, self.plugin._sent, self.plugin._args = "h1", 0.0, 0.0, {}
        self.plugin._remote_expand_user = lambda path: path
        self.plugin._execute_module = self.execute

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def look(self, *_words, seconds, **_more):
        return f"look {seconds}"

    def execute(self, *_arguments, **_options):
        """As ansible-core does it: of many commands, one starts the job."""
        self.plugin._low_level_execute_command("mkdir", sudoable=False)
        result = json.loads(self.plugin._low_level_execute_command("start")["stdout"])
        return {**result, "changed": True}

    def answer(self, command):
        command = command.removeprefix("(").removesuffix(") 2>/dev/null; true")
        self.sent.append(command.split()[0])
        if self.sent[-1] in ("mkdir", "rm"):
            return {"rc": 0, "stdout": ""}
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        if self.sent[-1] == "look" and "result" not in answer:
            self.now += float(command.split()[1])
        return {"rc": 0, "stdout": answer.replace("TOKEN", self.plugin._task.environment[-1]["VMIMAGE_QCOW_WATCHED_AS"])}

    def watch(self):
        return self.plugin._watch({})


def test_a_short_job_is_one_look_and_nobody_sleeps(monkeypatch):
    host = Host(monkeypatch, START, ENDED)
    assert host.watch() == RESULT
    assert (host.sent, host.slept, host.said) == (["mkdir", "start", "look", "rm"], [], [])


def test_what_is_of_the_job_is_no_part_of_the_result(monkeypatch):
    words = {"ansible_job_id": "j1.2", "stderr": "?", "invocation": {}}
    host = Host(monkeypatch, START, "result\n" + json.dumps({"failed": True, "msg": "refused", **words}))
    assert host.watch() == {"failed": True, "msg": "refused"}


def test_a_long_job_is_looked_at_as_often_as_it_is_told_of(monkeypatch):
    host = Host(monkeypatch, START, "job\n" + CALL, *["job\n" + CALL + STAT] * 9, ENDED)
    assert host.watch() == RESULT
    assert host.slept == [] and host.sent.count("look") == 11
    assert host.now == pytest.approx(2 + 3 + 4.5 + 6.75 + 10.125 + 5 * 15)


def test_a_connection_that_is_lost_delays_only(monkeypatch):
    host = Host(monkeypatch, START, "job\n" + CALL, LOST, LOST, "job\n" + CALL + STAT, LOST, ENDED)
    assert host.watch() == RESULT
    lost = "connection lost; the migration continues on the host; reconnecting"
    assert [line for line in host.said if "connect" in line] == [lost, "connected again after 8 s", lost, "connected again after 4 s"]
    assert host.sent.count("rm") == 1 and host.sent[-1] == "rm", "nothing may be removed before the result is here"


def test_a_host_that_stays_away_is_unreachable(monkeypatch):
    host = Host(monkeypatch, START, *[LOST] * 10000)
    host.plugin._task.args["reconnect_timeout"] = "1m"
    with pytest.raises(AnsibleConnectionFailure, match="unreachable for 64 s. The migration may continue there"):
        host.watch()
    assert "rm" not in host.sent


@pytest.mark.parametrize(
    ("looks", "least", "most"),
    [
        (["job\n" + CALL, *["job\n" + CALL] * 99], 15, 60),  # its process has gone
        ([""] * 99, 15, 60),  # every trace of it has gone
        (["job\n"] * 99, 300, 350),  # it has never begun
        (["job\n", LOST, *["job\n"] * 99], 300, 350),
        (['result\n{"changed": tr'], 0, 1),  # the disk was full
    ],
)
def test_a_job_without_a_result(monkeypatch, looks, least, most):
    host = Host(monkeypatch, START, *looks)
    result = host.watch()
    assert (result["failed"], result["reason"]) == (True, "killed") and "ended without a result" in result["msg"]
    assert least <= host.now <= most


def test_a_process_that_ends_has_time_to_leave_its_result(monkeypatch):
    gone = itertools.repeat("job\n" + CALL, 3)
    assert Host(monkeypatch, START, *gone, ENDED).watch() == RESULT


def test_where_no_job_was_started_the_module_is_run_plainly(monkeypatch):
    host = Host(monkeypatch, '{"failed": true, "msg": "could not create directory: /a"}')
    assert host.watch() is None
    assert host.sent == ["mkdir", "start"]


def test_a_task_that_is_retried_has_a_job_each_time(monkeypatch):
    host = Host(monkeypatch, START, ENDED, '{"failed": true, "msg": "could not create directory: /a"}')
    assert host.watch() == RESULT
    assert host.watch() is None
