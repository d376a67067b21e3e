# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: what surrounds the image, and results."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from typing import Iterator, Optional

import pytest

from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, BuiltImage, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
STAND_IN = pathlib.Path(__file__).resolve().parents[1] / "support" / "fake_qemu_img"


def sample() -> BuiltImage:
    return build(ImageSpec(size=MIB, clusters={index: Plain(b"%d " % index * 800) for index in range(20)}))


@pytest.mark.parametrize("change", ["append", "write", "replace"])
def test_image_that_changes_meanwhile_is_refused(workbench, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    path = workbench.image(sample())

    def meddle(_temporary: bytes) -> None:
        if change == "replace":
            workbench.image(sample(), "other.qcow")
            os.replace(workbench.directory / "other.qcow", path)
            return
        # The guard's lease makes a writer in this process wait; another process is what it is there for.
        code = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(0, 2 if sys.argv[2] == 'append' else 0); f.seek(9000) if sys.argv[2] == 'write' else 0"
        code += "; f.write(b'changed'); f.close()"
        meddler = subprocess.Popen([sys.executable, "-c", code, str(path), change])
        time.sleep(0.5)
        meddlers.append(meddler)

    meddlers: list[subprocess.Popen] = []
    engine.after_the_copy(monkeypatch, meddle)
    with pytest.raises(engine.Refused) as refusal:
        workbench.convert(path)
    for meddler in meddlers:
        assert meddler.wait(timeout=60) == 0
    assert refusal.value.result["reason"] in ("changed", "in-use"), refusal.value.result["msg"]
    assert not list(workbench.results.iterdir())


@pytest.fixture(name="qemu_io")
def _qemu_io() -> Iterator:
    """Opens images with qemu-io, which locks them as a virtual machine does."""
    program = require_tool("qemu-io")
    opened = []

    def open_image(*arguments: str) -> None:
        process = subprocess.Popen([program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        opened.append(process)
        process.stdin.write(b"length\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert b"MiB" in answer or b"1 M" in answer, answer

    yield open_image
    for process in opened:
        process.communicate(b"quit\n", timeout=30)


def test_image_with_a_writer_is_refused(workbench, qemu_io) -> None:
    oracle.require_v1_driver()
    path = workbench.image(sample())
    qemu_io("-f", "qcow", str(path))
    workbench.is_refused(path, "in-use")


def test_image_with_a_reader_may_be_read_but_not_retired(workbench, qemu_io) -> None:
    oracle.require_v1_driver()
    path = workbench.image(sample())
    qemu_io("-r", "-f", "qcow", str(path))
    workbench.converts_to(path, sample().guest_bytes())
    workbench_results = sorted(workbench.results.iterdir())
    with pytest.raises(engine.Refused) as refusal:
        workbench.convert(path, retire=True)
    assert refusal.value.result["reason"] == "in-use"
    assert path.exists()
    assert sorted(workbench.results.iterdir()) == workbench_results


def test_base_of_a_running_machine_is_not_retired(workbench, qemu_io) -> None:
    oracle.require_v1_driver()
    path = workbench.image(sample())
    build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, backing=Backing(b"disk.qcow"))).write(workbench.directory / "top.qcow")
    qemu_io("-f", "qcow", str(workbench.directory / "top.qcow"))
    with pytest.raises(engine.Refused) as refusal:
        workbench.convert(path, retire=True)
    assert refusal.value.result["reason"] == "in-use"


def test_qemu_img_without_the_driver_is_not_believed(workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle.require_qemu_img()
    (workbench.directory.parent / "bin").mkdir()
    (workbench.directory.parent / "bin" / "qemu-img").symlink_to(STAND_IN)
    monkeypatch.setenv("PATH", "%s:%s" % (workbench.directory.parent / "bin", os.environ["PATH"]))
    path = workbench.image(sample())
    workbench.converts_to(path, sample().guest_bytes())
    for wanted in ("raw", "qcow2"):
        with pytest.raises(engine.Refused) as refusal:
            workbench.convert(path, format=wanted, engine="qemu-img")
        assert refusal.value.result["reason"] == "tool-missing"


@pytest.mark.parametrize("wanted", ["raw", "qcow2"])
def test_qemu_img_with_the_driver_may_be_asked(workbench, wanted: str) -> None:
    oracle.require_v1_driver()
    path = workbench.image(sample())
    result = workbench.convert(path, format=wanted, engine="qemu-img")
    assert result["engine"] == "qemu-img"
    assert oracle.guest_bytes(oracle.Node(result["dest"], wanted)) == sample().guest_bytes()


def test_compressed_image_of_a_qemu_img_that_ends_with_1(workbench) -> None:
    oracle.require_v1_driver()
    disk = workbench.file(sample().guest_bytes(), "source")
    path = workbench.directory / "disk.qcow"
    oracle.make_v1(disk, path, compressed=True)
    assert workbench.inspect(path)["compressed_clusters"] == 20
    workbench.converts_to(path, sample().guest_bytes())


def test_hole_in_a_table_is_unallocated(workbench) -> None:
    image = build(ImageSpec(size=64 * MIB, clusters={3: Plain(b"three"), 600: Plain(b"six"), 9000: Plain(b"nine")}, layout="mkimg"))
    path = workbench.image(image, sparse=True)
    workbench.converts_to(path, image.guest_bytes())
    # Over the second L2 table: what qemu-img reads as zeros, without a word.
    punch = [require_tool("fallocate"), "--punch-hole", "--offset", str(image.l2_at[1]), "--length", "4096", str(path)]
    subprocess.run(punch, check=True)
    expected = bytearray(image.guest_bytes())
    expected[600 * 4096 : 601 * 4096] = bytes(4096)
    assert workbench.mentions(workbench.converts_to(path, bytes(expected)), "lies in a hole of the file")


def test_empty_disk_of_1_tib_with_clusters_of_512_bytes_takes_no_time(workbench) -> None:
    path = workbench.image(build(ImageSpec(size=1 << 40, cluster_bits=9, l2_bits=12)), sparse=True)
    started = time.monotonic()
    assert workbench.inspect(path)["virtual_size"] == 1 << 40
    for wanted in ("raw", "qcow2"):
        result = workbench.convert(path, format=wanted)
        assert os.stat(result["dest"]).st_blocks * 512 < MIB
    assert time.monotonic() - started < 60  # qemu-img takes minutes


@pytest.mark.parametrize("wanted", ["raw", "qcow2"])
def test_zeros_stay_holes(workbench, wanted: str) -> None:
    clusters = {index: Plain(bytes(4096)) for index in range(1000)}
    clusters[500] = Plain(b"five hundred")
    path = workbench.image(build(ImageSpec(size=64 * MIB, clusters=clusters)))
    assert path.stat().st_size > 4_000_000
    result = workbench.convert(path, format=wanted)
    assert os.stat(result["dest"]).st_blocks * 512 < 512 << 10


def test_altered_result_is_not_published(workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def meddle(temporary: bytes) -> None:
        with open(temporary, "r+b") as target:
            content = target.read()
            target.seek(content.index(b"7 7 7 7"))
            target.write(b"8")

    engine.after_the_copy(monkeypatch, meddle)
    workbench.is_refused(workbench.image(sample()), "verification-failed")


def test_disk_too_large_for_small_clusters_is_refused_with_a_hint(workbench) -> None:
    path = workbench.image(build(ImageSpec(size=200 << 30)), sparse=True)
    with pytest.raises(engine.Refused) as refusal:
        workbench.convert(path, cluster_size=512)
    assert refusal.value.result["reason"] == "unsupported"
    assert "larger clusters" in refusal.value.result["msg"]
    assert workbench.convert(path, cluster_size=65536)["changed"]


@pytest.mark.parametrize(
    "limit, spec, base",
    [
        ("the L1 table would be larger than qcow2 allows", ImageSpec(size=200 << 30, cluster_bits=9, l2_bits=12), None),
        ("a backing file name of ", ImageSpec(size=MIB, cluster_bits=9, l2_bits=9), "b" * 200 + ".raw"),
    ],
)
def test_layout_beyond_the_limits_is_made_anew(workbench, limit: str, spec: ImageSpec, base: Optional[str]) -> None:
    clusters = {3: Plain(b"three"), 600: Plain(b"six hundred")}
    if base is not None:
        folder = workbench.directory / ("d" * 200)
        folder.mkdir()
        (folder / base).write_bytes(b"base" * (MIB // 4))
        spec = dataclasses.replace(spec, backing=Backing(os.fsencode("%s/%s" % (folder.name, base))))
    path = workbench.image(build(dataclasses.replace(spec, clusters=clusters)), sparse=True)
    result = workbench.convert(path, layout="keep")
    assert workbench.mentions(result, "the layout cannot be kept") and workbench.mentions(result, limit), result["reasons"]
    assert result["after"]["cluster_size"] == 65536 if base is None else result["verified"]
    oracle.assert_clean(result["dest"])


@pytest.mark.parametrize("retire", [False, True])
def test_converting_twice_changes_nothing_more(workbench, retire: bool) -> None:
    path = workbench.image(sample())
    dest = workbench.results / "result"
    first = engine.convert(path, dest, state_dir=workbench.state, retire=retire)
    before = dest.stat()
    second = engine.convert(path, dest, state_dir=workbench.state, retire=retire)
    assert (first["changed"], second["changed"]) == (True, False)
    assert (dest.stat().st_ino, dest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("retire", [False, True])
def test_converted_result_is_not_version_1(workbench, retire: bool) -> None:
    path = workbench.image(sample())
    result = engine.convert(path, workbench.directory / "result", state_dir=workbench.state, retire=retire)
    workbench.is_not_migrated(pathlib.Path(result["dest"]))
