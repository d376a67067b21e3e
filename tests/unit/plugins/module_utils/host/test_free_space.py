# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import os
import subprocess

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host import free_space, linux
from ansible_collections.vmimage.qcow.plugins.module_utils._host.free_space import Demand
from ansible_collections.vmimage.qcow.tests.support.filesystems import NOBODY, in_child, let_in, mounted

MIB = 1 << 20


def reasons(*demands, **reserve):
    return [problem.reason for problem in free_space.problems(demands, **reserve)]


def test_what_fits_is_no_problem(tmp_path):
    assert reasons(Demand(os.fsencode(tmp_path), MIB, 1, "the result")) == []
    assert reasons() == []


@pytest.mark.parametrize("fstype", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_demands_on_one_filesystem_are_added_up(tmp_path, fstype):
    with mounted(fstype, str(tmp_path)) as point:
        os.mkdir(point + "/a")
        os.mkdir(point + "/b")
        free = free_space.filesystem(os.fsencode(point)).free
        assert 10 * MIB < free < 400 * MIB
        half = [Demand(os.fsencode(point) + name, free // 2 - MIB, 1, "half" + name.decode()) for name in (b"/a", b"/b")]
        assert reasons(*half) == []
        assert reasons(*half, Demand(os.fsencode(point), 4 * MIB, 1, "the rest")) == ["no-space"]
        assert reasons(*half, reserve_bytes=4 * MIB) == ["no-space"]
        assert reasons(*half, reserve_percent=10.0) == ["no-space"]
        assert reasons(Demand(os.fsencode(point), free + 1, 1, "all"), Demand(os.fsencode(tmp_path), 1, 1, "elsewhere")) == ["no-space"]


def test_the_message_says_what_is_missing_and_for_what(tmp_path):
    with mounted("tmpfs", str(tmp_path), size_mib=20) as point:
        (problem,) = free_space.problems([Demand(os.fsencode(point), 30 * MIB, 1, "a.qcow2")], reserve_bytes=2 * MIB)
        assert str(problem) == (
            "The filesystem of %s has 20.0 MiB free; the plan needs 30.0 MiB there (for a.qcow2) and is to keep 2.0 MiB free. "
            "12.0 MiB are missing." % point
        )
        assert problem.missing_bytes == 12 * MIB


def test_inodes(tmp_path):
    with mounted("tmpfs", str(tmp_path), options="nr_inodes=10") as point:
        assert reasons(Demand(os.fsencode(point), 0, 9, "nine")) == []
        assert reasons(Demand(os.fsencode(point), 0, 10, "ten")) == ["no-inodes"]


def test_read_only_mount(tmp_path):
    with mounted("ext4", str(tmp_path)) as point:
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        assert reasons(Demand(os.fsencode(point), 1, 1, "x")) == ["read-only"]


def test_protected_directory(tmp_path):
    with mounted("ext4", str(tmp_path)) as point:
        fd = os.open(point, os.O_RDONLY)
        old = linux.get_flags(fd)
        linux.set_flags(fd, old | linux.FLAG_IMMUTABLE)
        problems = free_space.problems([Demand(os.fsencode(point), 1, 1, "x")])
        linux.set_flags(fd, old)
        os.close(fd)
        # The kernel itself says no to root here; both ways of finding it are right.
        assert [problem.reason for problem in problems] in (["protected"], ["not-writable"])


def test_missing_and_closed_directories_and_all_problems_at_once(tmp_path):
    let_in(str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    closed = os.fsencode(tmp_path)

    def as_nobody():
        found = reasons(
            Demand(closed, 1, 1, "x"),
            Demand(closed + b"/none\xff", 1, 1, "x"),
            Demand(closed + b"/file", 1, 1, "x"),
            Demand(b"/tmp", 1 << 60, 1, "x"),
        )
        assert found == ["not-writable", "missing", "missing", "no-space"], found

    if os.geteuid() == 0:
        assert in_child(as_nobody, uid=NOBODY) == 0
    assert reasons(Demand(closed + b"/none\xff", 1, 1, "x"), Demand(closed, 1 << 60, 1, "x")) == ["missing", "no-space"]


def test_btrfs_subvolumes_share_their_space(tmp_path):
    with mounted("btrfs", str(tmp_path)) as point:
        subprocess.run(["btrfs", "-q", "subvolume", "create", point + "/sub"], check=True, stdout=subprocess.DEVNULL)
        one, two = (free_space.filesystem(os.fsencode(path)) for path in (point, point + "/sub"))
        assert os.stat(point).st_dev != os.stat(point + "/sub").st_dev
        assert one.key == two.key and one.fstype == "btrfs" and one.free_inodes is None


@pytest.mark.parametrize(("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")])
def test_human(size, text):
    assert free_space.human(size) == text
