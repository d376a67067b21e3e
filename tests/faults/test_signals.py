# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Being asked to end, and being ended: the module as Ansible runs it, its workers, and async tasks."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, Iterator, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._signals import Interrupted, Interruptible
from ansible_collections.vmimage.qcow.plugins.module_utils._workers import run_jobs
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import guest_bytes, sha256

SLOW = "3M"  # a second: time enough to be interrupted in the middle
COUNT = 4


def heed_signals() -> None:
    """What is started here heeds the signals that this process may have been started to ignore (``nohup make test &``)."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Host:
    """A directory of images that take seconds to convert, and Ansible on this machine."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.images = os.path.join(directory, "images")
        self.state = os.path.join(directory, "state")
        os.makedirs(self.images)
        self.names = ["disk%d.qcow" % number for number in range(COUNT)]
        for number, name in enumerate(self.names):
            clusters = {index: Plain(bytes([number + 1, index % 251 + 1]) * 2048) for index in range(2000)}
            build(ImageSpec(size=10 << 20, clusters=clusters)).write(os.path.join(self.images, name))
        self.before = {name: sha256(os.path.join(self.images, name)) for name in self.names}

    def arguments(self, **options: Any) -> dict[str, Any]:
        images = [{"src": os.path.join(self.images, name)} for name in self.names]
        return dict({"images": images, "state_dir": self.state, "original": "retire", "reserve": "0"}, **options)

    def command(self, arguments: dict[str, Any], *more: str) -> list[str]:
        ansible = os.path.join(os.path.dirname(sys.executable), "ansible")
        interpreter = "ansible_python_interpreter=" + os.path.realpath(sys.executable)
        return [
            *[ansible, "localhost", "-i", "localhost,", "-c", "local", "-e", interpreter, "-m", "vmimage.qcow.qcow_convert"],
            *["-a", json.dumps(arguments), *more],
        ]

    def environment(self) -> dict[str, str]:
        root = next(
            path for path in os.environ.get("PYTHONPATH", "build").split(":") if os.path.isdir(os.path.join(path, "ansible_collections"))
        )
        site = [path for path in sys.path if path.endswith("site-packages")]
        variables = {
            "ANSIBLE_COLLECTIONS_PATH": os.path.abspath(root),
            "ANSIBLE_NOCOWS": "1",
            "ANSIBLE_LOCAL_TEMP": self.directory,
            "ANSIBLE_REMOTE_TEMP": os.path.join(self.directory, "tmp"),
            "ANSIBLE_ASYNC_DIR": os.path.join(self.directory, "async"),
        }
        return dict(os.environ, PYTHONPATH=":".join([os.path.abspath(root), *site]), **variables)

    def start(self, arguments: dict[str, Any], *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(arguments, *more),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )

    def until_copying(self, count: int = 1) -> None:
        deadline = time.monotonic() + 60
        while len(self.temporaries()) < count:
            assert time.monotonic() < deadline, "no conversion began"
            time.sleep(0.02)

    def temporaries(self) -> list[str]:
        return glob.glob(os.path.join(self.images, ".vmimage-qcow.*"))

    def modules(self) -> list[int]:
        """The processes that work on this directory's images, the module first, its workers after it."""
        found = []
        for name in os.listdir("/proc"):
            try:
                with open("/proc/%s/cmdline" % name, "rb") as stream:
                    command = stream.read()
                held = (
                    [os.readlink(path) for path in glob.glob("/proc/%s/fd/*" % name)]
                    if b"qcow_convert" in command and name.isdigit()
                    else []
                )
            except OSError:
                continue
            if any(path.startswith(self.directory) for path in held) and b"AnsiballZ" in command:
                found.append(int(name))
        return sorted(found)

    def at_work(self) -> bool:
        """Whether any process was started from a file of this directory: the job, or Ansible's watcher over it."""
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(path, "rb") as stream:
                    if os.fsencode(self.directory) in stream.read():
                        return True
            except OSError:
                continue
        return False

    def assert_old_or_new(self) -> None:
        for name in self.names:
            path = os.path.join(self.images, name)
            retired = path + ".qcow1.orig"
            assert sha256(path if os.path.exists(path) else retired) == self.before[name]

    def finish(self) -> None:
        done = subprocess.run(self.command(self.arguments()), env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.temporaries() == []
        for name in self.names:
            retired = os.path.join(self.images, name + ".qcow1.orig")
            assert sha256(retired) == self.before[name]
            assert guest_bytes(os.path.join(self.images, name[:-4] + "qcow2"))[:4096] == guest_bytes(retired)[:4096]
        assert len(os.listdir(self.images)) == 2 * COUNT


@pytest.fixture
def host(tmp_path: Any) -> Iterator[Host]:
    made = Host(str(tmp_path))
    yield made
    for pid in made.modules():
        os.kill(pid, signal.SIGKILL)


def gone(pids: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(os.path.exists("/proc/%d" % pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("name, workers", [("SIGTERM", 1), ("SIGTERM", 2), ("SIGINT", 1), ("SIGHUP", 2)])
def test_asked_to_end(host: Host, name: str, workers: int) -> None:
    """The module undoes what is under way, says so, and the next run goes on; also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with host.start(host.arguments(bandwidth=SLOW, workers=workers)) as process:
        host.until_copying(workers)
        pids = host.modules()
        os.kill(pids[0], getattr(signal, name))
        output = process.communicate(timeout=60)[0]
    signal.signal(signal.SIGHUP, before)
    assert "interrupted by " + name in output, output
    assert gone(pids), "the module or a worker is still there"
    assert host.temporaries() == []
    host.assert_old_or_new()
    host.finish()


@pytest.mark.parametrize("workers", [1, 2])
def test_module_is_killed(host: Host, workers: int) -> None:
    """SIGKILL to the module itself: its workers clean up and end by themselves, and until then nobody else gets the lock."""
    with host.start(host.arguments(bandwidth=SLOW, workers=workers)) as process:
        host.until_copying(workers)
        pids = host.modules()
        assert len(pids) >= workers
        os.kill(pids[0], signal.SIGKILL)
        process.communicate(timeout=60)
    assert gone(pids), "a worker outlives the module"
    host.assert_old_or_new()
    if workers > 1:
        assert host.temporaries() == []
    host.finish()


def test_worker_is_killed(host: Host) -> None:
    """One worker is ended (by the OOM killer, say): its image fails, the others are converted."""
    with host.start(host.arguments(bandwidth=SLOW, workers=2)) as process:
        host.until_copying(2)
        pids = host.modules()
        os.kill(pids[-1], signal.SIGKILL)
        output = process.communicate(timeout=90)[0]
    assert "was ended by SIGKILL" in output
    host.assert_old_or_new()
    assert len(glob.glob(os.path.join(host.images, "*.qcow1.orig"))) == COUNT - 1
    host.finish()


def test_controller_goes_away(host: Host) -> None:
    """The whole tree of processes is killed, as when an SSH session's scope is: the next run cleans up."""
    with host.start(host.arguments(bandwidth=SLOW)) as process:
        host.until_copying()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    for pid in host.modules():
        os.kill(pid, signal.SIGKILL)
        assert gone([pid])
    host.assert_old_or_new()
    host.finish()


def asynchronous(host: Host, seconds: int, arguments: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    command = host.command(arguments, "-B", str(seconds), "-P", "1")
    return subprocess.run(command, env=host.environment(), capture_output=True, text=True, check=False, timeout=120)


def test_async(host: Host) -> None:
    done = asynchronous(host, 120, host.arguments(bandwidth=SLOW, workers=2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(glob.glob(os.path.join(host.images, "*.qcow1.orig"))) == COUNT
    host.finish()


def test_async_times_out(host: Host) -> None:
    """Ansible kills the job's whole process group when its time is over."""
    done = asynchronous(host, 3, host.arguments(bandwidth="1M"))
    assert done.returncode != 0
    assert "Timeout exceeded" in done.stdout or "requested time" in done.stdout, done.stdout + done.stderr
    # The watcher looks every five seconds; on a busy machine it and the job may not even have begun when Ansible gives up.
    deadline = time.monotonic() + 60
    while host.at_work():
        assert time.monotonic() < deadline, "the job goes on after its time"
        time.sleep(0.1)
    host.assert_old_or_new()
    host.finish()


# ---- the parts -------------------------------------------------------------------------------------------------------------------


def double(job: Any) -> Any:
    if job == "die":
        os._exit(3)
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(job, float):
        time.sleep(job)
    return job * 2


def test_workers_answer_and_die_alone() -> None:
    jobs = [1, "die", 3, "kill", b"x" * 1000000]
    ended = dict(run_jobs(double, jobs, 2))
    assert [ended[0].result, ended[2].result, len(ended[4].result)] == [2, 6, 2000000]
    assert (ended[1].died, ended[3].died) == ("ended with exit code 3", "was ended by SIGKILL")


def test_workers_end_when_nobody_listens() -> None:
    running = run_jobs(double, [0.0, 60.0, 60.0], 3)
    assert next(running)[0] == 0
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 10


def test_only_the_first_signal_interrupts() -> None:
    cleaned = False
    with pytest.raises(Interrupted):
        with Interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.05)
                cleaned = True
    assert cleaned


def test_ignored_signals_stay_ignored() -> None:
    before: Optional[Any] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)
