# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: tables and stored clusters. qemu-img takes most of these for zeros and ends with exit code 0."""

import dataclasses
import struct

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import Entry, ImageSpec, Packed, Plain, Shared, build

MIB = 1 << 20
CLUSTER = 4096
SPAN = 512 * CLUSTER


def spec(**more) -> ImageSpec:
    values = {"size": 4 * MIB, "clusters": {3: Plain(b"three" * 800), 600: Plain(b"six" * 1300), 601: Packed(b"packed" * 600)}}
    values.update(more)
    return ImageSpec(**values)


@pytest.mark.parametrize("offset", [1 << 30, 1 << 62, 1 << 63, (1 << 64) - 8, (1 << 64) - 1])
def test_l1_table_outside_the_file_is_an_error(workbench, offset: int) -> None:
    workbench.is_refused(workbench.image(build(spec(fields={"l1_offset": offset}))), "damaged", "L1 table")


def test_l1_table_cut_by_the_end_is_an_error(workbench) -> None:
    workbench.is_refused(workbench.image(build(spec(cut_to=48 + 15))), "damaged", "L1 table")


@pytest.mark.parametrize("offset", [49, 53, 4099, 8193])
def test_l1_table_may_be_unaligned(workbench, offset: int) -> None:
    image = build(spec(l1_at=offset))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize("offset", [0, 8, 32, 40, 47])
def test_l1_table_over_the_header_is_an_error(workbench, offset: int) -> None:
    workbench.is_refused(workbench.image(build(spec(fields={"l1_offset": offset}))), "damaged", "L1 table", "header")


@pytest.mark.parametrize("offset", [1 << 20, 1 << 40])
def test_l2_table_outside_the_file_is_an_error(workbench, offset: int) -> None:
    error = workbench.is_refused(workbench.image(build(spec(l1_patch={1: offset}))), "damaged", "L2 table")
    assert workbench.ranges(error)[0][0] == SPAN


def test_l2_table_cut_by_the_end_is_an_error(workbench) -> None:
    image = build(spec(layout="mkimg", clusters={3: Plain(b"x", at=4096 + 2048)}))
    # The only table is the last thing in the file; entries from 256 on are missing.
    cut = build(dataclasses.replace(image.spec, cut_to=image.l2_at[0] + 2048))
    error = workbench.is_refused(workbench.image(cut), "damaged", "L2 table", "cut")
    assert workbench.ranges(error)[0] == (256 * CLUSTER, 256 * CLUSTER)


@pytest.mark.parametrize("bit", [62, 63])
def test_l1_entry_with_a_high_bit_is_an_error(workbench, bit: int) -> None:
    image = build(spec())
    workbench.is_refused(workbench.image(build(spec(l1_patch={0: image.l1[0] | 1 << bit}))), "damaged", "L2 table")


@pytest.mark.parametrize("skew", [8, 13, 512, 4095])
def test_l2_table_may_be_unaligned(workbench, skew: int) -> None:
    image = build(spec(l2_skew=skew))
    assert image.l2_at[0] % CLUSTER == skew
    workbench.converts_to(workbench.image(image), image.guest_bytes())


def test_clusters_past_the_end_are_errors_with_their_count(workbench) -> None:
    clusters = {index: Plain(b"%d " % index * 800) for index in range(20)}
    image = build(ImageSpec(size=MIB, clusters=clusters))
    cut = build(dataclasses.replace(image.spec, cut_to=image.places[3][0]))
    path = workbench.image(cut)
    error = workbench.is_refused(path, "damaged", "outside the file")
    ranges = workbench.ranges(error)
    assert ranges[0][0] == 3 * CLUSTER
    assert sum(length for _start, length in ranges) == 17 * CLUSTER


@pytest.mark.parametrize("missing", [1, 100, 512, 4095])
def test_last_cluster_cut_where_guest_bytes_are_lost_is_an_error(workbench, missing: int) -> None:
    image = build(ImageSpec(size=MIB, clusters={3: Plain(b"x" * CLUSTER)}))
    cut = build(dataclasses.replace(image.spec, cut_to=image.length - missing))
    error = workbench.is_refused(workbench.image(cut), "damaged", "cut off")
    assert workbench.ranges(error) == [(4 * CLUSTER - missing, missing)]


@pytest.mark.parametrize("missing", [1, 512, 3096])
def test_last_cluster_cut_behind_the_virtual_size_is_accepted(workbench, missing: int) -> None:
    image = build(ImageSpec(size=3 * CLUSTER + 1000, clusters={3: Plain(b"x" * CLUSTER)}))
    cut = build(dataclasses.replace(image.spec, cut_to=image.length - missing))
    workbench.converts_to(workbench.image(cut), image.guest_bytes())


@pytest.mark.parametrize("skew", [512, 1024, 3584])
def test_clusters_may_be_aligned_to_sectors_only(workbench, skew: int) -> None:
    image = build(spec(clusters={3: Plain(b"three" * 800, skew=skew), 4: Plain(b"four" * 1000, skew=512), 5: Plain(b"five")}))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize("cluster", [Plain(b"x", skew=1), Plain(b"x", skew=511), Plain(b"x", skew=513), Entry(1), Entry(8192 | 1)])
def test_clusters_off_the_sectors_are_errors(workbench, cluster) -> None:
    error = workbench.is_refused(workbench.image(build(spec(clusters={3: cluster, 9: Plain(b"nine")}))), "damaged", "512")
    assert workbench.ranges(error)[0] == (3 * CLUSTER, CLUSTER)


@pytest.mark.parametrize("kind", [Plain, Packed])
def test_shared_clusters_are_converted(workbench, kind: type) -> None:
    image = build(spec(clusters={3: kind(b"three" * 700), 4: Shared(3), 700: Shared(3), 5: Plain(b"five")}))
    result = workbench.converts_to(workbench.image(image), image.guest_bytes())
    assert workbench.mentions(result, "shares bytes of the file with another one")


def test_overlapping_clusters_are_converted(workbench) -> None:
    first = build(spec(clusters={3: Plain(b"3" * CLUSTER)}))
    offset = first.places[3][0]
    clusters = {3: Plain(b"3" * CLUSTER), 4: Entry(offset + 512, b"3" * (CLUSTER - 512))}
    image = build(spec(clusters=clusters, append=bytes(512)))
    result = workbench.converts_to(workbench.image(image), image.guest_bytes())
    assert workbench.mentions(result, "shares bytes of the file with another one")


def test_shared_l2_tables_are_converted(workbench) -> None:
    image = build(ImageSpec(size=3 * SPAN, clusters={1: Plain(b"one"), 2: Packed(b"two" * 99)}, share_l2={1: 0, 2: 0}))
    result = workbench.converts_to(workbench.image(image), image.guest_bytes())
    assert workbench.mentions(result, "L1 entries share the L2 table")


def test_cluster_over_the_l1_table_is_corruption_and_salvaged_as_stored(workbench) -> None:
    image = build(ImageSpec(size=MIB, layout="mkimg", clusters={3: Plain(b"three")}))
    stored = image.data[4096:8192]
    both = build(ImageSpec(size=MIB, layout="mkimg", clusters={3: Plain(b"three"), 5: Entry(4096, stored)}))
    assert both.data[4096:8192] == stored
    path = workbench.image(both)
    workbench.is_refused(path, "damaged", "header or a table", "the L1 table")
    workbench.converts_to(path, both.guest_bytes(), salvage=True)


def test_cluster_over_its_own_l2_table_is_corruption_and_salvaged_as_stored(workbench) -> None:
    table = build(ImageSpec(size=MIB, clusters={5: Entry(4096)}))
    assert table.l2_at[0] == 4096
    content = struct.pack(">6Q", 0, 0, 0, 0, 0, 4096).ljust(CLUSTER, b"\0")
    image = build(ImageSpec(size=MIB, clusters={5: Entry(4096, content)}))
    assert image.data[4096:8192] == content
    path = workbench.image(image)
    workbench.is_refused(path, "damaged", "the cluster lies on the header or a table")
    workbench.converts_to(path, image.guest_bytes(), salvage=True)


@pytest.mark.parametrize("where", [8, 16, 40])
def test_l2_table_in_the_header_is_an_error(workbench, where: int) -> None:
    workbench.is_refused(workbench.image(build(spec(l1_patch={1: where}))), "damaged", "L2 table")
