# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that QEMU starts from a name which is not the image's own: they see their disk before a migration, after it and after its rollback."""

import os
import pathlib
import random
import re
import shutil
import subprocess

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import guest_files
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

pytestmark = pytest.mark.slow


def boot(disk: pathlib.Path) -> str:
    """The SHA-256 that a guest sees of its disk; QEMU finds out the format."""
    files = guest_files()
    done = subprocess.run(
        [
            *(require_tool("qemu-system-x86_64"), "-accel", "tcg", "-M", "pc", "-m", "128", "-nographic", "-nodefaults"),
            *("-serial", "stdio", "-no-reboot", "-kernel", files["kernel"], "-initrd", files["initrd"]),
            *("-append", "console=ttyS0 quiet panic=1 guest=sha", "-drive", "file=%s,if=virtio,snapshot=on" % disk),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    (seen,) = re.findall(r"GUEST-SHA vda (\w+)", done.stdout)
    return str(seen)


def image(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True)
    source = random.Random(3)
    build(ImageSpec(size=4 << 20, clusters={at: Plain(source.randbytes(4096)) for at in source.sample(range(1024), 30)})).write(path)
    return path


def test_a_guest_of_a_symbolic_link(tmp_path: pathlib.Path) -> None:
    src, link, state = image(tmp_path / "store" / "7f3a.qcow"), tmp_path / "vm" / "disk.2", os.fsencode(tmp_path / "state")
    link.parent.mkdir()
    link.symlink_to("../store/7f3a.qcow")
    seen = boot(link)
    requests = [Request(os.fsencode(src), retire=True, state_dir=state, backing_dirs=(os.fsencode(tmp_path),))]
    settings = batch.Settings(state, reserve=0, domains="ignore")
    assert [result["changed"] for result in batch.run(requests, settings)] == [True]
    assert not src.exists() and boot(link) == seen
    assert [result["changed"] for result in batch.run(requests, settings)] == [False]
    undo = Choice(state, (os.fsencode(link),), domains="ignore")
    assert [answer["changed"] for answer in roll_back_all(undo, discard_changes=False)] == [True]
    assert src.exists() and boot(link) == seen


def test_a_guest_whose_files_were_copied_to_another_disk(tmp_path: pathlib.Path) -> None:
    src, state = image(tmp_path / "images" / "disk.img"), os.fsencode(tmp_path / "state")
    seen = boot(src)
    requests = [Request(os.fsencode(src), retire=True, keep_name=True, state_dir=state)]
    settings = batch.Settings(state, reserve=0, domains="ignore")
    assert [result["changed"] for result in batch.run(requests, settings)] == [True]
    subprocess.run(["cp", "-a", str(src.parent), str(tmp_path / "larger")], check=True)
    shutil.rmtree(src.parent)
    (tmp_path / "larger").rename(src.parent)
    assert boot(src) == seen
    assert [result["changed"] for result in batch.run(requests, settings)] == [False]
    undo = Choice(state, (os.fsencode(src),), domains="ignore")
    assert [answer["changed"] for answer in roll_back_all(undo, discard_changes=False)] == [True]
    assert boot(src) == seen and sorted(os.listdir(src.parent)) == ["disk.img"]
    assert [answer["changed"] for answer in roll_back_all(undo, discard_changes=False)] == [False]
