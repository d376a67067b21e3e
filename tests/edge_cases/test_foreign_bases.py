# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: bases in formats that only qemu-img reads."""

import os
import pathlib
import random
import subprocess
import time
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import NoSpace
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, foreign_base
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
FORMATS = ["vmdk", "vmdk-compressed", "vdi", "vpc", "vhdx", "qed", "parallels"]


def noise(seed: int, size: int) -> bytes:
    """Bytes that hardly compress."""
    return random.Random(seed).randbytes(size)


def write_base(path: pathlib.Path, kind: str, disk: bytes) -> str:
    """Have qemu-img write a base; return its driver."""
    driver, _dash, compressed = kind.partition("-")
    raw = path.with_name("base.disk")
    raw.write_bytes(disk)
    oracle.run("convert", *(["-o", "subformat=streamOptimized"] if compressed else []), "-f", "raw", "-O", driver, raw, path)
    raw.unlink()
    return driver


def write_overlay(path: pathlib.Path, base: pathlib.Path, size: int, clusters: Any = None, **shape: int) -> None:
    """Put a QCOW v1 overlay beside a base."""
    build(ImageSpec(size=size, clusters=clusters or {}, backing=Backing(os.fsencode(base.name)), **shape)).write(path)


def sizes_fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the bytes on disk of each file that is fetched from a base."""
    fetched: list[int] = []
    original = foreign_base.ForeignBase.fetch

    def fetch(self: Any, *arguments: Any) -> int:
        fd = original(self, *arguments)
        os.fsync(fd)
        fetched.append(os.fstat(fd).st_blocks * 512)
        return fd

    monkeypatch.setattr(foreign_base.ForeignBase, "fetch", fetch)
    return fetched


@pytest.mark.parametrize("size", [3 * MIB, 8 * MIB, 11 * MIB + 512, 2 * MIB + 100])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_size(workbench, kind: str, size: int) -> None:
    disk = (noise(1, 5 * MIB) + bytes(2 * MIB) + noise(2, 65536)).ljust(8 * MIB, b"\0")
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    driver = write_base(base, kind, disk)
    shape = {"cluster_bits": 9, "l2_bits": 12}
    write_overlay(image, base, size, {index * index: Plain(noise(index, 512)) for index in range(60)}, **shape)
    seen = oracle.guest_bytes(oracle.Node(image), oracle.Node(base, driver)).ljust(-(-size // 512) * 512, b"\0")
    tail = disk[size // 512 * 512 : size].ljust(len(seen) - size // 512 * 512, b"\0")  # QEMU does not read the last part of a sector
    seen = seen[: size // 512 * 512] + tail
    workbench.converts_to(image, seen, chains="flatten")
    thin = workbench.convert(image, chains="preserve")
    assert oracle.guest_bytes(oracle.Node(thin["dest"], "qcow2"), oracle.Node(base, driver)) == seen


@pytest.mark.parametrize("kind", FORMATS)
def test_only_what_the_guest_sees_is_fetched(workbench, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fetched = sizes_fetched(monkeypatch)
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    write_base(base, kind, noise(1, 32 * MIB))
    write_overlay(image, base, 16 * MIB, {index: Plain(noise(index, 65536)) for index in range(16, 256)}, cluster_bits=16)
    workbench.convert(image, chains="flatten")
    assert fetched and MIB <= fetched[0] < 2 * MIB, fetched
    workbench.convert(image, chains="preserve")
    assert 16 * MIB <= fetched[1] < 17 * MIB  # to prove a thin overlay, what it rests on is read as far as the overlay goes


def test_small_overlay_on_a_huge_base(workbench) -> None:
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    oracle.run("create", "-q", "-f", "vhdx", base, "1T")
    write_overlay(image, base, MIB, {3: Plain(b"three")})
    before = time.process_time(), os.times().children_user
    workbench.converts_to(image, bytes(3 * 4096) + b"three".ljust(MIB - 3 * 4096, b"\0"), chains="flatten")
    assert os.times().children_user - before[1] < 5  # qemu-img takes 25 seconds to read all of it


def test_format_that_hides_its_holes_is_not_read_for_hours(workbench) -> None:
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    oracle.run("create", "-q", "-f", "vhdx", base, "60T")
    write_overlay(image, base, 59 << 40, cluster_bits=16, l2_bits=13)
    with pytest.raises(engine.Refused, match="cannot tell which of its 59.0 TiB hold data"):
        workbench.convert(image, chains="flatten")


@pytest.mark.parametrize(
    "kind, options",
    [("vmdk", {}), ("vhdx", {}), (None, {"compression": "zstd"}), (None, {"encryption": "luks", "luks_passphrase_file": True})],
)
def test_temporary_files_are_part_of_the_space_plan(workbench, tmp_path: pathlib.Path, kind: Optional[str], options: dict) -> None:
    """What does not fit is refused before anything is written; with room for the temporary files, too, it is migrated."""
    size = 40 * MIB
    if "luks_passphrase_file" in options:
        options["luks_passphrase_file"] = os.fsencode(workbench.secret(b"secret"))
    with mounted("tmpfs", os.fspath(tmp_path), size_mib=140) as point:
        folder = pathlib.Path(point)
        image = folder / "disk.qcow"
        if kind is None:
            (folder / "raw").write_bytes(noise(1, size))
            oracle.make_v1(folder / "raw", image)
            (folder / "raw").unlink()
        else:
            write_base(folder / "base", kind, noise(1, size))
            write_overlay(image, folder / "base", size)
        request = Request(os.fsencode(image), chains="flatten", state_dir=os.fsencode(folder / "state"), **options)
        keep = 20 * MIB
        with pytest.raises(NoSpace, match="temporary files"):
            batch.run([request], batch.Settings(os.fsencode(folder / "state"), reserve=keep))
        assert {path.name for path in folder.iterdir()} - {"state", "base"} == {"disk.qcow"}
        (result,) = batch.run([request], batch.Settings(os.fsencode(folder / "state"), reserve=0))
        assert result["changed"], result["msg"]
        free = os.statvfs(point).f_bavail * os.statvfs(point).f_frsize
        assert free < 2 * keep + size  # the result was as large as it was thought


def test_temporary_files_of_images_that_follow_each_other_are_not_added_up(workbench, tmp_path: pathlib.Path) -> None:
    with mounted("tmpfs", os.fspath(tmp_path), size_mib=100) as point:
        folder = pathlib.Path(point)
        requests = []
        for number in range(4):
            raw = folder / "raw"
            raw.write_bytes(noise(number, 8 * MIB))
            oracle.make_v1(raw, folder / ("disk%d.qcow" % number))
            raw.unlink()
            requests.append(
                Request(os.fsencode(folder / ("disk%d.qcow" % number)), compression="zstd", state_dir=os.fsencode(folder / "state"))
            )
        results = batch.run(requests, batch.Settings(os.fsencode(folder / "state"), reserve=0))
        assert [result["changed"] for result in results] == [True] * 4, results


def test_memory_of_qemu_img_is_limited(workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []
    original = foreign_base.QemuImg._run

    def run(self: Any, arguments: Any, *more: Any, **options: Any) -> Any:
        limits.append((arguments[0], options.get("memory")))
        return original(self, arguments, *more, **options)

    monkeypatch.setattr(foreign_base.QemuImg, "_run", run)
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    write_base(base, "vmdk", noise(1, MIB))
    write_overlay(image, base, MIB)
    workbench.convert(image, chains="flatten")
    looks = {command: memory for command, memory in limits if command in (b"info", b"map", b"convert")}
    assert len(looks) == 3 and all(looks.values()), limits
    with pytest.raises(engine.Refused):
        monkeypatch.setattr("ansible_collections.vmimage.qcow.plugins.module_utils._host.qemu_img._CONVERT_MEMORY", 1 << 20)
        workbench.convert(image, chains="flatten")
    assert sorted(path.name for path in workbench.results.iterdir()) == ["result.0"]


def test_table_that_names_one_block_again_and_again(workbench, tmp_path: pathlib.Path) -> None:
    """A file of 2 MiB that is 64 MiB of data: the plan says so before the filesystem is full."""
    with mounted("tmpfs", os.fspath(tmp_path), size_mib=110) as point:
        base, image = pathlib.Path(point) / "base", pathlib.Path(point) / "disk.qcow"
        write_base(base, "vdi", noise(1, MIB).ljust(64 * MIB, b"\0"))
        with open(base, "r+b") as stream:
            stream.seek(0x154)
            table = int.from_bytes(stream.read(4), "little")
            stream.seek(table)
            stream.write(bytes(4 * 64))
        assert sum(piece["length"] for piece in oracle.block_map(base, "vdi") if piece["data"]) == 64 * MIB
        write_overlay(image, base, 64 * MIB)
        state = os.fsencode(tmp_path / "state")
        with pytest.raises(NoSpace, match="temporary files"):
            batch.run([Request(os.fsencode(image), chains="flatten", state_dir=state)], batch.Settings(state, reserve=0))


@pytest.mark.parametrize("driver", ["qed", "vdi"])
def test_need_of_scattered_data_on_a_large_base(workbench, driver: str) -> None:
    base, image = workbench.directory / "base", workbench.directory / "disk.qcow"
    oracle.run("create", "-q", "-f", driver, base, "1T")
    command = [require_tool("qemu-io"), "-f", driver]
    for number in range(40):
        command += ["-c", "write -q %dG 64k" % (25 * number)]
    subprocess.run([*command, base], check=True)
    write_overlay(image, base, 1 << 40, cluster_bits=16, l2_bits=13)
    state = os.fsencode(workbench.state)
    request = Request(os.fsencode(image), chains="flatten", state_dir=state)
    (shown,) = batch.run([request], batch.Settings(state, check_mode=True))
    (done,) = batch.run([request], batch.Settings(state))
    assert done["changed"], done["msg"]
    assert done["after"]["allocated_size"] <= shown["after"]["file_size"]
