# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looking into directories with several processes: the kernel's part of a tree walk is most of it, and that runs in parallel."""

import os
import pickle
import select
import struct
from typing import Any, Callable, Dict, List, Optional

_BATCH = 16  # directories given to a worker at once, at most: a message and a wake-up cost as much as a directory of a hundred files


class Pool:
    """Forked workers that turn directories into listings; also into the listings of the directories these lead to.

    This process works too. A worker that dies loses nothing: what it had in hand is done here. Use as a context manager.

    :param function: path -> listing (picklable), run in the workers; must not raise.
    :param following: listing -> paths of the directories to be listed next, in the order they will be asked for.
    """

    def __init__(self, function: Callable[[bytes], Any], following: Callable[[Any], List[bytes]], workers: int) -> None:
        self._function = function
        self._following = following
        self._results: Dict[bytes, Any] = {}
        self._waiting: List[bytes] = []
        self._workers: List[_Worker] = []
        while len(self._workers) < workers:
            self._workers.append(_Worker(function, self._workers))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *dummy: Any) -> None:
        while self._workers:
            self._workers.pop().end()

    def result(self, path: bytes) -> Any:
        """The listing of a directory that followed from an earlier one, or of a new one. Listed here where no worker has it in hand."""
        while path not in self._results:
            self._collect(0)
            self._hand_out()
            if path in self._results:
                break
            if not any(path in worker.in_hand for worker in self._workers):
                if path in self._waiting:
                    self._waiting.remove(path)
                self._list(path)
            elif self._waiting:
                self._list(self._waiting.pop())
            else:
                self._collect(None)
        return self._results.pop(path)

    def _hand_out(self) -> None:
        # Only to a worker that waits: it reads what we write, so that neither waits for the other with a full pipe.
        for worker in [worker for worker in self._workers if not worker.in_hand]:
            count = min(_BATCH, len(self._waiting) // (len(self._workers) + 1))
            if count:
                batch = self._waiting[: -count - 1 : -1]
                del self._waiting[-count:]
                if not worker.give(batch):
                    self._give_up(worker)

    def _collect(self, timeout: Optional[float]) -> None:
        busy = [worker for worker in self._workers if worker.in_hand]
        for worker in select.select(busy, [], [], timeout)[0] if busy else ():
            listings = worker.take()
            if listings is None:
                self._give_up(worker)
            else:
                batch, worker.in_hand = worker.in_hand, []
                for path, listing in zip(batch, listings):
                    self._keep(path, listing)

    def _list(self, path: bytes) -> None:
        self._keep(path, self._function(path))

    def _keep(self, path: bytes, listing: Any) -> None:
        self._results[path] = listing
        self._waiting.extend(reversed(self._following(listing)))

    def _give_up(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        self._waiting.extend(reversed(worker.in_hand))
        worker.end()


class _Worker:
    def __init__(self, function: Callable[[bytes], Any], siblings: List["_Worker"]) -> None:
        self.in_hand: List[bytes] = []
        self.source: int
        self.sink: int
        for_us, to_us = os.pipe()
        for_it, to_it = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # With our ends of a sibling's pipes open here, the sibling would not see us end.
            for fd in [for_us, to_it] + [fd for sibling in siblings for fd in (sibling.source, sibling.sink)]:
                os.close(fd)
            _serve(function, for_it, to_us)
        os.close(to_us)
        os.close(for_it)
        self.source, self.sink = for_us, to_it

    def fileno(self) -> int:
        """For select: readable when there is a listing to take."""
        return self.source

    def give(self, batch: List[bytes]) -> bool:
        """Hand it directories; False where it has died."""
        self.in_hand = batch
        try:
            _send(self.sink, batch)
        except OSError:
            return False
        return True

    def take(self) -> Optional[List[Any]]:
        """The listings of what it has in hand, or ``None`` where it has died."""
        return _receive(self.source)

    def end(self) -> None:
        """Close its pipes, by which it ends, and wait for it."""
        os.close(self.source)
        os.close(self.sink)
        os.waitpid(self.pid, 0)


def _send(fd: int, message: List[Any]) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    view = memoryview(struct.pack("=I", len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def _receive(fd: int) -> Optional[List[Any]]:
    """One message, or ``None`` where the other side has ended."""
    parts: List[bytes] = []
    missing, header = 4, True
    while missing:
        try:
            part = os.read(fd, missing)
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
        if header and not missing:
            missing, header, parts = struct.unpack("=I", b"".join(parts))[0], False, []
    return pickle.loads(b"".join(parts))


def _serve(function: Callable[[bytes], Any], source: int, sink: int) -> None:
    """The worker's life; never returns."""
    code = 1
    try:
        while True:
            batch = _receive(source)
            if batch is None:
                code = 0
                break
            _send(sink, [function(path) for path in batch])
    finally:
        os._exit(code)
