# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two runs on one host: one works, the other waits or says so."""

import concurrent.futures
import os
import time
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.lock import Exclusive
from ansible_collections.vmimage.qcow.tests.support.faults import DENSE, Scene, Server


def test_at_the_same_moment(tmp_path: Any, tell: Callable[..., None]) -> None:
    """20 tries of two runs over the same image; half of the time the second one waits."""
    refused = waited = 0
    with Server() as one, Server() as other, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for attempt in range(20):
            scene = Scene(str(tmp_path), spec=DENSE)
            wait = 60 * (attempt % 2)

            def start(server: Server, scene: Scene = scene, wait: int = wait) -> Any:
                job = scene.job
                return server.call(job.pop("job"), wait=wait, **job)

            answers = list(pool.map(start, [one, other]))
            locked = [answer for answer in answers if answer.get("reason") == "locked"]
            done = [answer for answer in answers if "results" in answer]
            assert len(locked) + len(done) == 2, answers
            assert sum(result["changed"] for answer in done for result in answer["results"]) == 1, answers
            assert not any(result["failed"] for answer in done for result in answer["results"]), answers
            assert all("another migration is running" in answer["msg"] for answer in locked)
            assert not (wait and locked)
            refused += len(locked)
            waited += len(done) - 1
            scene.assert_migrated()
    tell("two runs at the same moment, 20 tries: %d were refused, %d waited or came after" % (refused, waited))


def test_two_state_directories(tmp_path: Any) -> None:
    """Runs that do not know of each other cannot harm the image either: one gets the name, or each sees the other's open file and refuses."""
    for attempt in range(5):
        scene = Scene(str(tmp_path), spec=DENSE)
        other = str(tmp_path / ("other-state-%d" % attempt))
        with Server() as first, Server() as second, concurrent.futures.ThreadPoolExecutor(2) as pool:

            def start(pair: tuple[Server, str], scene: Scene = scene) -> Any:
                job = dict(scene.job, state=pair[1])
                return pair[0].call(job.pop("job"), **job)

            answers = list(pool.map(start, [(first, scene.state), (second, other)]))
        scene.assert_whole()
        if scene.listing() != scene.migrated():
            assert scene.listing() == ["disk.qcow"], answers
            assert {result["reason"] for answer in answers for result in answer["results"]} <= {"in-use", "exists", "changed", "missing"}


def test_lock_is_left_by_a_killed_run(tmp_path: Any) -> None:
    state = os.fsencode(str(tmp_path / "state"))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        Exclusive(state).__enter__()
        os.write(writing, b"x")
        time.sleep(60)
    os.read(reading, 1)
    with pytest.raises(StateError) as caught:
        Exclusive(state).__enter__()
    assert caught.value.reason == "locked"
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    with Exclusive(state):
        pass
    os.close(reading)
    os.close(writing)
