# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running a program so that it never outlives us, never waits for a terminal and never sees a shell."""

import os
import resource
import selectors
import signal
import subprocess
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from .._errors import ToolFailed, ToolMissing
from .._paths import show
from . import linux

_PR_SET_PDEATHSIG = 1
_KEEP = 1 << 20  # bytes of each stream that are kept for the caller; JSON answers are a few kilobytes
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_TICK = 0.25  # seconds between two calls of `tick`


class Output(NamedTuple):
    """What a program left: its exit code (negative: the signal that ended it) and the end of its two streams."""

    rc: int
    stdout: bytes
    stderr: bytes


def command_line(argv: Sequence[bytes]) -> List[str]:
    """The arguments for messages and results, as valid UTF-8."""
    return [show(argument) for argument in argv]


def find_program(name: bytes) -> Optional[bytes]:
    """The full path of a program: as given where it contains a slash, else from PATH and the places an Ansible PATH often lacks."""
    if b"/" in name:
        return os.path.abspath(name) if os.access(name, os.X_OK) else None
    for folder in os.environb.get(b"PATH", b"").split(b":") + [
        b"/usr/local/sbin",
        b"/usr/local/bin",
        b"/usr/sbin",
        b"/usr/bin",
        b"/sbin",
        b"/bin",
    ]:
        path = os.path.join(folder, name)
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.abspath(path)
    return None


def run(
    argv: Sequence[bytes],
    *,
    timeout: Optional[float] = None,
    on_stdout: Optional[Callable[[bytes], None]] = None,
    tick: Optional[Callable[[], None]] = None,
    memory: Optional[int] = None,
) -> Output:
    """Run a program to its end. Its whole process group ends with us: also on an exception, also when we are killed.

    :param argv: program (full path) and arguments as bytes.
    :param timeout: seconds until it is ended, ``None`` for no limit.
    :param on_stdout: gets each piece of standard output as it comes.
    :param tick: is called a few times a second; what it raises ends the program and is passed on.
    :param memory: bytes of address space that it gets at most, ``None`` for no limit.
    :raises ToolMissing: it cannot be started. :raises ToolFailed: the time is over.
    """
    environment: Dict[bytes, bytes] = dict(os.environb)
    environment.update({b"LC_ALL": b"C", b"LANGUAGE": b"C"})
    if memory is not None:
        # The C library sets 64 MiB of address space aside for each of its threads' arenas, up to eight for every processor.
        environment[b"MALLOC_ARENA_MAX"] = b"1"
    try:
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function # run_command belongs to AnsibleModule, which is not known here
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            preexec_fn=_before_exec(os.getpid(), memory),
        )
    except OSError as error:
        raise ToolMissing("cannot be started: {0}.".format(error.strerror), path=argv[0]) from error
    try:
        return _follow(process, argv, timeout, on_stdout, tick)
    finally:
        _end(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _before_exec(parent: int, memory: Optional[int]) -> Callable[[], None]:
    """What the new process does first: limit itself, and see that it dies with its parent."""
    try:
        prctl = linux.libc().prctl  # looked up here: between fork and exec nothing may be loaded
    except (OSError, AttributeError):
        prctl = None

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory if memory is None or hard == resource.RLIM_INFINITY else min(memory, hard)  # only root may raise what we were given

    def before_exec() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)

    return before_exec


def _follow(
    process: "subprocess.Popen[bytes]",
    argv: Sequence[bytes],
    timeout: Optional[float],
    on_stdout: Optional[Callable[[bytes], None]],
    tick: Optional[Callable[[], None]],
) -> Output:
    kept = {process.stdout: b"", process.stderr: b""}
    deadline = None if timeout is None else time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            for key, _dummy in selector.select(_TICK):
                piece = os.read(key.fd, 65536)
                if not piece:
                    selector.unregister(key.fileobj)
                    continue
                kept[key.fileobj] = (kept[key.fileobj] + piece)[-_KEEP:]  # type: ignore[index]
                if on_stdout is not None and key.fileobj is process.stdout:
                    on_stdout(piece)
            if tick is not None:
                tick()
            if deadline is not None and time.monotonic() > deadline:
                raise ToolFailed(
                    "did not answer within {0} seconds and was ended.".format(timeout),
                    path=argv[0],
                    cmd=command_line(argv),
                    rc=None,
                    stderr=show(kept[process.stderr]),
                )
    return Output(process.wait(), kept[process.stdout], kept[process.stderr])


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
