# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import os
import signal
import socket
import stat
import subprocess

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host import linux, tree
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import search
from ansible_collections.vmimage.qcow.tests.support.filesystems import NOBODY, in_child, let_in, mounted
from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool

MAGIC = b"QFI\xfb\x00\x00\x00\x01"
ODD = [b"with space", b"new\nline", b"\xff\xfe", b"-rf", b"a,b:c", b"\xc3\xa4", b"x" * 255]


def put(path, content=MAGIC + b"\0" * 48):
    with open(path, "wb") as stream:
        stream.write(content)
    return path


def paths(*arguments, **options):
    return [found.path for found in tree.walk(*arguments, **options)]


@pytest.fixture
def top(tmp_path):
    return os.fsencode(tmp_path)


def test_files_of_all_names_in_a_stable_order(top):
    os.makedirs(top + b"/b/c")
    os.mkdir(top + b"/a")
    expected = sorted(put(top + b"/" + name) for name in ODD)
    expected += [put(top + b"/a/2"), put(top + b"/b/1"), put(top + b"/b/c/0")]
    assert paths([top]) == expected == paths([top + b"/"])
    found = next(iter(tree.walk([top])))
    assert found.head == MAGIC + b"\0" * 48 and found.error is None and stat.S_ISREG(found.stat.st_mode)


def test_lookalikes_are_passed_by_and_untouched(top):
    os.mkfifo(top + b"/fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(top + b"/socket")
    os.symlink(b"nowhere", top + b"/dangling")
    os.symlink(b".", top + b"/loop")
    os.symlink(b"image", top + b"/link")
    put(top + b"/empty", b"")
    put(top + b"/seven", MAGIC[:7])
    put(top + b"/text", b"just some text")
    put(top + b"/image")
    for name in (b"text", b"image"):
        os.utime(top + b"/" + name, ns=(1, 1))
    counts = tree.Counts()
    assert paths([top], prefix=MAGIC, counts=counts) == [top + b"/image"]
    assert paths([top], prefix=MAGIC, head_size=8) == [top + b"/image"]
    assert (counts.directories, counts.files, counts.errors) == (1, 5 - 1, 0)
    assert os.stat(top + b"/image").st_atime_ns == os.stat(top + b"/text").st_atime_ns == 1
    server.close()


def test_head_and_minimum(top):
    put(top + b"/x", MAGIC + b"y" * 5000)
    assert [len(found.head) for found in tree.walk([top])] == [4096]
    assert [len(found.head) for found in tree.walk([top], head_size=16)] == [16]
    assert [found.head for found in tree.walk([top], head_size=16, prefix=MAGIC)] == [MAGIC + b"y" * 8]
    put(top + b"/seven", MAGIC[:7])
    assert paths([top], prefix=MAGIC[:4]) == paths([top]) == [top + b"/x"]


def test_what_is_named_is_always_reported(top):
    put(top + b"/small", b"x")
    put(top + b"/image")
    os.symlink(b"image", top + b"/link")
    os.mkfifo(top + b"/fifo")
    found = list(tree.walk([top + b"/small", top + b"/link", top + b"/fifo", top + b"/none", b"/dev/null"], prefix=MAGIC))
    assert [item.path for item in found] == [top + b"/small", top + b"/image", top + b"/fifo", top + b"/none", b"/dev/null"]
    assert [item.error is None for item in found] == [True, True, False, False, False]
    assert "FIFO" in found[2].error and "No such file" in found[3].error


def test_a_named_link_to_a_directory_is_followed_an_inner_one_is_not(top):
    os.makedirs(top + b"/real/inner")
    os.mkdir(top + b"/elsewhere")
    put(top + b"/real/inner/1")
    put(top + b"/elsewhere/2")
    os.symlink(b"../elsewhere", top + b"/real/jump")
    os.symlink(b"real", top + b"/named")
    assert paths([top + b"/named"]) == [top + b"/named/inner/1"]


def test_a_directory_is_walked_once(top):
    os.makedirs(top + b"/a/b")
    put(top + b"/a/b/1")
    assert paths([top, top + b"/a", top + b"/a/b", top]) == [top + b"/a/b/1"]


def test_hard_links_are_all_reported_and_can_be_told(top):
    put(top + b"/1")
    os.link(top + b"/1", top + b"/2")
    found = list(tree.walk([top]))
    assert [item.stat.st_nlink for item in found] == [2, 2]


def test_exclude_by_name_and_by_path(top):
    for folder in (b"/keep", b"/.snapshots", b"/deep/er"):
        os.makedirs(top + folder)
        put(top + folder + b"/1.img")
        put(top + folder + b"/2.iso")
    assert paths([top], exclude=[b"*.iso", b".snapshots"]) == [top + b"/deep/er/1.img", top + b"/keep/1.img"]
    assert paths([top], exclude=[top + b"/deep*", b"[12].img", b".sn*"]) == [top + b"/keep/2.iso"]
    assert paths([top], exclude=[b"\xff*"]) == paths([top])


def test_without_recursion(top):
    os.mkdir(top + b"/sub")
    put(top + b"/sub/1")
    put(top + b"/2")
    assert paths([top], recurse=False) == [top + b"/2"]


def test_unreadable_things_are_entries_not_ends(top):
    require_root()
    let_in(os.fsdecode(top))
    os.mkdir(top + b"/closed", 0o700)
    put(top + b"/closed/1")
    os.chmod(put(top + b"/secret"), 0o600)
    os.chmod(put(top + b"/zopen"), 0o644)

    def as_nobody():
        counts = tree.Counts()
        found = list(tree.walk([top], counts=counts))
        assert [item.path for item in found] == [top + b"/secret", top + b"/zopen", top + b"/closed"], found
        assert [item.error for item in found] == ["Permission denied", None, "Permission denied"], found
        assert counts.errors == 2

    assert in_child(as_nobody, uid=NOBODY) == 0


def test_one_filesystem(top, tmp_path):
    with mounted("tmpfs", str(tmp_path)) as point:
        inside = put(os.fsencode(point) + b"/1")
        outside = put(top + b"/2")
        assert paths([top]) == [outside, inside]
        assert paths([top], one_filesystem=True) == [outside]


@pytest.fixture
def strange(top):
    """A FUSE mount of another user below ``top``: mounted as fusermount does it, without allow_other. Its server never answers anything."""
    require_root()
    require(os.path.exists("/dev/fuse"), "needs /dev/fuse")
    point = top + b"/images/theirs"
    os.makedirs(point)
    put(top + b"/images/ours.qcow")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d" % (device, NOBODY, NOBODY)
    try:
        done = linux.libc().mount(b"theirs", point, b"fuse", 0, options)
        require(done == 0, "cannot mount FUSE here")
        yield point
    finally:
        os.close(device)
        subprocess.run(["umount", "-l", point], check=False)


def test_a_mount_that_not_even_root_may_enter_is_told_with_the_ways_out(top, strange):
    *found, closed = sorted(tree.walk([top]), key=lambda found: found.error is not None)
    assert [entry.path for entry in found] == [top + b"/images/ours.qcow"] and closed.path == strange
    message = search.unseen(closed)["msg"]
    assert "another user" in message and "not even root" in message and "become" not in message
    assert "(exclude: %s, or one_filesystem: true)" % os.fsdecode(strange) in message
    assert paths([top], exclude=[strange]) == [top + b"/images/ours.qcow"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", ["/", "/link/", "//"])
def test_one_filesystem_holds_before_a_mount_is_opened(top, strange, way, workers, monkeypatch):
    os.symlink(b"images", top + b"/link")
    start = {"/": top, "/link/": top + b"/link/", "//": top + b"//"}[way]
    opened = []
    open_it = tree._Walker._open_directory
    monkeypatch.setattr(tree._Walker, "_open_directory", staticmethod(lambda path: opened.append(path) or open_it(path)))
    counts = tree.Counts()
    found = paths([start], one_filesystem=True, prefix=MAGIC, workers=workers, counts=counts)
    assert [os.path.basename(path) for path in found] == [b"ours.qcow"] and counts.errors == 0
    assert not [path for path in opened if b"theirs" in path]


def test_one_filesystem_goes_on_through_a_bind_mount(top):
    """It has the same numbers as before: what st_dev says holds."""
    require_root()
    os.makedirs(top + b"/a/bound")
    os.makedirs(top + b"/b")
    put(top + b"/b/image")
    subprocess.run(["mount", "--bind", top + b"/b", top + b"/a/bound"], check=True)
    try:
        assert paths([top + b"/a"], one_filesystem=True) == [top + b"/a/bound/image"]
    finally:
        subprocess.run(["umount", top + b"/a/bound"], check=True)


def test_one_filesystem_stays_in_its_subvolume(tmp_path):
    require_tool("btrfs")
    with mounted("btrfs", str(tmp_path)) as point:
        folder = os.fsencode(point)
        for name in ("inner", "other"):
            subprocess.run(["btrfs", "-q", "subvolume", "create", "%s/%s" % (point, name)], check=True, stdout=subprocess.DEVNULL)
            put(os.fsencode("%s/%s/image" % (point, name)))
        put(folder + b"/image")
        assert paths([folder], one_filesystem=True) == [folder + b"/image"]
        assert paths([folder]) == [folder + b"/image", folder + b"/inner/image", folder + b"/other/image"]


def test_a_mount_that_is_hidden_under_another_is_not_met(top):
    require_root()
    os.makedirs(top + b"/a/b")
    with mounted("tmpfs", os.fsdecode(top)) as over:
        subprocess.run(["mount", "--bind", over, top + b"/a/b"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top + b"/a"], check=True)
        try:
            os.mkdir(top + b"/a/b")
            put(top + b"/a/b/image")
            assert top + b"/a/b" not in linux.mount_points() and linux.mount_points()[top + b"/a"].fstype == "tmpfs"
            assert paths([top + b"/a"], one_filesystem=True) == [top + b"/a/b/image"]
        finally:
            subprocess.run(["umount", top + b"/a"], check=True)
            subprocess.run(["umount", top + b"/a/b"], check=True)


def test_the_kernels_own_trees_are_left_out():
    assert paths([b"/proc", b"/sys"]) == []


def test_deep_trees_need_no_recursion(top):
    fd = os.open(top, os.O_RDONLY)
    for _level in range(1500):  # deeper than Python's recursion limit; names short enough for PATH_MAX
        os.mkdir(b"d", dir_fd=fd)
        inner = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    deepest = put(top + b"/d" * 1500 + b"/1")
    try:
        assert paths([top]) == [deepest]
    finally:
        subprocess.run(["rm", "-rf", top + b"/d"], check=True)  # pytest's own clean-up is recursive


def test_block_devices_only_on_request(top):
    require_root()
    os.mknod(top + b"/disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    assert paths([top]) == []
    (found,) = tree.walk([top], block_devices=True)
    assert found.path == top + b"/disk"


@pytest.fixture
def wide(top):
    """1,000 files in 110 directories, every tenth file an image."""
    for outer in range(10):
        for inner in range(10):
            folder = top + b"/%d/%d" % (outer, inner)
            os.makedirs(folder)
            for number in range(10):
                put(folder + b"/%d" % number, MAGIC * 2 if number == 5 else b"something else")
    return top


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_change_nothing_but_the_time(wide, workers):
    expected_counts, counts = tree.Counts(), tree.Counts()
    expected = list(tree.walk([wide], prefix=MAGIC, counts=expected_counts))
    assert len(expected) == 100
    assert list(tree.walk([wide, wide], prefix=MAGIC, workers=workers, counts=counts)) == expected
    assert vars(counts) == vars(expected_counts)
    assert paths([wide + b"/3"], prefix=MAGIC, workers=workers, recurse=False) == []


def test_a_worker_that_dies_loses_nothing(wide, monkeypatch):
    expected = paths([wide], prefix=MAGIC)
    first = os.getpid()
    looked_at = []

    def deadly(walker, directory, *arguments):
        looked_at.append(directory)
        if os.getpid() != first and len(looked_at) > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return listing(walker, directory, *arguments)

    listing = tree._Walker._listing
    monkeypatch.setattr(tree._Walker, "_listing", deadly)
    assert paths([wide], prefix=MAGIC, workers=3) == expected


def test_long_paths_and_many_directories(top):
    """More bytes of paths than a pipe holds."""
    folder = top
    while len(folder) < 3600:
        folder += b"/" + b"d" * 200
    os.makedirs(folder)
    for number in range(200):
        os.mkdir(folder + b"/%03d" % number)
        put(folder + b"/%03d/%s" % (number, b"f" * 200))
    expected = paths([top], prefix=MAGIC)
    assert len(expected) == 200 == len(paths([top]))
    assert paths([top], prefix=MAGIC, workers=3) == expected


def test_workers_end_with_the_walk(wide):
    walk = tree.walk([wide], prefix=MAGIC, workers=3)
    next(walk)
    walk.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_descriptors_are_given_back(top):
    for number in range(50):
        os.mkdir(top + b"/%d" % number)
        put(top + b"/%d/x" % number)
    before = len(os.listdir("/proc/self/fd"))
    walk = tree.walk([top])
    next(walk)
    walk.close()
    list(tree.walk([top]))
    list(tree.walk([top], prefix=MAGIC, workers=3))
    assert len(os.listdir("/proc/self/fd")) == before
