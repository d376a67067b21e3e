# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the filesystem of a result cannot do is known before the copy: check mode and run say the same, and nothing is written."""

import contextlib
import os
import pathlib
import resource
import subprocess
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError, ToolFailed
from ansible_collections.vmimage.qcow.plugins.module_utils._host import filesystem, renames
from ansible_collections.vmimage.qcow.plugins.module_utils._host.files import check_name
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.execute import execute
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.planner import make_plan
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import DENSE, SPEC, Scene, Server, points
from ansible_collections.vmimage.qcow.tests.support.filesystems import in_child, loop_device, mounted
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

HUGE = ImageSpec(size=20 << 40, cluster_bits=16, clusters={0: Plain(b"first" * 100), (20 << 24) - 1: Plain(b"last" * 100)})


def huge(point: str, state: pathlib.Path) -> Scene:
    """A disk of 20 TiB with two clusters in it, to become a raw file."""
    scene = Scene(point, state=str(state), format="raw")
    built = build(HUGE)
    built.write(scene.src)
    scene.original = built.data
    return scene


@contextlib.contextmanager
def exfat(folder: pathlib.Path, size_mib: int = 16) -> Iterator[str]:
    """A new exFAT filesystem, mounted by its FUSE driver. Neither hard links nor an exchange of names, no holes."""
    require(os.path.exists("/dev/fuse"), "needs /dev/fuse")
    driver, disk = require_tool("mount.exfat-fuse"), folder / "exfat.new"
    with open(disk, "wb") as stream:
        stream.truncate(size_mib << 20)
    subprocess.run([require_tool("mkfs.exfat"), disk], check=True, stdout=subprocess.DEVNULL)
    point = folder / "exfat"
    point.mkdir()
    with loop_device(folder / "exfat.disk", disk.read_bytes()) as device:
        subprocess.run([driver, device, point], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield str(point)
        finally:
            subprocess.run(["umount", point], check=True)


def run(scene: Scene, *sources: str, check_mode: bool = False, **options: Any) -> list[dict[str, Any]]:
    state = os.fsencode(scene.state)
    requests = [Request(os.fsencode(path), state_dir=state, **dict(scene.options, **options)) for path in sources or (scene.src,)]
    return batch.run(requests, batch.Settings(state, reserve=0, check_mode=check_mode))


def refused(scene: Scene, reason: str, **options: Any) -> str:
    """The message that check mode and run have in common; neither has left or copied anything."""
    before = os.stat(scene.images).st_mtime_ns
    planned = run(scene, check_mode=True, **options)[0]
    assert os.stat(scene.images).st_mtime_ns == before, "check mode has written"
    done = run(scene, **options)[0]
    assert [(result["failed"], result["changed"], result["reason"]) for result in (planned, done)] == [(True, False, reason)] * 2, done
    assert planned["msg"] == done["msg"] and "Nothing was changed." in done["msg"]
    assert scene.states() == []
    scene.assert_as_before()
    return str(done["msg"])


def test_replacing_under_its_own_name(tmp_path: pathlib.Path) -> None:
    with exfat(tmp_path) as point:
        scene = Scene(point, state=str(tmp_path / "state"), keep_name=True)
        message = refused(scene, "unsupported-filesystem")
        assert "(exfat)" in message and "dest" in message
        other = Scene(point, state=str(tmp_path / "state"))
        assert not run(other)[0]["failed"]


def test_a_filesystem_of_an_unknown_type_is_tried_once_for_all_images(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a FUSE filesystem of any other type would be: here exFAT is not recognised."""
    monkeypatch.setattr(filesystem, "_MARKS", ())
    tried = []
    try_it = renames.can_replace_keeping
    monkeypatch.setattr("%s.preflight.can_replace_keeping" % batch.__package__, lambda path: tried.append(path) or try_it(path))
    with exfat(tmp_path) as point:
        scene = Scene(point, state=str(tmp_path / "state"), keep_name=True)
        second = os.path.join(scene.images, "second.qcow")
        build(SPEC).write(second)
        planned = run(scene, scene.src, second, check_mode=True)
        assert [result["failed"] for result in planned] == [False, False] and tried == []
        assert "whether this filesystem can exchange names is tried before the copy" in planned[0]["reasons"]
        done = run(scene, scene.src, second)
        assert [result["reason"] for result in done] == ["unsupported-filesystem"] * 2
        assert "(fuseblk)" in done[0]["msg"] and tried == [os.fsencode(scene.images)]
        assert scene.listing() == ["disk.qcow", "second.qcow"] and scene.states() == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_trying_leaves_nothing_where_it_works(tmp_path: pathlib.Path, fstype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(fstype, str(tmp_path)) as point:
        before = os.listdir(point)
        assert renames.can_replace_keeping(os.fsencode(point))
        monkeypatch.setattr(renames, "_keep_as", lambda *_places: False)  # no hard links: names are exchanged
        assert renames.can_replace_keeping(os.fsencode(point))
        assert os.listdir(point) == before
        assert filesystem.kind_of(os.fsencode(point)).keeps


def test_larger_than_a_file_can_be(tmp_path: pathlib.Path) -> None:
    """20 TiB of disk in two clusters: no raw file of that size on ext4, and a small qcow2."""
    with mounted("ext4", str(tmp_path), size_mib=1024) as point:
        scene = huge(point, tmp_path / "state")
        message = refused(scene, "file-too-large")
        assert "20.0 TiB" in message and "(ext4)" in message and "16.0 TiB" in message and "Set format=qcow2, or choose a dest" in message
        assert not run(scene, format="qcow2")[0]["failed"]


def test_the_same_size_where_it_fits(tmp_path: pathlib.Path) -> None:
    with mounted("xfs", str(tmp_path)) as point:
        scene = huge(point, tmp_path / "state")
        assert [result["failed"] for result in run(scene, check_mode=True)] == [False]


def test_a_limit_of_the_process(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path), format="raw")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        message = refused(scene, "file-too-large")
        assert "(ulimit -f)" in message and "1.0 MiB" in message and "raise that limit" in message

    assert scene.built.spec.size > 1 << 20
    assert in_child(limited) == 0


@pytest.mark.parametrize("spec", [SPEC, DENSE], ids=["sparse", "dense"])
def test_a_write_that_fails_all_the_same(tmp_path: pathlib.Path, server: Server, spec: ImageSpec) -> None:
    """As on a filesystem whose limit nobody can know: the message of the run says what to do."""
    calls = ["pwrite64", "copy_file_range", "ftruncate"]
    scene = Scene(str(tmp_path), spec=spec, format="raw")
    job = scene.job
    found = [point for point in points(server.trace(str(tmp_path / "log"), calls, job.pop("job"), **job), calls) if ".tmp" in point.text]
    assert {point.call for point in found} >= {"ftruncate"}
    for point in found[:: max(1, len(found) // 6)]:
        scene = Scene(str(tmp_path), spec=spec, format="raw")
        job = scene.job
        result = server.failed_at(point, "EFBIG", job.pop("job"), **job)["results"][0]
        if point.helper and not result["failed"]:
            continue  # the fault found no thread to happen in
        assert result["reason"] == "file-too-large" and "Set format=qcow2, or choose a dest" in result["msg"], (point, result)
        scene.assert_as_before()


def test_qemu_img_meets_a_limit_all_the_same(tmp_path: pathlib.Path) -> None:
    require_tool("qemu-img")
    with mounted("ext4", str(tmp_path)) as point:
        scene = huge(point, tmp_path / "state")
        state = os.fsencode(scene.state)
        request = Request(os.fsencode(scene.src), state_dir=state, format="raw", engine="qemu-img")
        with batch.Settings(state).session(2) as session, pytest.raises(ToolFailed) as caught:
            execute(make_plan(request, session.records), session)  # as it were without a look at all plans together
        assert "Set format=qcow2, or choose a dest" in str(caught.value)
        scene.assert_as_before()


def test_a_raw_file_has_no_holes_on_exfat(tmp_path: pathlib.Path) -> None:
    with exfat(tmp_path) as point:
        scene = Scene(point, state=str(tmp_path / "state"), spec=ImageSpec(size=64 << 20, clusters={3: Plain(b"data")}), format="raw")
        for check_mode in (True, False):
            with pytest.raises(QcowError) as caught:
                run(scene, check_mode=check_mode)
            assert caught.value.reason == "no-space"
        scene.assert_as_before()


def test_names_that_differ_only_by_case(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path))
    second = os.path.join(scene.images, "DISK.qcow")
    build(SPEC).write(second)
    results = run(scene, scene.src, second, check_mode=True, dest_dir=os.fsencode(tmp_path / "elsewhere"))
    assert [result["failed"] for result in results] == [False, False]
    with exfat(tmp_path) as point:
        into = os.fsencode(os.path.join(point, "new", "results"))
        for check_mode in (True, False):
            one, two = run(scene, scene.src, second, check_mode=check_mode, dest_dir=into)
            assert (one["failed"], two["failed"], two["reason"]) == (False, True, "exists"), two
            assert scene.src in two["msg"] and "exfat does not tell upper from lower case" in two["msg"]
        assert os.listdir(into) == [b"disk.qcow2"]


def test_a_directory_of_ext4_that_folds_case(tmp_path: pathlib.Path) -> None:
    require_tool("chattr")
    with _casefold(tmp_path) as point:
        assert filesystem.kind_of(os.fsencode(os.path.join(point, "folds"))).folds
        assert not filesystem.kind_of(os.fsencode(point)).folds


@contextlib.contextmanager
def _casefold(folder: pathlib.Path) -> Iterator[str]:
    if not os.path.exists("/sys/fs/ext4/features/casefold"):
        pytest.skip("this kernel's ext4 knows no casefold")
    disk, point = folder / "casefold.disk", folder / "casefold"
    point.mkdir()
    with open(disk, "wb") as stream:
        stream.truncate(32 << 20)
    subprocess.run([require_tool("mkfs.ext4"), "-q", "-O", "casefold", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, point], check=True)
    try:
        (point / "folds").mkdir()
        subprocess.run(["chattr", "+F", point / "folds"], check=True)
        yield str(point)
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("name", [b"a:b.qcow2", b"a?.qcow2", b'".qcow2', b"a\\b.qcow2", b"tab\t.qcow2", b"dot.", b"space ", b"\xff.qcow2"])
def test_names_that_exfat_cannot_store(tmp_path: pathlib.Path, name: bytes) -> None:
    with exfat(tmp_path) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        message = refused(scene, "bad-name", dest=os.path.join(os.fsencode(point), b"images", name))
        assert "a name on exfat" in message
        with pytest.raises(QcowError):
            check_name(os.path.join(os.fsencode(point), b"not", b"yet", b"made", name))
    check_name(os.path.join(os.fsencode(tmp_path), name))
