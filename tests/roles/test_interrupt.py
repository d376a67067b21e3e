# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C ends ansible-playbook only: hosts that are at work go on with all their images, and those that are not begin nothing."""

import os
import pathlib
import signal
import time

from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller

IMAGES = ("first", "second", "third")


def test_hosts_go_on(tmp_path: pathlib.Path) -> None:
    hosts = {}
    for host in ("kvm1", "kvm2", "kvm3"):
        (tmp_path / host).mkdir()
        for number, name in enumerate(IMAGES):
            build(disk(number, size=8 * MIB, filled=500)).write(tmp_path / host / (name + ".qcow"))
        hosts[host] = {"migrate_paths": str(tmp_path / host), "migrate_state_dir": str(tmp_path / ("state-" + host))}
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # pytest may have been started to ignore it (`make test &`), and so would its children
    process = Controller(tmp_path, hosts=hosts).start("migrate", "--forks", "2", migrate_bandwidth="1M", migrate_progress_interval="1s")
    deadline = time.monotonic() + 120

    def at_work() -> set[str]:
        return {path.parent.name for path in tmp_path.glob("kvm*/.vmimage-qcow.*.tmp")}

    while at_work() != {"kvm1", "kvm2"}:
        assert time.monotonic() < deadline, "no two hosts are at work"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode not in (0, 2, 4), printed
    assert at_work() == {"kvm1", "kvm2"}, "a host has stopped with ansible-playbook"
    while at_work() or len(list(tmp_path.glob("kvm*/*.qcow2"))) < 2 * len(IMAGES):
        assert time.monotonic() < deadline, "a host has stopped in the middle"
        time.sleep(0.2)
    assert sorted(path.name for path in (tmp_path / "kvm3").iterdir()) == sorted(name + ".qcow" for name in IMAGES)
