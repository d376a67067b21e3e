# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every way in which bytes travel arrives at the same bytes: chunks, runs, streams, shared blocks, holes; with and without new system calls."""

import os
import pathlib
import random
from typing import Any, Iterator, List

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy import chunks, copier
from ansible_collections.vmimage.qcow.plugins.module_utils._copy.writers import Qcow2Options, Qcow2Writer, RawWriter
from ansible_collections.vmimage.qcow.plugins.module_utils._errors import DamagedImage, ImageChanged
from ansible_collections.vmimage.qcow.plugins.module_utils._image import file_io
from ansible_collections.vmimage.qcow.plugins.module_utils._image.extent import (
    CHUNK,
    COMPRESSED,
    DATA,
    SCATTERED,
    ZERO,
    Extent,
    Layer,
    Partition,
)
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._image.raw import Raw
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader, Qcow2Reader
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.reader import RawReader
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.big_image import write_dense
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("hands")


class Numbers(Layer):
    """A layer without a file: only where its extents lie matters."""

    def __init__(self) -> None:
        self.fd, self.path, self.file_size, self.virtual_size, self.cluster_size = -1, b"none", 1 << 40, 1 << 40, 4096


def random_extents(source: random.Random, size: int) -> Iterator[Extent]:
    layer = Numbers()
    position = 0
    while position < size:
        position += source.choice([0, 0, 512, 4096, 70000, 5 * MIB]) // 512 * 512
        length = min(source.choice([512, 4096, 65536, 300 * 1024, 3 * MIB]), size - position)
        if length <= 0:
            return
        kind = source.choice([DATA, DATA, DATA, ZERO])
        yield Extent(position, length, kind, layer, 0 if kind == ZERO else source.randrange(1 << 30), 0 if kind == ZERO else length, 0)
        position += length


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize("unit", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("seed", range(5))
def test_stretches_lose_nothing_and_split_no_unit(seed: int, unit: int, keep_zeros: bool, partitions: int) -> None:
    size = 40 * MIB + 512
    extents = list(random_extents(random.Random(seed), size))
    found = {}
    for partition in range(partitions):
        for start, inside in chunks.chunked(iter(extents), Partition(partition, partitions), keep_zeros=keep_zeros):
            assert start not in found and start % CHUNK == 0 and start // CHUNK % partitions == partition
            found[start] = chunks.segments(inside, unit, size)
    seen: List[Extent] = []
    for start, segments in sorted(found.items()):
        end = start
        for segment in segments:
            assert segment.start % unit == 0 and segment.start >= end
            end = segment.start + segment.length
            assert end % unit == 0 or end == size
            assert all(segment.start <= e.start and e.start + e.length <= end for e in segment.extents)
            seen.extend(segment.extents)
        assert end <= start + CHUNK
    wanted = [e for e in extents if keep_zeros or e.kind != ZERO]
    assert _bytes_of(seen) == _bytes_of(wanted)


def _bytes_of(extents: List[Extent]) -> List[Any]:
    """Neighbouring pieces of the same extent as one."""
    joined: List[Any] = []
    for start, length, kind, _layer, offset, _stored, _skip in extents:
        if joined and joined[-1][0] + joined[-1][1] == start and joined[-1][2] == kind and kind in (DATA, ZERO):
            first = joined[-1]
            if kind == ZERO or first[3] + first[1] == offset:
                joined[-1] = (first[0], first[1] + length, kind, first[3])
                continue
        joined.append((start, length, kind, offset))
    return joined


@pytest.mark.parametrize("unit", [512, 4096])
def test_runs_of_what_is_not_zero(unit: int) -> None:
    source = random.Random(unit)
    for _round in range(200):
        units = [source.choice([bytes(unit), bytes(unit - 1) + b"x", b"x" * unit]) for _number in range(source.randrange(1, 12))]
        data = b"".join(units)[: -source.randrange(unit) or None]
        front, back = source.randrange(100), source.randrange(100)
        buffer = memoryview(os.urandom(front) + data + os.urandom(back))
        runs = list(chunks.nonzero_runs(buffer, front, front + len(data), unit))
        inside = bytearray(len(data))
        for start, stop in runs:
            assert (start - front) % unit == 0 and ((stop - front) % unit == 0 or stop == front + len(data))
            inside[start - front : stop - front] = data[start - front : stop - front]
        assert inside == data
        assert sum(stop - start for start, stop in runs) == sum(
            len(data[at : at + unit]) for at in range(0, len(data), unit) if any(data[at : at + unit])
        )


def convert(src: Any, dest: Any, kind: str, **options: Any) -> copier.Copied:
    """Copy ``src`` and prove the result by the other path."""
    uncached = options.pop("uncached", False)
    with open(src, "rb") as old, open(dest, "w+b") as new:
        image = Qcow1(old.fileno(), b"old")
        writer = (
            RawWriter(new.fileno(), image.virtual_size)
            if kind == "raw"
            else Qcow2Writer(new.fileno(), image.virtual_size, Qcow2Options(**options))
        )
        copied = copier.copy_extents(image.bulk_extents(), [image], writer, hashed=True, uncached=uncached)
        plain = RawReader if kind == "raw" else Qcow2Reader
        proof = verify([Qcow1Reader(old.fileno(), b"old")], [plain(new.fileno(), b"new")], b"new", uncached=uncached)
    assert copied.fingerprint == (None if copied.carried or copied.shared else proof)
    if kind == "qcow2":
        oracle.assert_clean(dest)
    return copied


@pytest.mark.parametrize("content", ["ordered", "shuffled", "compressed"])
@pytest.mark.parametrize(
    "options",
    [
        {"kind": "raw"},
        {"kind": "qcow2"},
        {"kind": "qcow2", "cluster_size": 4096, "compressed": True},
        {"kind": "qcow2", "compressed": True},
        {"kind": "qcow2", "cluster_size": 2 * MIB},
        {"kind": "qcow2", "cluster_size": 512},
    ],
    ids=str,
)
def test_large_images(tmp_path: pathlib.Path, content: str, options: Any) -> None:
    write_dense(tmp_path / "old", 20 * MIB, **({} if content == "ordered" else {content: True}))
    copied = convert(tmp_path / "old", tmp_path / "new", **options)
    assert copied.read == copied.written == 20 * MIB
    assert copied.carried == (20 * MIB if content == "compressed" and options.get("cluster_size") == 4096 else 0)


def test_as_on_an_old_python(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No preadv, no sync_file_range, no advice: what Python 3.6 on an old kernel has."""

    def read_into(fd: int, view: memoryview, offset: int) -> int:
        data = os.pread(fd, len(view), offset)
        view[: len(data)] = data
        return len(data)

    monkeypatch.setattr(chunks, "read_into", read_into)
    monkeypatch.setattr(file_io, "read_into", read_into)
    monkeypatch.setattr(file_io, "ctypes", None)
    monkeypatch.setattr(file_io, "_sync_file_range", None)
    monkeypatch.delattr(os, "POSIX_FADV_WILLNEED")
    write_dense(tmp_path / "old", 40 * MIB)
    convert(tmp_path / "old", tmp_path / "new", "qcow2")


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_blocks_are_shared_where_the_filesystem_can(tmp_path: pathlib.Path, fstype: str, kind: str) -> None:
    with mounted(fstype, str(tmp_path)) as folder:
        old, new = os.path.join(folder, "old"), os.path.join(folder, "new")
        write_dense(old, 32 * MIB)
        os.sync()
        before = os.statvfs(folder).f_bfree
        assert convert(old, new, kind).shared == 32 * MIB
        os.sync()
        assert (before - os.statvfs(folder).f_bfree) * os.statvfs(folder).f_frsize < 4 * MIB


def test_nothing_is_shared_across_filesystems(tmp_path: pathlib.Path) -> None:
    with mounted("xfs", str(tmp_path)) as folder:
        write_dense(os.path.join(folder, "old"), 4 * MIB)
        assert convert(os.path.join(folder, "old"), tmp_path / "new", "qcow2").shared == 0


def test_zeros_take_no_space(tmp_path: pathlib.Path) -> None:
    (tmp_path / "old").write_bytes(b"a" * 8192 + bytes(3 * MIB) + b"b" * 4096 + bytes(60000) + b"c" * 512)
    with open(tmp_path / "old", "rb") as old, open(tmp_path / "new", "w+b") as new:
        layer = Raw(old.fileno(), b"old")
        writer = Qcow2Writer(new.fileno(), layer.virtual_size)
        copied = copier.copy_extents(layer.extents(), [layer], writer, hashed=True)
        assert copied.written < 4 * 65536
        assert os.fstat(new.fileno()).st_blocks * 512 < 6 * 65536
        assert copied.fingerprint == verify([RawReader(old.fileno(), b"old")], [Qcow2Reader(new.fileno(), b"new")], b"new")


def test_what_a_process_raises_arrives(tmp_path: pathlib.Path) -> None:
    write_dense(tmp_path / "old", 24 * MIB, compressed=True)
    with open(tmp_path / "old", "r+b") as old, open(tmp_path / "new", "w+b") as new:
        image = Qcow1(old.fileno(), b"old")
        last = [extent for extent in image.extents() if extent.kind == COMPRESSED][-1]
        os.pwrite(old.fileno(), b"\xff" * last.stored, last.offset)
        with pytest.raises(DamagedImage, match="compressed cluster"):
            copier.copy_extents(image.extents(), [image], Qcow2Writer(new.fileno(), image.virtual_size))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_file_that_shrinks_is_no_result(tmp_path: pathlib.Path, shuffled: bool) -> None:
    write_dense(tmp_path / "old", 4 * MIB, shuffled=shuffled)
    with open(tmp_path / "old", "r+b") as old, open(tmp_path / "new", "w+b") as new:
        image = Qcow1(old.fileno(), b"old")
        extents = list(image.bulk_extents())
        assert any(extent.kind == SCATTERED for extent in extents) is shuffled
        old.truncate(3 * MIB)
        with pytest.raises(ImageChanged, match="while it is being read"):
            copier.copy_extents(extents, [image], RawWriter(new.fileno(), image.virtual_size))


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
@pytest.mark.parametrize("seed", range(4))
def test_scattered_runs_of_all_lengths(tmp_path: pathlib.Path, seed: int, cluster_size: int) -> None:
    """A raw disk with data here and there, from one page to megabytes, so that runs begin and end inside clusters of the result."""
    source = random.Random(seed)
    with open(tmp_path / "old", "w+b") as old, open(tmp_path / "new", "w+b") as new:
        old.truncate(48 * MIB + 4096)
        for _number in range(25):
            length = source.choice([4096, 20480, 300 * 1024, 307200, MIB, 3 * MIB])
            os.pwrite(old.fileno(), source.randbytes(length), source.randrange(48 * MIB - length) // 4096 * 4096)
        layer = Raw(old.fileno(), b"old")
        writer = Qcow2Writer(new.fileno(), layer.virtual_size, Qcow2Options(cluster_size))
        copied = copier.copy_extents(layer.extents(), [layer], writer, hashed=True)
        assert copied.fingerprint == verify([RawReader(old.fileno(), b"old")], [Qcow2Reader(new.fileno(), b"new")], b"new")
    oracle.assert_clean(tmp_path / "new")
