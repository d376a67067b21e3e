# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hole search of verification: nothing is left out on the word of one witness, and an honest sparse file costs what it holds."""

import errno
import os
import pathlib
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._verify import holes
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.holes import FileMap, called_a_hole
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader, Qcow2Reader
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require

MIB = 1 << 20
TIB = 1 << 40
PLACES = (0, 3 * MIB, TIB // 2, TIB - 4096)


@pytest.fixture(name="sparse")
def _sparse(tmp_path: pathlib.Path) -> Iterator[int]:
    """A file of one TiB that holds four blocks."""
    with open(tmp_path / "sparse", "w+b") as stream:
        stream.truncate(TIB)
        for place in PLACES:
            os.pwrite(stream.fileno(), b"data" * 1024, place)
        yield stream.fileno()


def without_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no map")

    monkeypatch.setattr(holes.fcntl, "ioctl", refuse)


def lie(monkeypatch: pytest.MonkeyPatch, start: int, stop: int) -> None:
    """SEEK_DATA passes over [start, stop) from now on."""
    truth = os.lseek

    def lseek(fd: int, place: int, whence: int) -> int:
        found = truth(fd, place, whence)
        return truth(fd, stop, whence) if whence == os.SEEK_DATA and start <= found < stop else found

    monkeypatch.setattr(holes.os, "lseek", lseek)


def read(found: FileMap) -> int:
    return sum(stop - start for start, stop in found.ranges())


def assert_covers(found: FileMap, *places: int) -> None:
    ranges = list(found.ranges())
    assert ranges == sorted(ranges) and all(one[1] < other[0] for one, other in zip(ranges, ranges[1:]))
    for place in places:
        assert any(start <= place and place + 4096 <= stop for start, stop in ranges), place


@pytest.mark.parametrize("mapped", [True, False])
def test_an_honest_sparse_file_is_not_read_whole(sparse: int, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    if not mapped:
        without_map(monkeypatch)
    found = FileMap(sparse)
    assert found.believed
    assert_covers(found, *PLACES)
    assert read(found) <= 8 * 65536


def test_the_extent_map_contradicts(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    require(FileMap(sparse).mapped, "the filesystem has no extent map")
    lie(monkeypatch, 2 * MIB, TIB - MIB)
    found = FileMap(sparse)
    assert_covers(found, *PLACES)
    assert read(found) <= 8 * 65536


def test_what_is_occupied_contradicts(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without_map(monkeypatch)
    os.pwrite(sparse, b"more" * MIB, MIB)
    lie(monkeypatch, MIB, 6 * MIB)
    found = FileMap(sparse)
    assert not found.believed
    assert read(found) == TIB


def test_one_witness_is_not_believed_where_reading_is_cheap(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_map(monkeypatch)
    with open(tmp_path / "file", "w+b") as stream:
        stream.truncate(64 * MIB)
        assert read(FileMap(stream.fileno())) == 64 * MIB
        monkeypatch.setattr(holes, "AFFORDABLE", MIB)
        assert read(FileMap(stream.fileno())) == 0


def test_reserved_space_is_zeros_once_memory_is_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "file", "w+b") as stream:
        fd = stream.fileno()
        os.posix_fallocate(fd, 0, 64 * MIB)
        require(FileMap(fd).mapped, "the filesystem has no extent map")
        os.pwrite(fd, b"data" * 1024, 32 * MIB)  # stays in memory for now
        lie(monkeypatch, 0, 64 * MIB)
        found = FileMap(fd)
        assert_covers(found, 32 * MIB)
        assert read(found) < MIB


@pytest.mark.parametrize("answer", [0, 5 * MIB], ids=["backwards", "stands still"])
def test_answers_that_make_no_sense(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, answer: int) -> None:
    with open(tmp_path / "file", "w+b") as stream:
        stream.truncate(8 * MIB)
        truth = os.lseek
        monkeypatch.setattr(holes.os, "lseek", lambda fd, place, how: answer if how > os.SEEK_END else truth(fd, place, how))
        assert_covers(FileMap(stream.fileno()), *range(5 * MIB, 8 * MIB, 4096))


def test_a_map_that_goes_backwards(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_extents", lambda fd, start, length, flags: (((0, 4096, 0),), False))
    with open(tmp_path / "file", "w+b") as stream:
        stream.truncate(8 * MIB)
        assert read(FileMap(stream.fileno())) == 8 * MIB


def test_a_device_is_read_whole() -> None:
    with open("/dev/null", "rb") as stream:
        assert not FileMap(stream.fileno()).believed


def test_called_a_hole(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not called_a_hole(sparse, 3 * MIB, 3 * MIB + 65536)
    lie(monkeypatch, 2 * MIB, 4 * MIB)
    assert called_a_hole(sparse, 3 * MIB, 3 * MIB + 65536)
    assert not called_a_hole(sparse, 2 * MIB, 2 * MIB + 65536)


def test_an_l1_table_of_gigabytes_costs_what_it_holds(tmp_path: pathlib.Path) -> None:
    spec = ImageSpec(size=400 * TIB, clusters={0: Plain(b"a" * 4096), (300 * TIB) >> 12: Plain(b"b" * 4096)})
    build(spec).write(tmp_path / "image", sparse=True)
    with open(tmp_path / "image", "rb") as stream:
        reader = Qcow1Reader(stream.fileno(), b"image")
        assert [block for blocks in reader.blocks() for block in blocks] == [0, (300 * TIB) >> 16]


def test_large_clusters_are_visited_one_by_one(tmp_path: pathlib.Path) -> None:
    """A table of clusters of 2 MiB stands for half a TiB; one cluster of it is 32 blocks."""
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(12) + (21).to_bytes(4, "big") + (TIB // 2).to_bytes(8, "big") + bytes(4)
    head += (1).to_bytes(4, "big") + (4 * MIB).to_bytes(8, "big")
    with open(tmp_path / "image", "w+b") as stream:
        os.pwrite(stream.fileno(), head.ljust(112, b"\0"), 0)
        os.pwrite(stream.fileno(), (6 * MIB).to_bytes(8, "big"), 4 * MIB)
        os.pwrite(stream.fileno(), (8 * MIB).to_bytes(8, "big"), 6 * MIB + 8 * 1000)
        stream.truncate(10 * MIB)
        assert list(Qcow2Reader(stream.fileno(), b"image").blocks()) == [range(32000, 32032)]
