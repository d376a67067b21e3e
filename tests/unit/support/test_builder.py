# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image builder against the programs it imitates: qemu-img reads what it builds and writes the same bytes, so does mkimg."""

import dataclasses
import hashlib
import pathlib
import random
import struct

import hypothesis
import hypothesis.strategies as st
import pytest

from ansible_collections.vmimage.qcow.tests.support import aes, genuine, oracle
from ansible_collections.vmimage.qcow.tests.support.big_image import dense_guest, write_dense
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
from ansible_collections.vmimage.qcow.tests.support.strategies import FAMILIES, PASSWORDS, comparable, layer_name, nodes_of, write_chain

CLUSTER = 4096


def spec_of(disk: bytes, **more) -> ImageSpec:
    """The image a writer makes of ``disk`` when it leaves clusters of zeros out."""
    clusters = {start // CLUSTER: Plain(disk[start : start + CLUSTER]) for start in range(0, len(disk), CLUSTER)}
    return ImageSpec(size=len(disk), clusters={index: cluster for index, cluster in clusters.items() if cluster.data.strip(b"\0")}, **more)


def scattered_disk(size: int, seed: int) -> bytes:
    """A disk with some data here and there, half of it compressible."""
    source = random.Random(seed)
    disk = bytearray(size)
    for number in range(100):
        start = source.randrange(size - 900)
        disk[start : start + 900] = source.randbytes(900) if number % 2 else (b"%d words " % number * 200)[:900]
    return bytes(disk)


def read_back(image, tmp_path: pathlib.Path) -> bytes:
    image.write(tmp_path / "image.qcow")
    return oracle.guest_bytes(oracle.Node(tmp_path / "image.qcow"))


@pytest.mark.parametrize("l2_bits", range(6, 14))
@pytest.mark.parametrize("cluster_bits", range(9, 17))
def test_every_geometry_is_read_by_qemu_img(cluster_bits: int, l2_bits: int, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    cluster, per_table = 1 << cluster_bits, 1 << l2_bits
    source = random.Random(cluster_bits * 100 + l2_bits)
    count = per_table + 3
    clusters = {
        index: source.choice([Plain(source.randbytes(cluster)), Packed(b"%d words " % index * (cluster // 12))])
        for index in (0, 1, 2, per_table // 2, per_table - 1, per_table, count - 1)
    }
    image = build(ImageSpec(size=count * cluster, cluster_bits=cluster_bits, l2_bits=l2_bits, clusters=clusters, order="shuffled"))
    image.write(tmp_path / "image.qcow", sparse=True)
    with open(tmp_path / "disk.raw", "wb") as disk:
        for start, content in image.guest_runs():
            disk.seek(start)
            disk.write(content)
        disk.truncate(image.disk_size)
    assert oracle.identical(oracle.Node(tmp_path / "image.qcow"), oracle.Node(tmp_path / "disk.raw", "raw"))


@pytest.mark.parametrize("family", FAMILIES)
@hypothesis.settings(max_examples=12, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_random_images_hold_what_they_say(family: str, data: st.DataObject, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    chain = data.draw(FAMILIES[family])
    images, disk = write_chain(tmp_path, chain)
    theirs = oracle.guest_bytes(*nodes_of(tmp_path, chain))
    assert comparable(theirs, chain) == comparable(disk, chain)
    if oracle.libqcow_can_read(images[0]):
        assert oracle.libqcow_bytes(tmp_path / layer_name(0), len(disk), chain[0].password) == disk


@pytest.mark.parametrize("compressed", [False, True])
def test_qemu_layout_is_byte_for_byte_what_qemu_img_writes(compressed: bool, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    disk = scattered_disk(5 << 20, 5)
    (tmp_path / "disk.raw").write_bytes(disk)
    oracle.make_v1(tmp_path / "disk.raw", tmp_path / "image.qcow", compressed=compressed)
    spec = spec_of(disk)
    if compressed:
        spec = dataclasses.replace(spec, clusters={index: Packed(cluster.data) for index, cluster in spec.clusters.items()})
    assert build(spec).data == (tmp_path / "image.qcow").read_bytes()


def test_empty_image_and_overlay_are_byte_for_byte_what_qemu_img_creates(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    oracle.run("create", "-f", "qcow", tmp_path / "base.qcow", "3M")
    oracle.run("create", "-f", "qcow", "-b", "base.qcow", "-F", "qcow", tmp_path / "overlay.qcow")
    assert build(ImageSpec(size=3 << 20)).data == (tmp_path / "base.qcow").read_bytes()
    overlay = ImageSpec(size=3 << 20, cluster_bits=9, l2_bits=12, backing=Backing(b"base.qcow"))
    assert build(overlay).data == (tmp_path / "overlay.qcow").read_bytes()


def test_encrypted_image_is_read_by_qemu_img_and_written_alike(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    disk = scattered_disk(1 << 20, 6)
    (tmp_path / "disk.raw").write_bytes(disk)
    (tmp_path / "secret").write_bytes(b"0123456789abcdefXYZ")
    oracle.run(
        "convert",
        "--object",
        "secret,id=s0,file=%s" % (tmp_path / "secret"),
        "-f",
        "raw",
        "-O",
        "qcow",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s0",
        tmp_path / "disk.raw",
        tmp_path / "image.qcow",
    )
    assert build(spec_of(disk, password=b"0123456789abcdef")).data == (tmp_path / "image.qcow").read_bytes()


@pytest.mark.parametrize("name", genuine.NAMES)
def test_mkimg_layout_is_byte_for_byte_the_genuine_image(name: str, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    sample = genuine.unpack(name, tmp_path)
    disk = oracle.guest_bytes(oracle.Node(sample.path))
    assert len(disk) == sample.size
    assert hashlib.sha256(disk).hexdigest() == sample.sha256
    assert build(spec_of(disk, layout="mkimg")).data == sample.path.read_bytes()


def test_header_fields_lie_where_qemu_says() -> None:
    block = header(
        0x1122334455667788,
        version=7,
        backing_offset=0x0102030405060708,
        backing_length=0x090A0B0C,
        mtime=0x0D0E0F10,
        cluster_bits=0x21,
        l2_bits=0x22,
        padding=0x2324,
        crypt=0x25262728,
        l1_offset=0x3132333435363738,
    )
    assert block == (
        b"QFI\xfb\0\0\0\x07\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"
        b"\x11\x22\x33\x44\x55\x66\x77\x88\x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34\x35\x36\x37\x38"
    )


def test_compressed_entry_keeps_size_and_offset_apart() -> None:
    assert compressed_entry(9, 8245, 511) == 1 << 63 | 511 << 54 | 8245
    assert compressed_entry(16, 8245, 1) == 1 << 63 | 1 << 47 | 8245
    with pytest.raises(ValueError, match="no entry can say"):
        compressed_entry(12, 0, 4096)


def test_smallest_image_has_56_bytes(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    (tmp_path / "image.qcow").write_bytes(smallest(512))
    assert len(smallest(512)) == 56
    assert len(smallest(8 << 20)) == 80
    assert oracle.guest_bytes(oracle.Node(tmp_path / "image.qcow")) == bytes(512)


def test_streams_are_packed_without_gaps_in_the_old_layout() -> None:
    clusters = {index: Packed(b"%d" % index * 500) for index in range(4)}
    places = list(build(ImageSpec(size=1 << 20, clusters=clusters, layout="qemu-0.9")).places.values())
    assert [offset + stored for offset, stored in places[:-1]] == [offset for offset, _stored in places[1:]]
    places = list(build(ImageSpec(size=1 << 20, clusters=clusters)).places.values())
    assert all(offset % 512 == 0 for offset, _stored in places)


@pytest.mark.parametrize(
    ("cluster", "readable"),
    [
        (Packed(b"word " * 600, trailing=b"garbage"), True),
        (Packed(b"word " * 600, short=1), True),
        (Packed(b"word " * 600, short=2), False),
        (Packed(b"word " * 600, wbits=15), False),
        (Packed(b"word " * 600, wbits=-15), True),
        (Packed(b"word " * 600, declared=0), False),
        (Packed(b"x" * 4096, stream=deflate(b"x" * 5000)), True),
        (Packed(b"x" * 4000, stream=deflate(b"x" * 4000)), False),
        (Plain(b"word", skew=512), True),
        (Plain(b"word", skew=1), False),
        (Entry(1), False),
    ],
)
def test_qemu_img_reads_or_refuses_odd_clusters(cluster, readable: bool, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    # The cluster behind it gives the short streams more than the end of the file to run into.
    image = build(ImageSpec(size=1 << 20, clusters={0: cluster, 1: Plain(b"behind")}, stream_align=1))
    if readable:
        assert read_back(image, tmp_path) == image.guest_bytes()
    else:
        with pytest.raises(oracle.OracleError):
            read_back(image, tmp_path)


def test_shared_clusters_and_tables_repeat_their_content(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    spec = ImageSpec(size=6 << 20, clusters={1: Plain(b"one"), 7: Shared(1), 9: Packed(b"nine" * 99)}, share_l2={1: 0, 2: 0})
    image = build(spec)
    assert image.entries[7] == image.entries[1]
    assert image.guest_bytes()[(1024 + 9) * CLUSTER :][:8] == b"ninenine"
    assert read_back(image, tmp_path) == image.guest_bytes()


def test_little_endian_xen_image_is_empty_for_qemu_img_until_its_table_is_swapped(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    spec = ImageSpec(size=4 << 20, clusters={3: Plain(b"three"), 600: Plain(b"six hundred")}, xen=Xen(little_endian=True))
    image = build(spec)
    assert read_back(image, tmp_path) == bytes(4 << 20)
    table = struct.unpack("<2Q", image.data[image.l1_at : image.l1_at + 16])
    swapped = build(dataclasses.replace(spec, patches=((image.l1_at, struct.pack(">2Q", *table)),)))
    assert read_back(swapped, tmp_path) == image.guest_bytes()


def test_xen_checksum_is_the_reversed_first_word_of_the_table_hash() -> None:
    image = build(ImageSpec(size=4 << 20, clusters={3: Plain(b"three")}, xen=Xen()))
    digest = hashlib.md5(image.data[image.l1_at : image.l1_at + 16]).digest()
    assert image.data[48:64] == b"XEN\xfb" + bytes(reversed(digest[:4])) + struct.pack(">II", 1, 3)
    assert image.l1_at == 4096
    assert image.l2_at == {0: 8192}


def test_preallocated_extent_follows_its_table(tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    spec = ImageSpec(
        size=1 << 20, clusters={3: Plain(b"three")}, xen=Xen(12, min_cluster_alloc=512), preallocate=True, backing=Backing(b"")
    )
    image = build(dataclasses.replace(spec, backing=None))
    table = image.l2_at[0]
    assert [image.places[index] for index in (0, 1, 511)] == [(table + (1 + index) * CLUSTER, CLUSTER) for index in (0, 1, 511)]
    assert read_back(image, tmp_path) == image.guest_bytes()


def test_backing_name_goes_anywhere() -> None:
    spec = ImageSpec(size=1 << 20, clusters={0: Plain(b"x")}, backing=Backing(b"/a/b\xff", tail=b"old"), layout="virtualbox")
    image = build(spec)
    offset, length = struct.unpack_from(">QI", image.data, 8)
    assert offset % CLUSTER == 0
    assert image.data[offset : offset + length] == b"/a/b\xffold"
    early = build(dataclasses.replace(spec, layout="qemu", xen=Xen(12)))
    assert struct.unpack_from(">QI", early.data, 8) == (60, 8)
    odd = build(dataclasses.replace(spec, backing=Backing(b"name", at=77, length=1000)))
    assert struct.unpack_from(">QI", odd.data, 8) == (77, 1000)


def test_cut_patched_and_grown_files() -> None:
    spec = ImageSpec(size=1 << 20, clusters={0: Plain(b"x" * 4096)}, l1_patch={0: 1 << 62}, fields={"mtime": 5}, patches=((100, b"!"),))
    image = build(spec)
    assert struct.unpack_from(">Q", image.data, image.l1_at) == (1 << 62,)
    assert struct.unpack_from(">I", image.data, 20) == (5,)
    assert image.data[100:101] == b"!"
    assert len(build(dataclasses.replace(spec, cut_to=image.length - 7)).data) == image.length - 7
    assert build(dataclasses.replace(spec, append=b"tail")).data == image.data + b"tail"


def test_sparse_file_takes_no_room_for_a_huge_table(tmp_path: pathlib.Path) -> None:
    image = build(ImageSpec(size=100 << 40, clusters={5: Plain(b"five"), (50 << 40) // CLUSTER: Plain(b"middle")}))
    image.write(tmp_path / "image.qcow", sparse=True)
    assert image.length > 400 << 20
    assert (tmp_path / "image.qcow").stat().st_size == image.length
    assert (tmp_path / "image.qcow").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("options", [{}, {"shuffled": True}, {"compressed": True}])
def test_dense_images_hold_their_guest(options: dict, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    size = (9 << 20) + 3 * CLUSTER
    write_dense(tmp_path / "dense.qcow", size, seed=3, **options)
    guest = b"".join(dense_guest(size, compressed=options.get("compressed", False), seed=3))
    assert oracle.guest_bytes(oracle.Node(tmp_path / "dense.qcow")) == guest


def test_pure_aes_gives_the_published_block() -> None:
    # FIPS 197, appendix B, reached through CBC with a zero vector: sector 0.
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    block = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    stored = aes.encrypt_sectors(key, 0, block.ljust(512, b"\0"), pure=True)
    assert stored[:16] == bytes.fromhex("3925841d02dc09fbdc118597196a0b32")


@hypothesis.settings(max_examples=10)
@hypothesis.given(password=PASSWORDS, sector=st.integers(0, 2**40), seed=st.integers(0, 99))
def test_both_aes_ways_agree(password: bytes, sector: int, seed: int) -> None:
    pytest.importorskip("cryptography")
    data = random.Random(seed).randbytes(512)
    assert aes.encrypt_sectors(password, sector * 512, data) == aes.encrypt_sectors(password, sector * 512, data, pure=True)
