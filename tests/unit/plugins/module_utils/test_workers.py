# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work shared by processes: all of it arrives, in order; what goes wrong in one of them is told here; none is left behind."""

import os
import signal
import time
from typing import Any, Iterator, List, Tuple

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils import _workers
from ansible_collections.vmimage.qcow.plugins.module_utils._errors import DamagedImage, QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils._workers import SMALL, OrderedPool, Room

LARGE = SMALL + 1
COUNT = 60


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def descriptors() -> List[str]:
    """What this process has open, but for the listing itself."""
    return sorted(os.listdir("/proc/self/fd"))[:-1]


def numbers(partition: int, partitions: int, room: Room) -> Iterator[Tuple[int, Any]]:
    """Numbers, each with its own bytes in memory."""
    for number in range(partition, COUNT, partitions):
        memory = room(number)
        memory[:] = bytes([number]) * number
        yield number, (os.getpid(), partitions)


@pytest.mark.parametrize("held", [0, SMALL, LARGE])
def test_all_of_it_in_order(held: int) -> None:
    seen = []
    with OrderedPool(numbers, COUNT, held) as members:
        for number, (pid, partitions), memory in members:
            assert bytes(memory[:number]) == bytes([number]) * number
            assert (pid == os.getpid()) == (partitions == 1) == (held <= SMALL)
            seen.append(number)
    assert seen == list(range(COUNT))


def test_without_processes_where_there_are_none_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with OrderedPool(numbers, COUNT, LARGE) as members:
        assert [number for number, _item, _memory in members] == list(range(COUNT))


def test_leaving_early() -> None:
    with OrderedPool(numbers, COUNT, LARGE) as members:
        assert next(iter(members))[0] == 0
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), OrderedPool(asleep, 1, LARGE):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30


def asleep(_turn: int, _turns: int, room: Room) -> Iterator[Tuple[int, Any]]:
    """Work that takes a minute."""
    room(1)
    time.sleep(60)
    yield 0, None


def test_an_error_comes_in_its_place() -> None:
    def failing(partition: int, partitions: int, room: Room) -> Iterator[Tuple[int, Any]]:
        for number, item in numbers(partition, partitions, room):
            if number == 31:
                raise DamagedImage("is damaged", b"/some/image", hint="Nothing was changed.", offset=31)
            yield number, item

    seen = []
    with pytest.raises(DamagedImage) as caught, OrderedPool(failing, COUNT, LARGE) as members:
        for number, _item, _memory in members:
            seen.append(number)
    assert seen == list(range(len(seen))) and 30 - _workers._MOST <= seen[-1] <= 30
    error = caught.value
    assert (error.path, error.hint, error.details, error.reason) == (b"/some/image", "Nothing was changed.", {"offset": 31}, "damaged")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed(number: signal.Signals) -> None:
    def killed(partition: int, partitions: int, room: Room) -> Iterator[Tuple[int, Any]]:
        for key, item in numbers(partition, partitions, room):
            if key == 31:
                os.kill(os.getpid(), number)
            yield key, item

    with pytest.raises(QcowError, match="%s.*Run again" % signal.Signals(number).name), OrderedPool(killed, COUNT, LARGE) as members:
        for _item in members:
            pass


def test_they_end_when_we_are_killed() -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with OrderedPool(numbers, COUNT, LARGE) as members:
            os.write(tell, repr([member.pid for member in members._workers]).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(tell)
    with os.fdopen(told) as stream:
        pids = [int(word) for word in stream.readline().strip("[]").split(",")]  # ends when all of them have
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) >= 2 and not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Whether a process is one that still runs."""
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
