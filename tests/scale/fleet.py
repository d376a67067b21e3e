# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a fleet costs the controller: ``python -m ansible_collections.vmimage.qcow.tests.scale.fleet --hosts 200 --images 25``.

Every host is this machine under another name, with a tree and a state directory of its own, so that nearly all that is measured is Ansible and the
report. Hosts of a real fleet do their own work: there, only the controller's share remains.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk

COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))


def make_fleet(folder: str, hosts: int, images: int) -> None:
    """Trees of small images, and the inventory."""
    pattern = os.path.join(folder, "pattern")
    os.makedirs(pattern)
    for number in range(images):
        build(disk(number, size=MIB, filled=16)).write(os.path.join(pattern, f"vm{number:05d}.qcow"))
    names = [f"host{number:04d}" for number in range(hosts)]
    for name in names:
        shutil.copytree(pattern, os.path.join(folder, "trees", name))
    here = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "scan_paths": f"{folder}/trees/{{{{ inventory_hostname }}}}",
        "migrate_paths": f"{folder}/trees/{{{{ inventory_hostname }}}}",
        "scan_state_dir": f"{folder}/states/{{{{ inventory_hostname }}}}",
        "migrate_state_dir": f"{folder}/states/{{{{ inventory_hostname }}}}",
        "scan_report_dir": f"{folder}/reports",
        "migrate_report_dir": f"{folder}/reports",
    }
    with open(os.path.join(folder, "inventory.json"), "w", encoding="utf-8") as stream:
        json.dump({"vm_hosts": {"hosts": dict.fromkeys(names, {}), "vars": here}}, stream)


def run(folder: str, playbook: str, forks: int) -> dict[str, float]:
    """Run a playbook over the fleet; its time in seconds, and the memory of the controller's main process and of all its processes, in bytes."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
        "ANSIBLE_LOCAL_TEMP": os.path.join(folder, "local"),
        "ANSIBLE_REMOTE_TEMP": os.path.join(folder, "remote"),
        "ANSIBLE_FORKS": str(forks),
        "ANSIBLE_PIPELINING": "1",
    }
    command = [
        os.path.join(os.path.dirname(sys.executable), "ansible-playbook"),
        "-i",
        f"{folder}/inventory.json",
        f"vmimage.qcow.{playbook}",
    ]
    started = time.monotonic()
    most = 0
    with open(os.path.join(folder, f"{playbook}.log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.2)
    if process.returncode != 0:
        raise SystemExit(f"{playbook} ended with {process.returncode}, see {log.name}")
    return {"seconds": time.monotonic() - started, "memory": most, "printed": os.path.getsize(log.name)}


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def measure(folder: str, hosts: int, images: int, forks: int, playbooks: list[str]) -> dict[str, dict[str, float]]:
    """Make a fleet and run the playbooks over it."""
    make_fleet(folder, hosts, images)
    results = {}
    for playbook in playbooks:
        results[playbook] = run(folder, playbook, forks)
        figures = results[playbook]
        reports = os.path.join(folder, "reports")
        figures["page"] = os.path.getsize(os.path.join(reports, "index.html"))
        figures["files"] = sum(entry.stat().st_size for entry in os.scandir(reports))
        print(
            f"{playbook}: {hosts} hosts, {hosts * images} images, {forks} forks: {figures['seconds']:.0f} s, {figures['seconds'] / hosts:.2f} s a host, "
            f"controller {figures['memory'] / MIB:.0f} MiB, printed {figures['printed'] / MIB:.2f} MiB, page {figures['page'] / MIB:.2f} MiB, "
            f"all reports {figures['files'] / MIB:.1f} MiB",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--images", type=int, default=25, help="of each host")
    parser.add_argument("--forks", type=int, default=10)
    parser.add_argument("--playbooks", default="scan,migrate")
    parser.add_argument("--folder", help="keep everything in this directory")
    options = parser.parse_args()
    folder = options.folder or tempfile.mkdtemp(prefix="qcow-fleet-")
    os.makedirs(folder, exist_ok=True)
    try:
        measure(os.path.abspath(folder), options.hosts, options.images, options.forks, options.playbooks.split(","))
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
