# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet in batches: a host with a problem does not keep the others from their turn, and the run fails when all have had it."""

import os
import pathlib
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played

IMAGE = ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})
HOSTS = ("kvm1", "kvm2", "kvm3")


class Fleet:
    """Three hosts, each with a sound image ``one.qcow`` and a state of its own."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.trees = {host: scratch / host for host in HOSTS}
        hosts = {}
        for host, tree in self.trees.items():
            tree.mkdir()
            build(IMAGE).write(tree / "one.qcow")
            hosts[host] = {
                "%s_%s" % (playbook, name): str(value)
                for playbook in ("scan", "migrate", "rollback", "cleanup")
                for name, value in (("paths", tree), ("state_dir", scratch / ("state-" + host)))
            }
        self.controller = Controller(scratch, hosts=hosts)

    def damage(self, host: str) -> None:
        build(IMAGE).write(self.trees[host] / "damaged.qcow")
        os.truncate(self.trees[host] / "damaged.qcow", 4200)

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Played:
        return self.controller.run(playbook, *arguments, **dict({"qcow_serial": 1}, **variables))

    def migrated(self) -> list[str]:
        return [host for host, tree in self.trees.items() if (tree / "one.qcow2").exists()]


@pytest.fixture(name="fleet")
def _fleet(tmp_path: pathlib.Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.mark.parametrize("damaged", [("kvm1",), HOSTS])
@pytest.mark.parametrize("serial", [1, 2, "100%"])
def test_every_sound_image_is_migrated(damaged: tuple[str, ...], serial: Any, fleet: Fleet) -> None:
    for host in damaged:
        fleet.damage(host)
    played = fleet.run("migrate", qcow_serial=serial)
    assert (played.returncode, fleet.migrated()) == (2, list(HOSTS)), played.output
    assert {host for host, counts in played.counts.items() if counts["failures"]} == set(damaged)
    for host in HOSTS:
        assert played.text.count("FAILED %s/damaged.qcow" % fleet.trees[host]) == (host in damaged), played.output
    again = fleet.run("migrate", qcow_serial=serial)
    assert (again.returncode, again.changed) == (2, 0), again.output
    assert fleet.run("migrate", migrate_exclude=["damaged.qcow"]).returncode == 0


def test_every_host_is_scanned_by_the_guard(fleet: Fleet) -> None:
    played = fleet.run("scan", scan_fail_on_found=True)
    assert (played.returncode, [counts["failures"] for counts in played.counts.values()]) == (2, [1, 1, 1]), played.output
    reports = fleet.controller.work / "qcow-reports"
    assert all((reports / ("host-%s.jsonl" % host)).exists() for host in HOSTS)


def test_every_host_is_rolled_back_and_cleaned_up(fleet: Fleet) -> None:
    oracle.require_qemu_img()
    assert fleet.run("migrate").returncode == 0
    subprocess.run(["qemu-io", "-c", "write -P 7 0 512", str(fleet.trees["kvm1"] / "one.qcow2")], check=True, stdout=subprocess.DEVNULL)
    os.unlink(fleet.trees["kvm2"] / "one.qcow2")
    assert fleet.run("cleanup", "--check", cleanup_min_age_days=0).returncode == 2
    back = fleet.run("rollback")
    assert back.returncode == 2 and back.counts["kvm1"]["failures"] == 1, back.output
    assert (fleet.trees["kvm3"] / "one.qcow").exists()


def test_an_image_in_use_is_a_failure_or_is_left_to_a_later_run(fleet: Fleet) -> None:
    with open(fleet.trees["kvm1"] / "one.qcow", "r+b"):
        played = fleet.run("migrate")
        assert (played.returncode, fleet.migrated()) == (2, ["kvm2", "kvm3"]), played.output
        left = fleet.run("migrate", migrate_fail_on_in_use=False)
        assert left.returncode == 0 and "deferred %s/one.qcow: the image is in use" % fleet.trees["kvm1"] in left.text, left.output
        checked = fleet.run("migrate", "--check", migrate_fail_on_in_use=False)
        assert checked.returncode == 0 and "deferred %s" % fleet.trees["kvm1"] in checked.text, checked.output
    assert fleet.run("migrate", migrate_fail_on_in_use=False).returncode == 0
    assert fleet.migrated() == list(HOSTS)
