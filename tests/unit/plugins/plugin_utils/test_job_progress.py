# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a look at a running job amounts to, and what is printed of it."""

import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import (
    JobStatus,
    ProgressReport,
    duration,
    look,
    of_worker,
    removal,
    size,
    started_job,
)

RUNNING = "job\n"
STAT = "77 (python3 (x)) S 1 " + "0 " * 17 + "4711 0 0\n"
CALL = {
    "token": "abc",
    "pid": 77,
    "start": 4711,
    "stage": "working",
    "images": 3,
    "done": 1,
    "failed": 0,
    "bytes": 2048 << 20,
    "total": 6144 << 20,
}
WORKER = {
    "token": "abc",
    "pid": 78,
    "path": "/x.qcow",
    "stage": "copy",
    "percent": 50,
    "speed": 100 << 20,
    "left": 65,
    "done": 1024 << 20,
    "size": 1 << 30,
}


def lines(*facts):
    return "".join(json.dumps(fact) + "\n" for fact in facts)


@pytest.mark.parametrize(
    ("text", "process", "result", "alive", "gone"),
    [
        (RUNNING, None, None, False, False),  # the module has not begun yet
        (RUNNING + lines(CALL), None, None, True, False),
        (RUNNING + lines(CALL) + STAT, (77, 4711), None, True, False),
        (RUNNING + STAT, (77, 4711), None, True, False),  # the status is gone, the module is about to end
        (RUNNING + lines(CALL), (77, 4711), None, False, True),  # killed
        (RUNNING + lines(CALL) + STAT, (77, 4710), None, False, True),  # another process has got its number
        ("", None, None, False, True),  # no trace of the job: the host was set up anew
        ('result\n{"changed": false}', (77, 4711), '{"changed": false}', False, True),
        ('words of the host\r\nresult\r\n{"token": "abc"}\r\n', None, '{"token": "abc"}', False, True),
        (RUNNING + "{half a line\n", None, None, False, False),
    ],
)
def test_a_job_runs_ends_or_dies(text, process, result, alive, gone):
    status = JobStatus.of(text, "abc", process)
    assert (status.result, status.alive, status.gone) == (result, alive, gone)


@pytest.mark.parametrize(
    ("text", "results_file"),
    [
        ('{"failed": false, "started": 1, "finished": 0, "ansible_job_id": "j1.2", "results_file": "/a/j1.2"}', "/a/j1.2"),
        ('words of the host\n{"ansible_job_id": "j1.2", "results_file": "/a/j1.2"}\n', "/a/j1.2"),
        ('{"failed": true, "msg": "could not create directory"}', None),
        ("/root\n", None),
    ],
)
def test_what_has_started_a_job(text, results_file):
    assert started_job(text) == results_file


SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])]


@pytest.fixture(name="host", params=SHELLS, ids=lambda shell: shell[0])
def make_host(request, tmp_path):
    """A host of one of the shells, with a job that runs."""
    return Host(request.param, tmp_path / "a host's")


class Host:
    def __init__(self, shell: list[str], directory: pathlib.Path):
        directory.mkdir()
        self.shell, self.directory, self.job = shell, directory, directory / "j1.2"
        self.job.write_text('{"started": 1, "finished": 0, "ansible_job_id": "j1.2"}')
        self.stat = pathlib.Path("/proc/self/stat").read_text()
        self.process = os.getpid(), int(self.stat.rsplit(")", 1)[1].split()[19])

    def say(self, **facts):
        (self.directory / "abc.json").write_text(lines(dict(CALL, pid=self.process[0], start=self.process[1], **facts)))

    def end(self, result):
        (self.directory / "new").write_text(result)
        os.rename(self.directory / "new", self.job)

    def run(self, command):
        return subprocess.run([*self.shell, "-c", f"({command}) 2>/dev/null; true"], capture_output=True, text=True, check=True).stdout

    def look(self, process=None, seconds=0.1):
        return JobStatus.of(self.run(look(str(self.job), str(self.directory), "abc", process, seconds=seconds, age=0)), "abc", process)


def test_a_look_waits_for_the_result_and_brings_it(host):
    begun = time.monotonic()
    threading.Timer(0.3, host.end, ['{"changed": true}']).start()
    assert json.loads(host.look(seconds=60).result) == {"changed": True}
    assert 0.3 <= time.monotonic() - begun < 30


def test_a_look_waits_no_longer_than_it_may(host):
    begun = time.monotonic()
    assert host.look(seconds=0.3).result is None
    assert 0.3 <= time.monotonic() - begun < 30


def test_a_look_finds_the_process(host):
    status = host.look()
    assert (status.alive, status.gone, status.process) == (False, False, None)
    host.say()
    status = host.look()
    assert (status.alive, status.gone, status.process) == (True, False, host.process)
    status = host.look(host.process)
    assert (status.alive, [call["token"] for call in status.calls]) == (True, ["abc"])
    status = host.look((host.process[0], host.process[1] - 1))
    assert (status.alive, status.gone) == (False, True)


def test_a_process_that_has_come_and_gone_during_a_look_is_known(host):
    """So a job that is killed soon is not waited for as one that has not begun yet."""
    host.say()
    threading.Timer(0.5, os.unlink, [host.directory / "abc.json"]).start()
    assert host.look(seconds=3).process == host.process


def test_nothing_of_the_job_is_left(host):
    host.say()
    for name in ("abc-78.json", "other.json"):
        (host.directory / name).write_text("{}")
    host.run(removal(str(host.job), str(host.directory), "abc"))
    assert os.listdir(host.directory) == ["other.json"]


def test_one_line_for_one_worker_and_none_twice():
    report = ProgressReport("abc")
    status = JobStatus.of(RUNNING + lines(CALL, WORKER), "abc", None)
    assert report.lines(status) == ["/x.qcow: copy 50 %, 100 MiB/s, 1 min 05 s left | 1 of 3 images done, 50 %, 30 s left"]
    assert report.lines(status) == []


def test_a_line_for_each_worker_and_one_for_all():
    other = dict(WORKER, path="/a.qcow", pid=79, stage="verify", percent=None, speed=None, left=None, done=0)
    assert ProgressReport("abc").lines(JobStatus.of(RUNNING + lines(CALL, WORKER, other), "abc", None)) == [
        "/a.qcow: verify",
        "/x.qcow: copy 50 %, 100 MiB/s, 1 min 05 s left",
        "1 of 3 images done, 50 %, 30 s left",
    ]


def test_who_waits_sees_the_other_run():
    waiting = dict(CALL, token="mine", pid=80, stage="waiting", images=0)
    assert ProgressReport("mine").lines(JobStatus.of(RUNNING + lines(waiting, CALL, WORKER), "mine", None)) == [
        "waits for another migration on this host:",
        "/x.qcow: copy 50 %, 100 MiB/s, 1 min 05 s left | 1 of 3 images done, 50 %, 30 s left",
    ]


def test_a_single_image_needs_no_total():
    assert ProgressReport("abc").lines(JobStatus.of(lines(dict(CALL, images=1), WORKER), "abc", None)) == [of_worker(WORKER)]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1 << 10, "1.0 KiB"), (210 << 20, "210 MiB"), (1000 << 20, "1.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(number, text):
    assert size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min 00 s"), (3700, "1 h 01 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
