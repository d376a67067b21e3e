# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Forked workers.

There is one kind of :class:`Worker`. Several of them share the work on one image (:class:`OrderedPool`), on many (:func:`run_jobs`), or on the
directories of a tree (:mod:`._host.tree`).

Not ``concurrent.futures``: its pools start threads and need POSIX semaphores (there are hosts without ``/dev/shm``), wait for every job
before they let an exception out, and leave their processes behind when the parent is killed. Not threads: reading, inflating and hashing small
clusters is many short calls, and threads would wait for the interpreter's lock between them.
"""

import gc
import heapq
import mmap
import os
import pickle
import select
import signal
import struct
import time
from operator import itemgetter
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ._errors import QcowError
from ._signals import Interrupted, Interruptible

_PR_SET_PDEATHSIG = 1
_GRACE = 60.0  # seconds that a worker has to clean up after SIGTERM
_TICK = 0.02


class Channel:
    """One end of a connection between a worker and its parent; messages are whatever can be pickled."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink

    def fileno(self) -> int:
        """For ``select``: readable when there is a message, or an end."""
        return self._source

    def send(self, message: Any) -> None:
        """:raises OSError: the other side has ended."""
        data = pickle.dumps(message, 4)
        view = memoryview(struct.pack("=I", len(data)) + data)
        while view:
            view = view[os.write(self._sink, view) :]

    def receive(self) -> Any:
        """The next message; waits for it.

        :raises EOFError: the other side has ended.
        """
        (length,) = struct.unpack("=I", self._read(4))
        return pickle.loads(self._read(length))

    def _read(self, missing: int) -> bytes:
        parts: List[bytes] = []
        while missing:
            part = os.read(self._source, missing)
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """End the connection."""
        os.close(self._source)
        os.close(self._sink)


Life = Callable[[Channel], None]
"""What a worker does, with its end of the channel; its process ends with it."""


class Worker(Channel):
    """A forked process, seen from its parent. It has the open files and all that is known of them, and ends when we do, however we end.

    :param siblings: the workers of the same pool so far.
    :param cleans_up: SIGTERM is :class:`Interrupted` to it; other workers only read, and are killed.
    :raises OSError: no more processes, or no memory.
    """

    def __init__(self, life: Life, siblings: Sequence["Worker"] = (), *, cleans_up: bool = False) -> None:
        self._cleans_up = cleans_up
        source, its_sink = os.pipe()
        its_source, sink = os.pipe()
        super().__init__(source, sink)
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (source, its_sink, its_source, sink):
                os.close(fd)
            raise
        if self.pid == 0:
            code = 1
            try:
                # With our ends of a sibling's channel open here, the sibling would not see us end.
                for channel in [self, *siblings]:
                    channel.close()
                self._live(life, Channel(its_source, its_sink), parent)
                code = 0
            except Interrupted as error:
                code = 128 + error.number
            finally:
                os._exit(code)
        os.close(its_sink)
        os.close(its_source)

    def _live(self, life: Life, channel: Channel, parent: int) -> None:
        if self._cleans_up:
            with Interruptible():
                _die_with(parent, signal.SIGTERM)
                life(channel)
        else:
            _die_with(parent, signal.SIGKILL)
            life(channel)

    def fate(self) -> str:
        """How it has ended, in words; waits for that."""
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        if os.WIFSIGNALED(status):
            return "was ended by {0}".format(signal.Signals(os.WTERMSIG(status)).name)
        return "ended with exit code {0}".format(os.WEXITSTATUS(status))

    def ask_to_end(self) -> None:
        """Have it clean up; :meth:`end` waits for that."""
        if self.pid and self._cleans_up:  # not reaped yet, so the number is still its own
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """End it, whatever it does, and wait for it."""
        self.close()
        self.ask_to_end()
        deadline = time.monotonic() + (_GRACE if self._cleans_up else 0)
        while self.pid and time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.pid = 0
                return
            time.sleep(_TICK)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.fate()


def _die_with(parent: int, number: int) -> None:
    """Have the kernel send us a signal when the parent is gone, also where it was killed."""
    try:
        import ctypes  # some Pythons are built without

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
    if os.getppid() != parent:
        raise Interrupted(number)


# ---- one image ----

SMALL = 8 << 20
"""Bytes that are not worth a worker."""

_MOST = 4  # workers for one image
_AHEAD = 3  # items that a worker may be ahead of who takes them; with two, one waits while another is not given a processor

Room = Callable[[int], memoryview]
"""Memory of as many bytes for the item that is made next; what was in it before is there still."""

Produce = Callable[[int, int, Room], Iterator[Tuple[int, Any]]]
"""``(partition, partitions, room)`` -> ``(key, item)`` with ascending keys: one of so many parts of the work. Calls ``room`` once for each item."""


class OrderedPool:
    """Workers that make a partition each of the items, which come here in the order of their keys (context manager; iterate once).

    Yields ``(key, item, memory)``; the memory, which both sides see, is good until the next item is asked for. What a worker raises is raised here
    in its place.

    :param produce: runs in each worker. :param size: bytes of memory that an item needs at most.
    :param held: bytes of the files that are read; small work is done in this process.
    """

    def __init__(self, produce: Produce, size: int, held: int) -> None:
        self._produce = produce
        self._workers: List[Worker] = []
        self._memories: List[List[memoryview]] = []
        count = 0 if held <= SMALL else max(2, min(_MOST, os.cpu_count() or 1))
        try:
            for partition in range(count):
                self._start(partition, count, max(size, 1))
        except OSError:  # then without
            self._end()

    def _start(self, partition: int, partitions: int, size: int) -> None:
        memories = [memoryview(mmap.mmap(-1, size)) for _number in range(_AHEAD)]

        def life(channel: Channel) -> None:
            _produce_into(channel, memories, lambda room: self._produce(partition, partitions, room))

        self._workers.append(Worker(life, self._workers))
        self._memories.append(memories)

    def __enter__(self) -> "OrderedPool":
        return self

    def __exit__(self, *dummy: Any) -> None:
        self._end()

    def __iter__(self) -> Iterator[Tuple[int, Any, memoryview]]:
        if self._workers:
            return heapq.merge(*map(_items, self._workers, self._memories), key=itemgetter(0))
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
        while self._workers:
            self._workers.pop().end()


def _items(worker: Worker, memories: List[memoryview]) -> Iterator[Tuple[int, Any, memoryview]]:
    """What a worker makes of its partition."""
    number = 0
    while True:
        try:
            made = worker.receive()
        except EOFError:
            raise QcowError(
                "a process that read the image {0}".format(worker.fate()),
                reason="process",
                hint="The image was not changed. After SIGKILL see whether the host ran out of memory. Run again.",
            ) from None
        if made is None:
            return
        if isinstance(made, BaseException):
            raise made
        yield made[0], made[1], memories[number % _AHEAD]
        number += 1
        try:
            worker.send(None)
        except BrokenPipeError:
            pass  # it has made its last item, or it has died, which is received next


def _produce_into(channel: Channel, memories: List[memoryview], produce: Callable[[Room], Iterator[Tuple[int, Any]]]) -> None:
    """A worker's life. The other side has ended where the channel is closed: then there is nobody to work for."""
    gc.disable()  # it makes many small tuples and no circles
    count = [0]

    def room(size: int) -> memoryview:
        if count[0] >= _AHEAD:
            channel.receive()
        count[0] += 1
        return memories[(count[0] - 1) % _AHEAD][:size]

    last: Any = None
    try:
        for item in produce(room):
            channel.send(item)
    except (BrokenPipeError, EOFError):
        return
    except Exception as error:  # pylint: disable=broad-except # told to whoever waits
        last = error
    channel.send(last)


# ---- many images ----


class Ended(NamedTuple):
    """A job's end: what its function returned, or, where its process ended otherwise, the reason in words."""

    result: Any
    died: Optional[str]


def run_jobs(
    function: Callable[[Any], Any], jobs: Sequence[Any], workers: int, may_begin: Callable[[int], bool] = lambda _number: True
) -> Iterator[Tuple[int, Ended]]:
    """Call ``function`` with each job in a worker of its own, at most ``workers`` at a time; yields (index of the job, how it ended) as they end.

    Whatever ends the iteration early ends the workers: they get SIGTERM, which the function sees as :class:`Interrupted`, and are waited for.

    :param function: raises nothing but :class:`Interrupted`; what it returns can be pickled.
    :param may_begin: asked with the index of each job before it is begun; those that may not are not begun, and not yielded.
    """
    waiting: List[int] = list(range(len(jobs)))
    running: Dict[Worker, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(workers, 1):
                number = waiting.pop(0)
                if not may_begin(number):
                    continue
                running[Worker(_calling(function, jobs[number]), list(running), cleans_up=True)] = number
            for worker in select.select(list(running), [], [])[0] if running else ():
                number = running.pop(worker)
                yield number, _ended(worker)
    finally:
        for worker in running:
            worker.ask_to_end()
        for worker in running:
            worker.end()


def _calling(function: Callable[[Any], Any], job: Any) -> Life:
    return lambda channel: channel.send(function(job))


def _ended(worker: Worker) -> Ended:
    try:
        answer, died = worker.receive(), None
    except EOFError:
        answer, died = None, worker.fate()
    if died is None:
        worker.fate()
    worker.close()
    return Ended(answer, died)
