# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: headers, sizes and shapes."""

import struct

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build, header, smallest
from ansible_collections.vmimage.qcow.tests.support.memory import forget_peak, peak

MIB = 1 << 20


def test_empty_image_of_56_bytes(workbench) -> None:
    for size, length in ((MIB, 56), (8 * MIB, 80)):
        path = workbench.file(smallest(size))
        assert path.stat().st_size == length
        assert workbench.inspect(path)["format"] == "qcow"
        assert workbench.inspect(path)["virtual_size"] == size
        workbench.converts_to(path, bytes(size))


@pytest.mark.parametrize("name", ["disk.qcow2", "disk.img", "disk.raw", "disk", "disk.vmdk", "disk.iso"])
def test_content_counts_and_not_the_name(workbench, name: str) -> None:
    image = build(ImageSpec(size=MIB, clusters={3: Plain(b"three")}))
    path = workbench.image(image, name)
    found = workbench.inspect(path)
    assert (found["format"], found["version"]) == ("qcow", 1)
    workbench.converts_to(path, image.guest_bytes())


@pytest.mark.parametrize("version", [2, 3])
def test_qcow2_is_not_read_with_the_layout_of_version_1(workbench, version: int) -> None:
    oracle.require_qemu_img()
    path = workbench.directory / "disk.qcow"
    oracle.run("create", "-f", "qcow2", "-o", "compat=%s" % {2: "0.10", 3: "1.1"}[version], path, "5M")
    found = workbench.inspect(path)
    assert (found["format"], found["version"], found["virtual_size"]) == ("qcow2", version, 5 * MIB)
    workbench.is_not_migrated(path)


def test_unknown_version_is_not_version_1(workbench) -> None:
    path = workbench.file(header(MIB, version=4) + bytes(464))
    assert workbench.inspect(path)["format"] != "qcow"
    workbench.is_not_migrated(path)


@pytest.mark.parametrize("length", [8, 9, 20, 24, 31, 36, 47])
def test_truncated_header_is_said_to_be_one(workbench, length: int) -> None:
    path = workbench.file(smallest(MIB)[:length])
    assert workbench.inspect(path)["format"] == "qcow"
    workbench.is_refused(path, "damaged", "header", "%d of 48 bytes" % length)


@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_shorter_files_are_not_images(workbench, length: int) -> None:
    path = workbench.file(smallest(MIB)[:length])
    assert workbench.inspect(path)["format"] != "qcow"
    workbench.is_not_migrated(path)


@pytest.mark.parametrize("size", [0, 1])
def test_size_of_0_or_1_is_refused(workbench, size: int) -> None:
    workbench.is_refused(workbench.file(header(size) + bytes(512)), "damaged", "virtual size is %d bytes" % size)


@pytest.mark.parametrize("size", [2, 100, 511])
def test_size_under_a_sector_keeps_its_bytes(workbench, size: int) -> None:
    image = build(ImageSpec(size=size, clusters={0: Plain(b"x" * 4096)}))
    workbench.converts_to(workbench.image(image), b"x" * size + bytes(512 - size))


@pytest.mark.parametrize("size", [513, 1000, 1023, 5000, MIB + 1])
@pytest.mark.parametrize("kind", [Plain, Packed])
def test_size_that_is_no_multiple_of_512_keeps_its_tail(workbench, kind: type, size: int) -> None:
    image = build(ImageSpec(size=size, clusters={(size - 1) // 4096: kind(b"tail" * 1024)}))
    path = workbench.image(image)
    result = workbench.converts_to(path, image.guest_bytes())
    assert len(image.guest_bytes()) == -(-size // 512) * 512
    assert workbench.mentions(result, "rounded up to %d bytes" % len(image.guest_bytes()))


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 512])
def test_impossible_sizes_are_refused_before_anything_is_allocated(workbench, size: int) -> None:
    path = workbench.file(header(size) + bytes(512))
    before = forget_peak()
    workbench.is_refused(path, "damaged")
    assert peak() - before < 64 << 20


def test_l1_table_larger_than_2_gib_is_refused(workbench) -> None:
    workbench.is_refused(workbench.file(header(600 << 40) + bytes(512)), "damaged", "L1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cluster_bits", 8),
        ("cluster_bits", 17),
        ("cluster_bits", 0),
        ("cluster_bits", 255),
        ("l2_bits", 5),
        ("l2_bits", 14),
        ("l2_bits", 0),
        ("l2_bits", 255),
    ],
)
def test_geometry_outside_the_format_is_refused(workbench, field: str, value: int) -> None:
    workbench.is_refused(workbench.file(header(MIB, **{field: value}) + bytes(4096)), "damaged", field, str(value))


@pytest.mark.parametrize("l2_bits", range(6, 14))
@pytest.mark.parametrize("cluster_bits", range(9, 17))
def test_every_geometry(workbench, cluster_bits: int, l2_bits: int) -> None:
    cluster, per_table = 1 << cluster_bits, 1 << l2_bits
    count = min(per_table + 3, (4 << 20) // cluster + 3)
    clusters = {
        index: Plain(b"%d:" % index * (cluster // 8)) if index % 2 else Packed(b"%d words " % index * (cluster // 12))
        for index in sorted({0, 1, 2, count // 2, min(per_table - 1, count - 1), min(per_table, count - 1), count - 1})
    }
    image = build(ImageSpec(size=count * cluster, cluster_bits=cluster_bits, l2_bits=l2_bits, clusters=clusters, order="shuffled"))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


def test_padding_and_mtime_are_ignored(workbench) -> None:
    image = build(ImageSpec(size=MIB, clusters={3: Plain(b"three")}, fields={"padding": 0xFFFF, "mtime": 0xFFFFFFFF}))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize("crypt", [2, 3, 0xFFFFFFFF])
def test_unknown_encryption_is_refused(workbench, crypt: int) -> None:
    workbench.is_refused(workbench.file(header(MIB, crypt=crypt) + bytes(512)), "unsupported", "encryption", str(crypt))


def test_a_header_is_big_endian(workbench) -> None:
    swapped = struct.pack("<4sI", b"QFI\xfb", 1) + smallest(MIB)[8:]
    assert workbench.inspect(workbench.file(swapped))["format"] != "qcow"
