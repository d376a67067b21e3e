# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The work on one image shared by processes.

Reading, inflating and hashing small clusters is many short calls, and threads would wait for the interpreter's lock between them. The processes
are forked, so that they have the open files and all that is known of them; they only read, and what they find comes back through memory that
both sides see.
"""

import gc
import heapq
import mmap
import os
import pickle
import signal
from operator import itemgetter
from typing import Any, Callable, Iterator, List, Tuple

from .._errors import QcowError

SMALL = 8 << 20
"""Bytes that are not worth a process."""

_MOST = 4  # processes for one image
_AHEAD = 3  # items that a process may be ahead of who takes them; with two, one waits while another is not given a processor

Room = Callable[[int], memoryview]
"""Memory of as many bytes for the item that is made next; what was in it before is there still."""

Produce = Callable[[int, int, Room], Iterator[Tuple[int, Any]]]
"""``(turn, turns, room)`` -> ``(key, item)`` with ascending keys: every ``turns``-th part of the work. Calls ``room`` once for each item."""


class Crew:
    """Processes that produce items, which come here in the order of their keys (context manager; iterate once).

    Yields ``(key, item, memory)``; the memory is good until the next item is asked for. What a process raises is raised here in its place.

    :param produce: runs in each process. :param size: bytes of memory that an item needs at most.
    :param held: bytes of the files that are read; small work is done in this process.
    """

    def __init__(self, produce: Produce, size: int, held: int) -> None:
        self._produce = produce
        self._members: List[_Member] = []
        count = 0 if held <= SMALL else max(2, min(_MOST, os.cpu_count() or 1))
        try:
            for turn in range(count):
                self._members.append(_Member(produce, turn, count, size, self._members))
        except OSError:  # no more processes, or no memory: then without
            self._end()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *dummy: Any) -> None:
        self._end()

    def __iter__(self) -> Iterator[Tuple[int, Any, memoryview]]:
        if self._members:
            return heapq.merge(*(member.items() for member in self._members), key=itemgetter(0))
        return self._alone()

    def _alone(self) -> Iterator[Tuple[int, Any, memoryview]]:
        memory = [memoryview(bytearray())]

        def room(size: int) -> memoryview:
            if len(memory[0]) < size:
                memory[0] = memoryview(bytearray(size))
            return memory[0][:size]

        for key, item in self._produce(0, 1, room):
            yield key, item, memory[0]

    def _end(self) -> None:
        while self._members:
            self._members.pop().end()


class _Member:
    """One process, seen from outside."""

    def __init__(self, produce: Produce, turn: int, turns: int, size: int, siblings: List["_Member"]) -> None:
        self._memory = [memoryview(mmap.mmap(-1, max(size, 1))) for _number in range(_AHEAD)]
        made, self._make = os.pipe()
        done, free = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (made, self._make, done, free):
                os.close(fd)
            raise
        if self.pid == 0:
            code = 1
            try:
                # With our ends of a sibling's pipes open here, the sibling would not see us end.
                for sibling in siblings:
                    sibling.close()
                os.close(made)
                os.close(free)
                self._serve(produce, turn, turns, done)
                code = 0
            finally:
                os._exit(code)
        os.close(self._make)
        os.close(done)
        self._made = os.fdopen(made, "rb")
        self._free = free

    def items(self) -> Iterator[Tuple[int, Any, memoryview]]:
        """What it makes."""
        number = 0
        while True:
            try:
                made = pickle.load(self._made)
            except (EOFError, pickle.UnpicklingError):
                raise QcowError(
                    "a process that read the image {0}".format(self._fate()),
                    reason="process",
                    hint="The image was not changed. After signal 9 see whether the host ran out of memory. Run again.",
                ) from None
            if made is None:
                return
            if isinstance(made, BaseException):
                raise made
            yield made[0], made[1], self._memory[number % _AHEAD]
            number += 1
            try:
                os.write(self._free, b".")
            except BrokenPipeError:
                pass  # it has made its last item, or it has died, which is read next

    def _fate(self) -> str:
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return "was ended by signal {0}".format(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "ended too early"

    def close(self) -> None:
        """Close our ends of its pipes."""
        self._made.close()
        os.close(self._free)

    def end(self) -> None:
        """End it, whatever it does."""
        self.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _serve(self, produce: Produce, turn: int, turns: int, done: int) -> None:
        """Its life. The other side has ended where a pipe is closed: then there is nobody to work for."""
        gc.disable()  # it makes many small tuples and no circles
        count = [0]

        def room(size: int) -> memoryview:
            if count[0] >= _AHEAD and not os.read(done, 1):
                os._exit(0)
            count[0] += 1
            return self._memory[(count[0] - 1) % _AHEAD][:size]

        with os.fdopen(self._make, "wb") as sink:
            last: Any = None
            try:
                for item in produce(turn, turns, room):
                    pickle.dump(item, sink, 4)
                    sink.flush()
            except BrokenPipeError:
                return
            except Exception as error:  # pylint: disable=broad-except # told to whoever waits
                last = error
            pickle.dump(last, sink, 4)
