# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looking into directories with several processes: the kernel's part of a tree walk is most of it, and that runs in parallel."""

import os
import pickle
import select
import struct
from typing import Any, Callable, Dict, List, Optional

_AHEAD = 4  # directories a worker may have in hand, so that it need not wait for us


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
            if any(path in worker.in_hand for worker in self._workers):
                self._collect(None)
            else:
                if path in self._waiting:
                    self._waiting.remove(path)
                self._keep(path, self._function(path))
        return self._results.pop(path)

    def _hand_out(self) -> None:
        for depth in range(1, _AHEAD + 1):
            for worker in list(self._workers):
                if self._waiting and len(worker.in_hand) < depth:
                    path = self._waiting.pop()
                    if not worker.give(path):
                        self._waiting.append(path)
                        self._give_up(worker)

    def _collect(self, timeout: Optional[float]) -> None:
        busy = [worker for worker in self._workers if worker.in_hand]
        for worker in select.select(busy, [], [], timeout)[0] if busy else ():
            listing = worker.take()
            if listing is None:
                self._give_up(worker)
            else:
                self._keep(worker.in_hand.pop(0), listing[0])

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

    def give(self, path: bytes) -> bool:
        """Hand it a directory; False where it has died."""
        try:
            os.write(self.sink, struct.pack("=I", len(path)) + path)
        except OSError:
            return False
        self.in_hand.append(path)
        return True

    def take(self) -> Optional[List[Any]]:
        """Its next listing in a list of one, or ``None`` where it has died."""
        data = _receive(self.source)
        return None if data is None else [pickle.loads(data)]

    def end(self) -> None:
        """Close its pipes, by which it ends, and wait for it."""
        os.close(self.source)
        os.close(self.sink)
        os.waitpid(self.pid, 0)


def _receive(fd: int) -> Optional[bytes]:
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
    return b"".join(parts)


def _serve(function: Callable[[bytes], Any], source: int, sink: int) -> None:
    """The worker's life; never returns."""
    code = 1
    try:
        while True:
            path = _receive(source)
            if path is None:
                code = 0
                break
            data = pickle.dumps(function(path), pickle.HIGHEST_PROTOCOL)
            message = memoryview(struct.pack("=I", len(data)) + data)
            while message:
                message = message[os.write(sink, message) :]
    finally:
        os._exit(code)
