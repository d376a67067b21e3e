# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a look at a running job amounts to, and what is printed of it."""

import json
import math

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import JobStatus, ProgressReport, duration, of_worker, size

RUNNING = 'job 70\n{"started": 1, "finished": 0, "ansible_job_id": "j1.2"}\n'
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
    ("text", "process", "finished", "alive", "gone"),
    [
        (RUNNING, None, False, False, False),  # the module has not begun yet
        (RUNNING + lines(CALL), None, False, True, False),
        (RUNNING + lines(CALL) + STAT, (77, 4711), False, True, False),
        (RUNNING + STAT, (77, 4711), False, True, False),  # the status is gone, the module is about to end
        (RUNNING + lines(CALL), (77, 4711), False, False, True),  # killed
        (RUNNING + lines(CALL) + STAT, (77, 4710), False, False, True),  # another process has got its number
        ("", None, False, False, True),  # no trace of the job: the host was set up anew
        ('job 30\n{"changed": false}\n', (77, 4711), True, False, True),
        ("job 50000000\n", (77, 4711), True, False, True),
        (RUNNING + "{half a line\n", None, False, False, False),
    ],
)
def test_a_job_runs_ends_or_dies(text, process, finished, alive, gone):
    status = JobStatus.of(text, "abc", process)
    assert (status.finished, status.alive, status.gone) == (finished, alive, gone)


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


def test_when_the_job_ends_is_estimated_from_how_far_it_has_come():
    report = ProgressReport("abc")

    def left(moment, **facts):
        return report.left(JobStatus.of(lines(dict(CALL, **facts)), "abc", None), moment)

    assert left(10.0, stage="planning") == math.inf
    assert left(20.0, bytes=1000, total=10000) == math.inf  # nothing to go by yet
    assert left(21.0, bytes=1000, total=10000) == math.inf
    assert left(22.0, bytes=4000, total=10000) == 4.0
    assert left(30.0, bytes=6000, total=10000) == 8.0
    assert left(31.0, bytes=10000, total=10000) == 0.0
    assert left(32.0, stage="ending") == 0.0
    assert report.left(JobStatus.of("", "abc", None), 33.0) == 0.0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1 << 10, "1.0 KiB"), (210 << 20, "210 MiB"), (1000 << 20, "1.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(number, text):
    assert size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min 00 s"), (3700, "1 h 01 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
