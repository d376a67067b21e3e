# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Owner, group and mode that a task names: for the result, and for nothing that a link under its name leads to."""

import pathlib
import pwd
import stat
from typing import Any

import pytest
import yaml

from ansible_collections.vmimage.qcow.tests.attacks.attacker import give
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played
from ansible_collections.vmimage.qcow.tests.support.require import require_root

GAMES = pwd.getpwnam("games")


class Task:
    """A tenant's directory with an image in it, and a task that converts it and names owner and mode."""

    def __init__(self, scratch: pathlib.Path) -> None:
        require_root()
        self.tenant, self.roots, self.controller = scratch / "tenant", scratch / "roots", Controller(scratch)
        for folder in (self.tenant, self.tenant / "images", self.roots):
            folder.mkdir()
        self.image = self.tenant / "images" / "disk.qcow"
        build(ImageSpec(size=1 << 20, clusters={3: Plain(b"disk")})).write(self.image)
        self.dest = self.tenant / "images" / "disk.qcow2"
        self.secret = self.roots / "disk.qcow2"
        self.secret.write_bytes(b"root's own")
        self.secret.chmod(0o600)
        give(self.tenant, self.tenant / "images", self.image)
        self.state = str(scratch / "state")

    def run(self, **options: Any) -> Played:
        arguments = {"src": str(self.image), "state_dir": self.state, "owner": "games", "group": "games", "mode": "0640", **options}
        play = {"name": "Try it", "hosts": "vm_hosts", "gather_facts": False}
        play["tasks"] = [{"name": "Convert", "vmimage.qcow.qcow_convert": arguments}]
        (self.controller.work / "try.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        return self.controller.run("try.yml")


@pytest.fixture(name="task")
def _task(tmp_path: pathlib.Path) -> Task:
    return Task(tmp_path)


def access(path: pathlib.Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_result_gets_them(task: Task) -> None:
    assert task.run().changed == 1 and access(task.dest) == (GAMES.pw_uid, GAMES.pw_gid, 0o640)
    assert task.run().changed == 0
    assert task.run(mode="u=rw,go=", owner=0, group="0").changed == 1 and access(task.dest) == (0, 0, 0o600)
    played = task.run(owner="nobody-has-this-name")
    assert played.returncode and "owner: nobody-has-this-name does not exist on this host" in played.text, played.output
    assert access(task.dest) == (0, 0, 0o600)


def test_directory_that_has_become_a_link(task: Task) -> None:
    assert task.run(owner=None, group=None, mode=None).changed == 1
    images = task.tenant / "images"
    images.rename(task.tenant / "aside")
    images.symlink_to(task.roots)
    give(images)
    before = access(task.secret)
    assert task.run().returncode
    assert access(task.secret) == before


def test_link_under_the_name_of_the_result(task: Task) -> None:
    assert task.run(owner=None, group=None, mode=None).changed == 1
    task.dest.unlink()
    task.dest.symlink_to(task.secret)
    give(task.dest)
    before = access(task.secret)
    played = task.run(mode="0644", owner="root")
    assert played.returncode and not played.changed, played.output
    assert access(task.secret) == before
