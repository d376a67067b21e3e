# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a night with a fleet costs the controller, and whether its window and its stop hold: `make fleet`, or in small ``EXTRA="--hosts 8 ..."``.

Every host is this machine under another name, with a tree and a state directory of its own, so that nearly all that is measured is Ansible and the
report. Hosts of a real fleet do their own work: there, only the controller's share remains. Some hosts cannot be reached, some have an image that is
refused. The steps:

    scan      look at everything
    window    migrate, with a window that closes in the middle
    stop      go on, and stop from another terminal, soon
    rest      go on to the end
    status    ask for how things stand
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator, NamedTuple, Optional

from ansible_collections.vmimage.qcow.tests.support import truth
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk

COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))
PLAYS = ("scan", "migrate", "status", "stop")
STEPS = ("scan", "window", "stop", "rest", "status")


class Fleet(NamedTuple):
    """What is measured. ``window`` in seconds; ``bandwidth`` as the option has it, or empty."""

    folder: str
    hosts: int
    images: int
    unreachable: int = 0
    refusing: int = 0
    forks: int = 10
    window: float = 240.0
    bandwidth: str = ""

    @property
    def reached(self) -> list[str]:
        return [f"host{number:04d}" for number in range(self.hosts - self.unreachable)]

    @property
    def away(self) -> list[str]:
        return [f"away{number:04d}" for number in range(self.unreachable)]

    @property
    def to_migrate(self) -> int:
        """Images that nothing keeps from being migrated."""
        return len(self.reached) * self.images - self.refusing

    def path(self, *names: str) -> str:
        return os.path.join(self.folder, *names)


class Step(NamedTuple):
    """What one step took: seconds, seconds of a processor (of the jobs on the hosts, only what started them), bytes of memory of the controller's main
    process, bytes. ``late``: images that were begun after the window had closed, or after the stop had been carried out."""

    name: str
    seconds: float
    processor: float
    memory: int
    printed: int
    page: int
    files: int
    migrated: int
    left: int
    late: Optional[int] = None


def make(fleet: Fleet) -> None:
    """Trees of small images, one of them cut short on the hosts that refuse it, and the inventory."""
    pattern = fleet.path("pattern")
    os.makedirs(pattern)
    for number in range(fleet.images):
        build(disk(number, size=MIB, filled=16)).write(os.path.join(pattern, f"vm{number:05d}.qcow"))
    for number, name in enumerate(fleet.reached):
        shutil.copytree(pattern, fleet.path("trees", name))
        if number < fleet.refusing:
            os.truncate(fleet.path("trees", name, "vm00000.qcow"), 4200)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    closed_door = {
        "ansible_connection": "ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": closed,
        "ansible_ssh_common_args": "-o BatchMode=yes",
    }
    hosts: dict[str, dict[str, Any]] = {name: {} for name in fleet.reached}
    hosts.update(dict.fromkeys(fleet.away, closed_door))
    own = {"paths": "trees/{{ inventory_hostname }}", "state_dir": "states/{{ inventory_hostname }}", "report_dir": "reports"}
    here = {f"{play}_{name}": fleet.path(value) for play in PLAYS for name, value in own.items()}
    here.update(ansible_connection="local", ansible_python_interpreter=sys.executable)
    if fleet.bandwidth:
        here["migrate_bandwidth"] = fleet.bandwidth
    with open(fleet.path("inventory.json"), "w", encoding="utf-8") as stream:
        json.dump({"vm_hosts": {"hosts": hosts, "vars": here}}, stream)


def start(fleet: Fleet, log: str, playbook: str, **variables: Any) -> "subprocess.Popen[bytes]":
    """Start a playbook over the fleet; what it prints is in the file ``log`` of the folder."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
        "ANSIBLE_LOCAL_TEMP": fleet.path("local"),
        "ANSIBLE_REMOTE_TEMP": fleet.path("remote"),
        "ANSIBLE_FORKS": str(fleet.forks),
        "ANSIBLE_PIPELINING": "1",
    }
    programs = os.path.dirname(sys.executable)
    command = [os.path.join(programs, "ansible-playbook"), "-i", fleet.path("inventory.json"), "-e", json.dumps(variables)]
    with open(fleet.path(log), "wb") as stream:
        return subprocess.Popen(
            [*command, f"vmimage.qcow.{playbook}"], stdout=stream, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL
        )


def end(fleet: Fleet, log: str, process: "subprocess.Popen[bytes]") -> int:
    """Wait for a playbook.

    :return: the most memory that its main process had, in bytes.
    :raises SystemExit: where it ended with another code than such a fleet leads to.
    """
    most = 0
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.2)
    if process.returncode not in ((4,) if fleet.unreachable else (0, 2) if fleet.refusing else (0,)):
        raise SystemExit(f"ansible-playbook ended with {process.returncode}, see {fleet.path(log)}")
    return most


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def processor() -> float:
    """Seconds of a processor that all processes took which were started from here and have been waited for."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def begun(fleet: Fleet) -> list[datetime]:
    """When each migration was begun, by the records of the hosts: their names hold the moment."""
    found = []
    for name in fleet.reached:
        for facts in truth.records(pathlib.Path(fleet.path("states", name))):
            found.append(datetime.strptime(facts["id"].partition("Z")[0], "%Y%m%dT%H%M%S.%f").replace(tzinfo=timezone.utc))
    return found


def migrated(fleet: Fleet) -> int:
    """Images with a result in place, by the files."""
    return sum(name.endswith(".qcow2") for host in fleet.reached for name in os.listdir(fleet.path("trees", host)))


def true(fleet: Fleet) -> truth.Hosts:
    """What is true of the hosts, found out by other code than the collection's."""
    return {name: truth.images(pathlib.Path(fleet.path("trees", name)), pathlib.Path(fleet.path("states", name))) for name in fleet.reached}


def take(fleet: Fleet, step: str) -> Step:
    """Take one step."""
    log = step + ".log"
    variables: dict[str, Any] = {}
    started, used = time.monotonic(), processor()
    closes: Optional[datetime] = None
    if step == "window":
        closes = datetime.now(timezone.utc) + timedelta(seconds=fleet.window)
        variables["migrate_until"] = closes.strftime("%Y-%m-%d %H:%M:%S+00:00")
    process = start(fleet, log, {"window": "migrate", "stop": "migrate", "rest": "migrate"}.get(step, step), **variables)
    stopper = threading.Thread(target=lambda: stopped.append(_stop(fleet, process)))
    stopped: list[datetime] = []
    if step == "stop":
        stopper.start()
    memory = end(fleet, log, process)
    seconds = time.monotonic() - started
    if step == "stop":
        stopper.join()
        closes = stopped[0]
    hosts = true(fleet)
    reports = pathlib.Path(fleet.path("reports"))
    wrong = truth.differences(hosts, reports, set(fleet.away))
    wrong += truth.differences_of_page(hosts, (reports / "index.html").read_text("utf-8"), set(fleet.away))
    if wrong:
        raise SystemExit("The report says something else than is true:\n" + "\n".join(wrong[:20]))
    done = migrated(fleet)
    return Step(
        step,
        seconds,
        processor() - used,
        memory,
        os.path.getsize(fleet.path(log)),
        os.path.getsize(reports / "index.html"),
        sum(entry.stat().st_size for entry in os.scandir(reports)),
        done,
        sum(len(found) for found in hosts.values()) - done,
        None if closes is None else sum(moment > closes for moment in begun(fleet)),
    )


def _stop(fleet: Fleet, process: "subprocess.Popen[bytes]") -> datetime:
    """Stop a run, as from another terminal, when a tenth of what it has to do is done: to ask all hosts takes its time, too.

    :return: when that had been carried out.
    """
    before = migrated(fleet)
    enough = before + max(1, (fleet.to_migrate - before) // 10)
    while migrated(fleet) < enough and process.poll() is None:
        time.sleep(0.5)
    end(fleet, "stop-itself.log", start(fleet, "stop-itself.log", "stop"))
    return datetime.now(timezone.utc)


def night(fleet: Fleet, steps: tuple[str, ...] = STEPS) -> Iterator[Step]:
    """Make a fleet and take the steps."""
    make(fleet)
    for step in steps:
        yield take(fleet, step)


ROW = "{:8} {:>8} {:>14} {:>11} {:>9} {:>12} {:>12} {:>9} {:>6}  {}"
HEAD = ROW.format(
    "step", "seconds", "CPU s a host", "memory MiB", "page MiB", "reports MiB", "printed MiB", "migrated", "left", "begun too late"
)


def line(fleet: Fleet, step: Step) -> str:
    """A step as a line of the table."""
    sizes = [f"{size / MIB:.2f}" for size in (step.page, step.files, step.printed)]
    return ROW.format(
        step.name,
        f"{step.seconds:.0f}",
        f"{step.processor / fleet.hosts:.2f}",
        f"{step.memory / MIB:.0f}",
        *sizes,
        step.migrated,
        step.left,
        "" if step.late is None else step.late,
    ).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=300)
    parser.add_argument("--images", type=int, default=4, help="of each host")
    parser.add_argument("--unreachable", type=int, default=5, help="hosts among them that cannot be reached")
    parser.add_argument("--refusing", type=int, default=10, help="hosts among them with a damaged image")
    parser.add_argument("--forks", type=int, default=10)
    parser.add_argument("--window", type=float, default=240, help="seconds until the window closes")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--folder", help="keep everything in this directory")
    options = parser.parse_args()
    folder = os.path.abspath(options.folder or tempfile.mkdtemp(prefix="qcow-fleet-"))
    os.makedirs(folder, exist_ok=True)
    fleet = Fleet(folder, options.hosts, options.images, options.unreachable, options.refusing, options.forks, options.window)
    try:
        print(
            f"{fleet.hosts} hosts with {fleet.images} images each, {fleet.unreachable} unreachable, {fleet.refusing} refusing one; {fleet.forks} forks"
        )
        print(HEAD, flush=True)
        for step in night(fleet, tuple(options.steps.split(","))):
            print(line(fleet, step), flush=True)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
