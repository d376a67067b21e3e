# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import os
import pathlib
import stat

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import ImageChanged, QcowError, StateError, TargetExists, UnsafeImage
from ansible_collections.vmimage.qcow.plugins.module_utils._host import files, linux, renames
from ansible_collections.vmimage.qcow.tests.support.filesystems import in_child, mounted

CRASH = 77
# Every call by which the operations change names or wait for storage.
CALLS = ((os, "link"), (os, "rename"), (os, "unlink"), (os, "fsync"), (linux, "renameat2"))


@pytest.fixture(params=["here", "tmpfs", "ext4", "xfs", "btrfs"])
def folder(request, tmp_path):
    if request.param == "here":
        yield os.fsencode(tmp_path)
        return
    with mounted(request.param, str(tmp_path)) as point:
        yield os.fsencode(point)


def put(path, content):
    with open(path, "wb") as stream:
        stream.write(content)
    return os.stat(path).st_ino


def get(path):
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def refuse_calls(*refused):
    """A filesystem that lacks calls, as FAT or some FUSE do; imitated, since none of those can be mounted everywhere."""

    def lacking(number):
        def call(*dummy, **more):
            raise OSError(number, os.strerror(number))

        return call

    for module, name, number in refused:
        setattr(module, name, lacking(number))


def crash_at(number):
    """End this process instead of the ``number``-th of CALLS (counted from 0)."""
    left = [number]

    def dying(call):
        def wrapper(*arguments, **more):
            if left[0] == 0:
                os._exit(CRASH)
            left[0] -= 1
            return call(*arguments, **more)

        return wrapper

    for module, name in CALLS:
        setattr(module, name, dying(getattr(module, name)))


NO_EXCHANGE = (linux, "renameat2", 22)
NO_LINK = (os, "link", 1)


def sweep(prepare, operate, holds, lacking=()):
    """Run ``operate`` with a crash before each of its calls; ``holds`` must be true after each crash; a second run finishes."""
    points = 0
    while True:
        prepare()

        def crashing(point=points):
            refuse_calls(*lacking)
            crash_at(point)
            operate()

        code = in_child(crashing)
        holds(code == 0)
        if code == 0:
            assert points >= 2
            return points
        assert code == CRASH
        points += 1

        def again():
            refuse_calls(*lacking)
            operate()

        assert in_child(again) == 0
        holds(True)
        assert in_child(again) == 0  # and a third changes nothing
        holds(True)


@pytest.mark.parametrize("lacking", [(), (NO_EXCHANGE,), (NO_EXCHANGE, NO_LINK)], ids=["renameat2", "link", "plain"])
def test_publish_survives_a_crash_at_every_call(folder, lacking):
    tmp, dest = folder + b"/.tmp", folder + b"/image.qcow2"
    inode = []

    def prepare():
        for path in (tmp, dest):
            if os.path.exists(path):
                os.unlink(path)
        inode[:] = [put(tmp, b"new")]

    def holds(finished):
        assert b"new" in (get(tmp), get(dest))
        if finished:
            assert (get(tmp), get(dest), os.stat(dest).st_ino) == (None, b"new", inode[0])

    sweep(prepare, lambda: renames.publish_new(tmp, dest, inode=inode[0]), holds, lacking)


@pytest.mark.parametrize("lacking", [(), (NO_EXCHANGE,), (NO_LINK,)], ids=["all", "no-exchange", "no-link"])
def test_replace_survives_a_crash_at_every_call(folder, lacking):
    tmp, dest, aside = folder + b"/.tmp", folder + b"/image", folder + b"/image.qcow1.orig"
    inode = []

    def prepare():
        for path in (tmp, dest, aside):
            if os.path.exists(path):
                os.unlink(path)
        put(dest, b"old")
        inode[:] = [put(tmp, b"new")]

    def holds(finished):
        assert get(dest) in (b"old", b"new")
        assert b"old" in (get(dest), get(aside), get(tmp))
        if finished:
            assert (get(tmp), get(dest), get(aside)) == (None, b"new", b"old")

    sweep(prepare, lambda: renames.replace_keeping(tmp, dest, aside, inode=inode[0]), holds, lacking)


def test_retire_survives_a_crash_at_every_call(folder):
    path, aside = folder + b"/a.qcow", folder + b"/a.qcow.qcow1.orig"
    inode = []

    def prepare():
        if os.path.exists(aside):
            os.unlink(aside)
        inode[:] = [put(path, b"old")]

    def holds(finished):
        assert (get(path), get(aside)) in ((None, b"old"), (b"old", None), (b"old", b"old"))
        if finished:
            assert get(path) is None

    sweep(prepare, lambda: renames.retire(path, aside, inode=inode[0]), holds)


@pytest.mark.parametrize("lacking", [(), (NO_EXCHANGE,), (NO_EXCHANGE, NO_LINK)], ids=["renameat2", "link", "plain"])
def test_nothing_is_overwritten(tmp_path, monkeypatch, lacking):
    for module, name, _number in lacking:
        monkeypatch.setattr(module, name, getattr(module, name))
    refuse_calls(*lacking)
    tmp, dest, aside = (os.fsencode(tmp_path / name) for name in ("tmp", "dest", "aside"))
    inode = put(tmp, b"new")
    put(dest, b"old")
    put(aside, b"somebody's")
    for attempt in (
        lambda: renames.publish_new(tmp, dest),
        lambda: renames.retire(dest, aside),
        lambda: renames.replace_keeping(tmp, dest, aside, inode=inode),
    ):
        with pytest.raises(TargetExists):
            attempt()
        assert (get(tmp), get(dest), get(aside)) == (b"new", b"old", b"somebody's")


def test_a_dangling_link_is_a_taken_name(tmp_path):
    tmp, dest = os.fsencode(tmp_path / "tmp"), os.fsencode(tmp_path / "dest")
    put(tmp, b"new")
    os.symlink(b"nowhere", dest)
    with pytest.raises(TargetExists):
        renames.publish_new(tmp, dest)
    assert os.readlink(dest) == b"nowhere"


def test_replace_refuses_where_it_cannot_keep_the_old_file_reachable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", os.link)
    monkeypatch.setattr(linux, "renameat2", linux.renameat2)
    refuse_calls(NO_LINK, NO_EXCHANGE)
    tmp, dest, aside = (os.fsencode(tmp_path / name) for name in ("tmp", "dest", "aside"))
    inode = put(tmp, b"new")
    put(dest, b"old")
    with pytest.raises(QcowError) as caught:
        renames.replace_keeping(tmp, dest, aside, inode=inode)
    assert caught.value.reason == "unsupported-filesystem"
    assert (get(tmp), get(dest), get(aside)) == (b"new", b"old", None)


def test_a_stranger_under_a_recorded_name_is_left_alone(tmp_path):
    tmp, dest = os.fsencode(tmp_path / "tmp"), os.fsencode(tmp_path / "dest")
    inode = max(put(tmp, b"stranger"), put(dest, b"old")) + 1
    with pytest.raises(ImageChanged):
        renames.publish_new(tmp, os.fsencode(tmp_path / "new"), inode=inode)
    with pytest.raises(StateError):
        renames.replace_keeping(tmp, dest, os.fsencode(tmp_path / "aside"), inode=inode)
    with pytest.raises(ImageChanged):
        renames.remove_durably(tmp, inode=inode)
    assert (get(tmp), get(dest)) == (b"stranger", b"old")


def test_publish_of_a_lost_file_says_so(tmp_path):
    with pytest.raises(QcowError) as caught:
        renames.publish_new(os.fsencode(tmp_path / "tmp"), os.fsencode(tmp_path / "dest"))
    assert caught.value.reason == "missing"


def test_remove_is_idempotent(tmp_path):
    path = os.fsencode(tmp_path / "x")
    put(path, b"")
    assert renames.remove_durably(path) is True
    assert renames.remove_durably(path) is False
    assert renames.remove_durably(path + b"/no/such/folder") is False


@pytest.mark.parametrize("name", [b"x" * 256, b"\xff" * 256, b"", b"..", b"a\0b"])
def test_impossible_names_are_refused_before_anything_is_done(tmp_path, name):
    folder = os.fsencode(tmp_path)
    put(folder + b"/tmp", b"new")
    for attempt in (
        lambda: files.check_name(os.path.join(folder, name)),
        lambda: files.create_temporary(folder, name),
        lambda: renames.publish_new(folder + b"/tmp", os.path.join(folder, name)),
    ):
        with pytest.raises(QcowError) as caught:
            attempt()
        assert caught.value.reason in ("name-too-long", "bad-name")
    assert os.listdir(folder) == [b"tmp"]


def test_the_longest_name_works(tmp_path):
    folder = os.fsencode(tmp_path)
    put(folder + b"/tmp", b"new")
    renames.publish_new(folder + b"/tmp", folder + b"/" + b"\xff" * 255)
    assert os.listdir(folder) == [b"\xff" * 255]


def test_a_temporary_is_closed_to_others_and_never_taken_over(tmp_path):
    folder = os.fsencode(tmp_path)
    old = os.umask(0)
    try:
        fd = files.create_temporary(folder, b".t")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.close(fd)
    os.symlink(b"/etc/passwd", folder + b"/.link")
    for name in (b".t", b".link"):
        with pytest.raises(TargetExists):
            files.create_temporary(folder, name)


def test_only_regular_files_are_opened(tmp_path):
    folder = os.fsencode(tmp_path)
    os.mkfifo(folder + b"/fifo")
    os.mkdir(folder + b"/dir")
    put(folder + b"/file", b"x")
    os.symlink(b"file", folder + b"/link")
    os.symlink(b"loop", folder + b"/loop")
    for name in (b"fifo", b"dir", b"link", b"loop"):
        with pytest.raises(UnsafeImage):
            files.open_source(folder + b"/" + name)
    with pytest.raises(UnsafeImage):
        files.open_source(b"/dev/null")
    with pytest.raises(QcowError) as caught:
        files.open_source(folder + b"/none")
    assert caught.value.reason == "missing"


def test_opening_and_reading_leaves_no_trace(tmp_path):
    path = os.fsencode(tmp_path / "x")
    put(path, b"content")
    os.utime(path, ns=(1, 1))
    before = os.stat(path)
    fd = files.open_source(path)
    assert os.read(fd, 10) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    after = os.stat(path)
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (before.st_atime_ns, before.st_mtime_ns, before.st_ctime_ns)


def test_two_files_with_one_inode_number(tmp_path):
    """On two filesystems numbers are the same now and then; that is no half-finished link, and nothing is removed for it."""
    with mounted("tmpfs", str(tmp_path / "one"), size_mib=4) as one, mounted("tmpfs", str(tmp_path / "other"), size_mib=4) as other:
        files = [pathlib.Path(point, "file") for point in (one, other)]
        for file in files:
            file.write_bytes(bytes(file))
        assert files[0].stat().st_ino == files[1].stat().st_ino, "the first file of a fresh tmpfs"
        with pytest.raises(QcowError):
            renames.retire(*map(os.fsencode, files))
        assert [file.read_bytes() for file in files] == [bytes(file) for file in files]


def test_identity_tells_a_rename_from_a_write(tmp_path):
    path = os.fsencode(tmp_path / "x")
    put(path, b"content")
    os.utime(path, ns=(1, 1))
    with open(path, "r+b") as stream:
        first = files.identity(stream.fileno())
        os.rename(path, path + b"2")
        second = files.identity(stream.fileno())
        stream.write(b"C")
        stream.flush()
        third = files.identity(stream.fileno())
    assert first.same_content(second)
    assert first.same_file(third) and not first.same_content(third)
