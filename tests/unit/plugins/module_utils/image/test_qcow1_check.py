# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The structure check: what it finds in which image, and that it stays small and quick whatever an image claims."""

import json
import os
import random
import struct
import subprocess
import sys
import textwrap
import zlib

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils._image import allocation
from ansible_collections.vmimage.qcow.plugins.module_utils._image.findings import DAMAGED, SOUND, SUSPECT
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1_check import CONTENT, STRUCTURE, check
from ansible_collections.vmimage.qcow.tests.support import genuine
from ansible_collections.vmimage.qcow.tests.support.builder import (
    Backing,
    Entry,
    ImageSpec,
    Packed,
    Plain,
    Shared,
    Xen,
    build,
    compressed_entry,
    deflate,
    header,
    smallest,
)
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

CLUSTER = 4096
TABLE = 2 << 20  # guest bytes of one table with the default shape
NOISE = random.Random(4).randbytes(CLUSTER)
TEXT = b"all work and no play makes a dull disk; " * 103
# One whose stream holds nothing but the end-of-block code in its last byte.
ENDLESS = next(
    text
    for text in (bytes([number]) + NOISE[: 100 + number] * 40 for number in range(99))
    if len(zlib.decompressobj(-15).decompress(deflate(text[:CLUSTER])[:-1])) == CLUSTER
)
FULL = {number: Plain(NOISE) for number in range(16)}


@pytest.fixture
def checked(tmp_path):
    def run(image, level=STRUCTURE):
        path = tmp_path / "image.qcow"
        if isinstance(image, ImageSpec):
            build(image).write(path)
        elif isinstance(image, bytes):
            path.write_bytes(image)
        else:
            path = image
        fd = os.open(path, os.O_RDONLY)
        try:
            report = check(fd, os.fsencode(path), level)
        finally:
            os.close(fd)
        json.dumps(report.as_dict())
        return report

    return run


def spec(clusters=None, **more):
    return ImageSpec(size=more.pop("size", 8 << 20), clusters=FULL if clusters is None else clusters, **more)


def kinds(report):
    return {finding.kind for finding in report.findings}


# ---- sound images ----------------------------------------------------------------------------------------------------------------

SOUND_IMAGES = {
    "dense": spec(),
    "empty": spec({}),
    "overlay": spec({3: Plain(b"x")}, cluster_bits=9, l2_bits=12, backing=Backing(b"base.img")),
    "shuffled": spec(order="shuffled"),
    "compressed": spec({number: Packed(TEXT) for number in range(9)}),
    "packed": spec({number: Packed(TEXT) for number in range(9)}, layout="qemu-0.9"),
    "mixed": spec({0: Plain(NOISE), 1: Packed(TEXT), 2: Plain(NOISE), 3: Packed(TEXT), 513: Plain(NOISE)}),
    "mkimg": spec(layout="mkimg"),
    "virtualbox": spec(layout="virtualbox", backing=Backing(b"/vm/parent.qcow", tail=b"old.qcow")),
    "odd size": spec({0: Plain(NOISE), 1: Plain(NOISE)}, size=5000),
    "odd size, last cluster compressed": spec({0: Plain(NOISE), 1: Packed(TEXT)}, size=5000),
    "encrypted": spec(password=b"geheim"),
    "unaligned tables": spec(l2_skew=13),
    "unaligned L1": spec(l1_at=4099),
    "trailing garbage": spec({0: Packed(TEXT, trailing=b"garbage")}),
    "wide window": spec({0: Packed(NOISE * 3 + NOISE, wbits=-15)}, cluster_bits=16),
    "offset without length": spec(fields={"backing_offset": 48}),
    "length without offset": spec(fields={"backing_length": 9}),
    "mtime, padding": spec(fields={"mtime": 77, "padding": 0xFFFF}),
}


@pytest.mark.parametrize("level", [STRUCTURE, CONTENT])
@pytest.mark.parametrize("name", SOUND_IMAGES)
def test_sound(checked, name, level):
    report = checked(SOUND_IMAGES[name], level)
    assert (report.verdict, report.findings, report.orphan_bytes) == (SOUND, [], 0)
    built = build(SOUND_IMAGES[name])
    packed = sum(entry >> 63 for entry in built.entries.values())
    assert (report.allocated_clusters, report.compressed_clusters) == (len(built.entries) - packed, packed)
    assert report.unallocated_clusters == SOUND_IMAGES[name].cluster_count - len(built.entries)


PLAIN = [name for name, image in SOUND_IMAGES.items() if not image.backing and not image.password and not image.size % 512]


@pytest.mark.parametrize("name", PLAIN)
def test_qemu_img_maps_what_is_counted(checked, tmp_path, name):
    qemu_img = require_tool("qemu-img")
    report = checked(SOUND_IMAGES[name])
    command = [qemu_img, "map", "--output", "json", "-f", "qcow", tmp_path / "image.qcow"]
    mapped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    present = sum(part["length"] for part in mapped if part["data"])
    assert present == (report.allocated_clusters + report.compressed_clusters) * report.cluster_size


@pytest.mark.parametrize("xen", [Xen(), Xen(little_endian=True), Xen(size=12)], ids=["big", "little", "short"])
@pytest.mark.parametrize("preallocate", [False, True])
def test_xen_images_are_sound_and_named(checked, xen, preallocate):
    report = checked(spec(xen=xen, preallocate=preallocate))
    assert (report.verdict, kinds(report)) == (SOUND, {"xen"})
    assert report.l1_byteorder == ("little" if xen.little_endian else "big")
    assert report.allocated_clusters == (512 if preallocate else 16)


def test_a_stale_xen_checksum_is_a_note(checked):
    report = checked(spec(xen=Xen(checksum=b"\1\2\3\4")))
    assert (report.verdict, kinds(report)) == (SOUND, {"xen", "xen-checksum"})


@pytest.mark.parametrize("cluster_bits", range(9, 17))
@pytest.mark.parametrize("l2_bits", range(6, 14))
def test_every_geometry(checked, cluster_bits, l2_bits):
    size = 3 << (cluster_bits + 6)
    clusters = {0: Plain(b"a"), 1: Packed(b"b" * 100), 63: Plain(b"c"), 64: Plain(b"d"), 191: Packed(b"e")}
    report = checked(ImageSpec(size=size, cluster_bits=cluster_bits, l2_bits=l2_bits, clusters=clusters), CONTENT)
    assert (report.verdict, report.findings) == (SOUND, [])
    assert (report.allocated_clusters, report.compressed_clusters) == (3, 2)


@pytest.mark.parametrize("size", [513, TABLE, 100 << 20])
def test_smallest_images(checked, size):
    report = checked(smallest(size))
    assert (report.verdict, report.findings, report.allocated_clusters) == (SOUND, [], 0)


@pytest.mark.parametrize("name", genuine.NAMES)
def test_genuine_images_are_sound(checked, tmp_path, name):
    report = checked(genuine.unpack(name, tmp_path).path, CONTENT)
    assert (report.verdict, report.findings, report.orphan_bytes) == (SOUND, [], 0)
    assert report.allocated_clusters


# ---- the table of edge cases -----------------------------------------------------------------------------------------------------

END = build(spec()).length
DATA_AT = build(spec()).places[0][0]
TABLE_AT = build(spec()).l2_at[0]

# name: (image, level, verdict, kind, severity, clusters or other items found, None: not asserted)
CASES = {
    "cut header": (header(1 << 20)[:20], STRUCTURE, DAMAGED, "header", "error", 1),
    "size 0": (header(0) + bytes(8), STRUCTURE, DAMAGED, "header", "error", 1),
    "size 2**63": (header(1 << 63) + bytes(8), STRUCTURE, DAMAGED, "header", "error", 1),
    "cluster_bits 8": (header(1 << 20, cluster_bits=8) + bytes(8), STRUCTURE, DAMAGED, "header", "error", 1),
    "l2_bits 14": (header(1 << 20, l2_bits=14) + bytes(8), STRUCTURE, DAMAGED, "header", "error", 1),
    "L1 past the end": (spec(fields={"l1_offset": 1 << 62}), STRUCTURE, DAMAGED, "header", "error", 1),
    "L1 in the header": (spec(fields={"l1_offset": 16}), STRUCTURE, DAMAGED, "header", "error", 1),
    "L2 past the end": (spec(l1_patch={1: 1 << 30}), STRUCTURE, DAMAGED, "table-outside-file", "error", 512),
    "L2 cut": (spec(l1_patch={0: END - 2048}), STRUCTURE, DAMAGED, "table-cut-off", "error", 256),
    "L1 entry bit 62": (spec(l1_patch={0: 1 << 62 | TABLE_AT}), STRUCTURE, DAMAGED, "table-outside-file", "error", 512),
    "L1 entry bit 63": (spec(l1_patch={0: 1 << 63 | TABLE_AT}), STRUCTURE, DAMAGED, "table-outside-file", "error", 512),
    "clusters past the end": (spec(cut_to=END - 5 * CLUSTER), STRUCTURE, DAMAGED, "outside-file", "error", 5),
    "last cluster cut": (spec(cut_to=END - 100), STRUCTURE, DAMAGED, "cut-off", "error", 1),
    "data at an odd byte": (spec({0: Plain(NOISE, skew=1)}), STRUCTURE, DAMAGED, "misaligned", "error", 1),
    "entry 1": (spec({0: Entry(1)}), STRUCTURE, DAMAGED, "misaligned", "error", 1),
    "entry or 1": (spec(l2_patch={2: DATA_AT | 1}), STRUCTURE, DAMAGED, "misaligned", "error", 1),
    "shared cluster": (spec({**FULL, 20: Shared(3)}), STRUCTURE, SUSPECT, "cross-linked", "warning", 2),
    "overlapping clusters": (spec(l2_patch={15: DATA_AT + 512}), STRUCTURE, SUSPECT, "cross-linked", "warning", 2),
    "shared L2": (spec(share_l2={1: 0}), STRUCTURE, SUSPECT, "cross-linked", "warning", 2),
    "overlapping streams": (spec({0: Packed(TEXT), 1: Packed(TEXT, at=DATA_AT + 8)}), STRUCTURE, SUSPECT, "cross-linked", "warning", 2),
    "stream in a cluster": (
        spec({**FULL, 20: Entry(compressed_entry(12, DATA_AT + 77, 30))}),
        STRUCTURE,
        SUSPECT,
        "cross-linked",
        "warning",
        2,
    ),
    "cluster on the L1": (spec(l1_at=512, l2_patch={15: 512}), STRUCTURE, DAMAGED, "metadata-overlap", "error", None),
    "cluster on its table": (spec(l2_patch={15: TABLE_AT}), STRUCTURE, DAMAGED, "metadata-overlap", "error", 2),
    "table on the header": (spec(l1_patch={0: 48}, size=TABLE), STRUCTURE, DAMAGED, "metadata-overlap", "error", None),
    "table on a table": (spec(l1_patch={1: TABLE_AT + 8}), STRUCTURE, DAMAGED, "metadata-overlap", "error", None),
    "stream on a table": (
        spec({0: Plain(NOISE), 1: Entry(compressed_entry(12, TABLE_AT + 9, 70))}),
        STRUCTURE,
        DAMAGED,
        "metadata-overlap",
        "error",
        2,
    ),
    "name on the L1": (spec(fields={"backing_offset": 60, "backing_length": 20}), STRUCTURE, DAMAGED, "metadata-overlap", "error", None),
    "stream past the end": (spec({0: Entry(compressed_entry(12, 1 << 40, 80))}), STRUCTURE, DAMAGED, "outside-file", "error", 1),
    "stream of 0 bytes": (spec({0: Packed(TEXT, declared=0)}), STRUCTURE, DAMAGED, "bad-stream", "error", 1),
    "stream cut short": (spec({0: Packed(NOISE[:2000], short=20)}), CONTENT, DAMAGED, "bad-stream", "error", 1),
    "stream that yields too little": (spec({0: Packed(stream=deflate(b"short"))}), CONTENT, DAMAGED, "bad-stream", "error", 1),
    "stream with a zlib header": (spec({0: Packed(TEXT, wbits=12)}), CONTENT, DAMAGED, "bad-stream", "error", 1),
    "a bad stream among many": (
        spec({n: Packed(TEXT, short=30 if n in (4, 5) else 0) for n in range(9)}),
        CONTENT,
        DAMAGED,
        "bad-stream",
        "error",
        2,
    ),
    "stream lacks its end": (spec({0: Packed(ENDLESS, short=1)}), CONTENT, SOUND, "stream-oddity", "note", 1),
    "stream too long": (spec({0: Packed(stream=deflate(TEXT * 3))}), CONTENT, SOUND, "stream-oddity", "note", 1),
    "compressed and encrypted": (
        spec({0: Plain(NOISE), 1: Packed(TEXT)}, password=b"x"),
        STRUCTURE,
        SUSPECT,
        "compressed-in-encrypted",
        "warning",
        1,
    ),
    "name past the end": (spec(fields={"backing_offset": 1 << 40, "backing_length": 9}), STRUCTURE, DAMAGED, "backing-name", "error", 1),
    "leak at the end": (spec(append=NOISE * 3), STRUCTURE, SOUND, "orphan", "note", 3),
    "leak inside": (spec(l2_patch={4: 0, 5: 0}), STRUCTURE, SOUND, "orphan", "note", 2),
    "empty table": (spec({0: Entry(0)}), STRUCTURE, SOUND, "empty-table", "note", 1),
    "L1 lost": (spec(l1_patch={0: 0}), STRUCTURE, SUSPECT, "lost-tables", "warning", 1),
    "unflagged compression of 2008": (
        spec({n: Plain(deflate(TEXT[:CLUSTER])) for n in range(4)}),
        STRUCTURE,
        SUSPECT,
        "unflagged-compression",
        "warning",
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(checked, name):
    image, level, verdict, kind, severity, items = CASES[name]
    report = checked(image, level)
    found = [finding for finding in report.findings if finding.kind == kind]
    assert found, report.findings
    assert report.verdict == verdict
    assert {finding.severity for finding in found} == {severity}
    assert items is None or report.found[kind]["items"] == items
    assert report.findings[0].severity == ("error" if verdict == DAMAGED else "warning" if verdict == SUSPECT else "note")


STRUCTURE_ONLY = [name for name, case in CASES.items() if case[1] == CONTENT and case[2] == DAMAGED]


@pytest.mark.parametrize("name", STRUCTURE_ONLY)
def test_bad_streams_are_not_looked_for_at_level_structure(checked, name):
    assert checked(CASES[name][0], STRUCTURE).verdict == SOUND


def test_unknown_encryption_is_not_ours(checked):
    with pytest.raises(UnsupportedImage):
        checked(spec(fields={"crypt": 2}))


def test_other_versions_are_not_ours(checked):
    with pytest.raises(UnsupportedImage):
        checked(header(1 << 20, version=2) + bytes(64))


def test_a_cut_behind_the_disk_is_harmless(checked):
    image = spec({0: Plain(NOISE), 1: Plain(NOISE)}, size=5000)
    assert checked(ImageSpec(size=5000, clusters=image.clusters, cut_to=build(image).length - 3000)).verdict == SOUND


def test_clusters_aligned_to_512_only_are_counted(checked):
    report = checked(spec({0: Plain(NOISE, skew=512), 1: Plain(NOISE, skew=1024)}))
    assert (report.verdict, report.unaligned_clusters, report.allocated_clusters) == (SOUND, 2, 2)


def test_ranges_are_merged_and_say_where(checked):
    report = checked(spec(cut_to=END - 5 * CLUSTER))
    (finding,) = [finding for finding in report.findings if finding.severity == "error"]
    assert (finding.start, finding.length, finding.offset) == (11 * CLUSTER, 5 * CLUSTER, END - 5 * CLUSTER)
    assert "outside the file" in finding.text
    assert report.lost_clusters == 5


def test_both_owners_of_a_shared_cluster_are_named(checked):
    report = checked(spec({**FULL, 20: Shared(3)}))
    assert {(finding.start, finding.length, finding.offset) for finding in report.findings} == {
        (3 * CLUSTER, CLUSTER, DATA_AT + 3 * CLUSTER),
        (20 * CLUSTER, CLUSTER, DATA_AT + 3 * CLUSTER),
    }


def test_findings_are_bounded_and_counted(checked):
    damaged = {number: Entry(1 << 40 if number % 2 else 0) for number in range(2048)}
    report = checked(spec(damaged))
    assert report.found["outside-file"] == {"ranges": 1024, "items": 1024, "bytes": 1024 * CLUSTER}
    assert len(report.findings) == 64


def test_a_hole_where_a_table_should_be(checked, tmp_path):
    path = tmp_path / "holed.qcow"
    built = build(spec({**FULL, 600: Plain(NOISE)}))
    built.write(path, sparse=True)
    punch = [require_tool("fallocate"), "--punch-hole", "-o", str(built.l2_at[0]), "-l", "4096", path]
    require(subprocess.run(punch, check=False, capture_output=True).returncode == 0, "needs a filesystem that can punch holes")
    report = checked(path)
    assert report.verdict == SUSPECT
    assert "hole" in kinds(report)
    assert report.orphan_bytes == 16 * CLUSTER


def test_virtualbox_damage_is_recognised(checked):
    clusters = {number: Plain(NOISE) for number in range(20)}
    built = build(spec(clusters, layout="qemu-0.9"))
    assert built.l2_at[0] == 4096
    # Opened read-write, VirtualBox rewrites the L1 table rounded up to a cluster: bytes 48 to 4143.
    report = checked(spec(clusters, layout="qemu-0.9", patches=((48 + 8 * 4, bytes(4096 - 8 * 4)),)))
    (finding,) = [finding for finding in report.findings if finding.kind == "virtualbox-damage"]
    assert (report.verdict, finding.start, finding.length) == (SUSPECT, 0, 6 * CLUSTER)
    assert report.orphan_bytes == 6 * CLUSTER


def test_plain_deflate_data_of_a_guest_is_not_the_bug_of_2008(checked):
    clusters = {0: Plain(deflate(TEXT[:CLUSTER])), **{number: Plain(NOISE) for number in range(1, 9)}, 600: Plain(NOISE)}
    assert checked(spec({n: c for n, c in clusters.items() if n})).verdict == SOUND


@pytest.mark.parametrize("marks", [0, 9, 1 << 20])
@pytest.mark.parametrize("ranges", [40, 1 << 20])
def test_windows_of_the_ledger_find_the_same(checked, monkeypatch, ranges, marks):
    damaged = spec(
        {**{n: Plain(NOISE) for n in range(0, 600, 2)}, 700: Shared(4), 701: Shared(590), **{n: Packed(TEXT) for n in range(1, 40, 2)}},
        order="shuffled",
        layout="qemu-0.9",
        append=NOISE * 2,
        l2_patch={30: 0, 31: 0, 500: 0},
    )
    whole = checked(damaged, CONTENT)
    assert whole.orphan_bytes > 4 * CLUSTER
    monkeypatch.setattr(allocation, "MOST_RANGES", ranges)
    monkeypatch.setattr(allocation, "MOST_MARKS", marks)
    parts = checked(damaged, CONTENT)
    assert parts == whole


# ---- bounds ----------------------------------------------------------------------------------------------------------------------


def write_l1(path, l1_entries, entries, tail=b"", size=None):
    """A sparse image of ``l1_entries`` L1 entries; ``entries``: (first index, bytes) pairs; ``tail`` follows the L1 table."""
    with open(path, "wb") as image:
        image.write(header(l1_entries * TABLE, l1_offset=4096))
        for index, raw in entries:
            image.seek(4096 + 8 * index)
            image.write(raw)
        image.truncate(4096 + 8 * l1_entries)
        image.seek(4096 + 8 * l1_entries)
        image.write(tail)


def table_of(offset):
    return struct.pack(">512Q", *(offset + 4096 * number for number in range(512)))


def huge_sparse_l1(path):
    write_l1(path, 1 << 28, [])


def huge_l1_few_tables(path):
    end = 4096 + (8 << 28)
    at = struct.pack(">Q", end)
    write_l1(
        path,
        1 << 28,
        [(7, at), ((1 << 28) - 1, struct.pack(">Q", end + 8192))],
        struct.pack(">Q", end + 4096).ljust(8192, b"\0") + bytes(4096),
    )


def one_table_for_all(path):
    end = 4096 + (8 << 20)
    write_l1(path, 1 << 20, [(0, struct.pack(">Q", end) * (1 << 20))], table_of(end + 4096)[:4096] + bytes(512 * 4096))


def one_table_for_many(path):
    end = 4096 + 8 * 4032
    write_l1(path, 4032, [(0, struct.pack(">Q", end) * 4032)], table_of(end + 4096) + bytes(512 * 4096))


def one_table_of_streams(path):
    end = 4096 + 8 * 4032
    entries = struct.pack(">512Q", *[compressed_entry(12, end + 4096, 60)] * 512)
    write_l1(path, 4032, [(0, struct.pack(">Q", end) * 4032)], entries + deflate(bytes(4096)).ljust(4096, b"\0"))


def one_empty_table_for_all(path):
    end = 4096 + (8 << 20)
    write_l1(path, 1 << 20, [(0, struct.pack(">Q", end) * (1 << 20))], bytes(4096))


def one_cluster_for_all(path):
    end = 4096 + 8 * 64
    tables = struct.pack(">Q", 65536 << 3) * (512 * 64)
    write_l1(path, 64, [(0, struct.pack(">64Q", *(end + 4096 * number for number in range(64))))], tables.ljust((65536 << 3) + 4096, b"\0"))


def tables_at_every_byte(path):
    end = 4096 + 8 * 4032
    write_l1(path, 4032, [(0, struct.pack(">4032Q", *range(end, end + 4032)))], random.Random(1).randbytes(8192))


def half_a_petabyte(path):
    path.write_bytes(header(500 << 40) + bytes(8))


def tebibyte_of_small_clusters(path):
    with open(path, "wb") as image:
        image.write(header(1 << 40, cluster_bits=9, l2_bits=12))
        image.write(bytes(8 << 19))


BOUNDED = {
    half_a_petabyte: (DAMAGED, "header"),
    huge_sparse_l1: (SOUND, None),
    huge_l1_few_tables: (SOUND, "empty-table"),
    one_table_for_all: (DAMAGED, "amplified"),
    one_table_for_many: (DAMAGED, "amplified"),
    one_table_of_streams: (DAMAGED, "amplified"),
    one_empty_table_for_all: (DAMAGED, "amplified"),
    one_cluster_for_all: (DAMAGED, "amplified"),
    tables_at_every_byte: (DAMAGED, "metadata-overlap"),
    tebibyte_of_small_clusters: (SOUND, None),
}

PROBE = textwrap.dedent(
    """
    import json, os, resource, sys
    from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1_check import check
    from ansible_collections.vmimage.qcow.tests.support.memory import forget_peak, peak
    held = forget_peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = check(os.open(sys.argv[1], os.O_RDONLY), b"image", "content")
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kinds = sorted({finding.kind for finding in report.findings})
    print(json.dumps([report.verdict, kinds, cpu, peak() - held]))
    """
)


def probe(path):
    """Verdict, kinds, CPU seconds and bytes of memory of a check in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": sys.path[0]}
    )
    return json.loads(done.stdout)


def tables_only(path, clusters, order):
    """An image of scattered clusters without their data: one hole behind the tables."""
    tables = -(-clusters // 512)
    end = 4096 + 8 * tables + -8 * tables % 4096
    data_at = end + 4096 * tables
    with open(path, "wb") as image:
        image.write(header(clusters * 4096, l1_offset=4096).ljust(4096, b"\0"))
        image.write(struct.pack(">%dQ" % tables, *range(end, data_at, 4096)))
        image.seek(end)
        image.write(struct.pack(">%dQ" % clusters, *(data_at + 4096 * place for place in order)))
        image.truncate(data_at + 4096 * clusters)


@pytest.mark.parametrize("shuffled", [False, True], ids=["dense", "shuffled"])
def test_two_gibibytes_are_checked_in_no_time(tmp_path, monkeypatch, shuffled):
    order = list(range(1 << 19))
    if shuffled:
        random.Random(3).shuffle(order)
    tables_only(tmp_path / "large.qcow", 1 << 19, order)
    monkeypatch.syspath_prepend(str(genuine.ROOT / "build"))
    verdict, found, cpu, memory = probe(tmp_path / "large.qcow")
    assert (verdict, found) == (SOUND, [])
    assert cpu < (4 if shuffled else 1)  # a bound for busy machines: 0.8 s and 0.1 s are usual
    assert memory < 64 << 20


def test_more_scattered_clusters_than_the_ledger_has_room_for(tmp_path, checked, monkeypatch):
    order = list(range(1 << 17))
    random.Random(3).shuffle(order)
    order[77] = order[99]
    tables_only(tmp_path / "large.qcow", 1 << 17, order)
    monkeypatch.setattr(allocation, "MOST_MARKS", 1 << 14)
    monkeypatch.setattr(allocation, "MOST_RANGES", 1 << 15)
    report = checked(tmp_path / "large.qcow")
    assert report.verdict == SUSPECT
    assert report.found["cross-linked"]["items"] == 2
    assert report.orphan_bytes == CLUSTER


@pytest.mark.parametrize("make", BOUNDED, ids=lambda make: make.__name__)
def test_bounds(tmp_path, monkeypatch, make):
    path = tmp_path / "hostile.qcow"
    make(path)
    monkeypatch.syspath_prepend(str(genuine.ROOT / "build"))
    verdict, found, cpu, memory = probe(path)
    expected, kind = BOUNDED[make]
    assert verdict == expected, found
    assert kind is None or kind in found
    assert cpu < 1, "%s: %.2f s of CPU" % (make.__name__, cpu)
    assert memory < 64 << 20, "%s: %d bytes" % (make.__name__, memory)
