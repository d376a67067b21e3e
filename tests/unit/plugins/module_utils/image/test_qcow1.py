# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables that are looked at as a whole say what looking at each of their entries says."""

import pathlib
import random
from array import array
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._image.entry_arithmetic import runs, whole_clusters
from ansible_collections.vmimage.qcow.plugins.module_utils._image.extent import CHUNK, DATA, SCATTERED, Extent, Scattered
from ansible_collections.vmimage.qcow.plugins.module_utils._image.measure import measure
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Damage, Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1_check import check
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build, header

NOISE = random.Random(3).randbytes(65536)
CUTS = (0, 1, 511, 512, 5000)


def look(path: pathlib.Path) -> Any:
    """What an image says of itself in every way that takes a table as a whole."""
    with open(path, "rb") as stream:
        damage: list[Damage] = []
        image = Qcow1(stream.fileno(), bytes(path), damage.append)
        extents = [tuple(extent[:3]) + tuple(extent[4:]) for extent in image.extents()]
        needs = [
            measure(image.runs(), cluster_size=size, virtual_size=image.virtual_size, tables=tables)
            for size in (512, 4096, 65536)
            for tables in (True, False)
        ]
        told = list(damage)
        assert [tuple(extent[:3]) + tuple(extent[4:]) for extent in apart(image.bulk_extents(), image)] == extents
        return extents, told, needs, check(stream.fileno(), bytes(path)).as_dict()


def apart(extents: Iterator[Extent], image: Qcow1) -> Iterator[Extent]:
    """Scattered clusters one by one, or run by run."""
    for extent in extents:
        if not isinstance(extent, Scattered):
            yield extent
            continue
        cluster, place = image.cluster_size, 0
        assert extent.length == cluster * len(extent.offsets) and extent.start % CHUNK + extent.length <= CHUNK
        while place < len(extent.offsets):
            count = 1
            while place + count < len(extent.offsets) and extent.offsets[place + count] == extent.offsets[place] + count * cluster:
                count += 1
            yield Extent(extent.start + place * cluster, count * cluster, DATA, image, extent.offsets[place], count * cluster, 0)
            place += count


@pytest.mark.parametrize("order", ["guest", "shuffled", "reversed"])
@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("what", ["full", "holes", "compressed", "streams", "encrypted", "odd-size"])
def test_short_cuts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, what: str, bits: int, order: str) -> None:
    count = 300
    size = (count << bits) - (700 if what == "odd-size" else 0)
    left_out = {7, 8, 64, count - 1} if what == "holes" else set()
    clusters: dict[int, Any] = {number: Plain(NOISE[: 1 << bits]) for number in range(count) if number not in left_out}
    if what == "compressed":
        clusters[70] = Packed(b"again " * 80)
    if what == "streams":
        clusters = {number: Packed(b"again %d " % number * 9) for number in range(count)}
    image = build(
        ImageSpec(size=size, cluster_bits=bits, l2_bits=6, clusters=clusters, order=order, password=b"pw" if what == "encrypted" else None)
    )
    whole = tmp_path / "whole.qcow"
    image.write(whole)
    if what == "full":
        with open(whole, "rb") as stream:
            extents = Qcow1(stream.fileno(), bytes(whole)).bulk_extents()
            assert {extent.kind for extent in extents} == {DATA if order == "guest" else SCATTERED}
    for cut in CUTS:
        path = tmp_path / ("%d.qcow" % cut)
        path.write_bytes(whole.read_bytes()[: -cut or None])
        short = look(path)
        with monkeypatch.context() as patch:
            patch.setattr(Qcow1, "in_order", lambda *arguments: False)
            patch.setattr(Qcow1, "only_whole_clusters", lambda *arguments: False)
            patch.setattr(Qcow1, "only_streams", lambda *arguments: None)
            assert look(path) == short


@pytest.mark.parametrize("seed", range(20))
def test_tables_at_random(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Few different entries, so that every kind of neighbour comes up; the first cluster of the file among them."""
    source = random.Random(seed)
    path = tmp_path / "image.qcow"
    path.write_bytes(header(64 << 20, cluster_bits=12, l2_bits=9).ljust(24 * 4096, b"\0"))
    with open(path, "rb") as stream:
        image = Qcow1(stream.fileno(), bytes(path))
        for _round in range(200):
            choice = [0] * source.randrange(3) + [4096 * number for number in range(source.randrange(5) == 0, 24)]
            entries = array("Q", source.choices(choice, k=source.randrange(1, 513)))
            for place in range(source.randrange(len(entries))):
                if source.random() < 0.7 and entries[place] and entries[place] < 22 * 4096:
                    entries[place + 1] = entries[place] + 4096
            found = list(image.table_extents(2 << 20, entries))
            with monkeypatch.context() as patch:
                patch.setattr(Qcow1, "in_order", lambda *arguments: False)
                patch.setattr(Qcow1, "only_whole_clusters", lambda *arguments: False)
                assert list(image.table_extents(2 << 20, entries)) == found
            assert runs(entries, 4096)[1] == [length for _first, length in slowly(entries)]


def slowly(entries: Any) -> list[tuple[int, int]]:
    """The runs of a table, looked for one by one."""
    found: list[tuple[int, int]] = []
    for place, entry in enumerate(entries):
        if place and entry == entries[place - 1] + 4096:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_words_taken_together(seed: int) -> None:
    source = random.Random(seed)
    for _round in range(200):
        limit = source.choice([0, 4096, 40 * 4096 + 7, (1 << 63) - 1])
        odd = [source.choice([1, 511, 4095, 1 << 63, limit + 1, limit + 4096])] if source.random() < 0.5 else []
        words = [4096 * source.randrange(limit // 4096 + 1) for _entry in range(source.randrange(1, 600))] + odd
        source.shuffle(words)
        entries = array("Q", words)
        wanted = all(entry % 4096 == 0 and entry <= limit for entry in entries)
        assert whole_clusters(entries, 4096, limit) is wanted
        assert not whole_clusters(entries, 4096, -1)
