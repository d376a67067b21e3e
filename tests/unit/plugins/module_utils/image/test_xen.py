# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Xen's blktap images: the byte order of the L1 table is decided by content, on both reading paths."""

import os
import subprocess

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy import copier, writers
from ansible_collections.vmimage.qcow.plugins.module_utils._image import qcow1_header
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import guest_blocks, verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.reader import RawReader
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, BuiltImage, ImageSpec, Plain, Xen, build
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

CONTENT = {0: Plain(b"boot" * 1024), 5: Plain(b"five" * 1024), 700: Plain(b"late" * 1024)}


def image_of(xen_header, clusters=None, **spec) -> BuiltImage:
    return build(ImageSpec(size=8 << 20, clusters=CONTENT if clusters is None else clusters, xen=xen_header, **spec))


@pytest.fixture
def opened(tmp_path):
    descriptors = []

    def opener(built):
        path = tmp_path / ("image%d.qcow" % len(descriptors))
        built.write(path)
        descriptors.append(os.open(path, os.O_RDONLY))
        return Qcow1(descriptors[-1], os.fsencode(path))

    yield opener
    for fd in descriptors:
        os.close(fd)


def guest_of(image, tmp_path) -> bytes:
    target = os.open(tmp_path / "out.raw", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        copier.copy_extents(image.extents(), [image], writers.RawWriter(target, image.virtual_size))
        return os.pread(target, image.virtual_size, 0)
    finally:
        os.close(target)


LIES = [None, 0, 1, 2, 3, 0x02000000, 0x03000000]


@pytest.mark.parametrize("flags", LIES)
@pytest.mark.parametrize("little", [False, True], ids=["big", "little"])
@pytest.mark.parametrize("size", [12, 16])
def test_byte_order_is_told_by_content_whatever_the_flag_says(opened, tmp_path, flags, little, size):
    built = image_of(Xen(size=size, little_endian=little, flags=flags))
    image = opened(built)
    assert image.l1_byteorder == ("little" if little else "big")
    assert image.l1_order.decided
    assert guest_of(image, tmp_path) == built.guest_bytes()


@pytest.mark.parametrize("little", [False, True], ids=["big", "little"])
def test_the_verification_reader_finds_the_order_by_itself(opened, tmp_path, little):
    built = image_of(Xen(little_endian=little))
    image = opened(built)
    reader = Qcow1Reader(image.fd, image.path)
    assert reader.little == (image.l1_byteorder == "little")
    disk = bytearray(len(built.guest_bytes()))
    for index, block in guest_blocks([reader]):
        disk[index << 16 : (index + 1) << 16] = block
    assert bytes(disk) == built.guest_bytes()


def test_an_empty_table_has_no_order(opened, tmp_path):
    built = image_of(Xen(little_endian=True), clusters={})
    image = opened(built)
    assert not image.l1_order.decided
    assert list(image.extents()) == []
    assert not Qcow1Reader(image.fd, image.path).little


def test_a_nonsense_table_is_undecided_and_reported_as_damage(opened):
    built = image_of(Xen(), l1_patch={0: 0x4142434445464748, 1: 0x5152535455565758})
    image = opened(built)
    assert not image.l1_order.decided
    assert image.l1_byteorder == "big"


def test_one_damaged_entry_does_not_turn_the_table_round(opened):
    built = image_of(Xen(little_endian=True), l1_patch={0: 1 << 56})
    assert opened(built).l1_byteorder == "little"


def test_qemu_reads_zeros_from_a_little_endian_image_and_we_do_not(opened, tmp_path):
    qemu_img = require_tool("qemu-img")
    built = image_of(Xen(little_endian=True))
    image = opened(built)
    out = tmp_path / "qemu.raw"
    subprocess.run([qemu_img, "convert", "-f", "qcow", "-O", "raw", image.path, out], check=True)
    assert out.read_bytes() == bytes(8 << 20)
    assert guest_of(image, tmp_path) == built.guest_bytes() != bytes(8 << 20)
    result = os.open(tmp_path / "out.raw", os.O_RDONLY)
    assert verify([Qcow1Reader(image.fd, image.path)], [RawReader(result, b"out.raw")], b"out.raw").startswith("sha256-64k:")
    os.close(result)


@pytest.mark.parametrize(
    ("head", "backing_offset", "l1_offset", "size"),
    [
        (b"\0" * 48 + b"XEN\xfb" + bytes(12), 0, 4096, 16),
        (b"\0" * 48 + b"XEN\xfb" + bytes(12), 64, 4096, 16),
        (b"\0" * 48 + b"XEN\xfb" + bytes(12), 60, 4096, 12),
        (b"\0" * 48 + b"XEN\xfb" + bytes(8), 0, 4096, 12),
        (b"\0" * 48 + b"XEN\xfb" + bytes(12), 0, 64, None),
        (b"\0" * 48 + b"XEN\xfb" + bytes(12), 0, 0, None),
        (b"\0" * 48 + b"XEN\xfa" + bytes(12), 0, 4096, None),
        (b"\0" * 48 + b"XEN\xfb", 0, 4096, None),
        (b"", 0, 4096, None),
    ],
)
def test_extension(head, backing_offset, l1_offset, size):
    extension = qcow1_header.parse_extension(head, backing_offset, l1_offset)
    assert (extension.size if extension else None) == size
    if extension:
        assert (extension.flags is None) == (size == 12)


def test_the_name_behind_a_short_extension_is_not_taken_for_flags(opened):
    image = opened(image_of(Xen(size=12), backing=Backing(b"/base.img")))
    assert image.xen.size == 12
    assert image.xen.flags is None
    assert image.backing_name == b"/base.img"


@pytest.mark.parametrize(("stored", "expected"), [(None, True), (b"\1\2\3\4", False)])
def test_checksum(opened, stored, expected):
    image = opened(image_of(Xen(checksum=stored)))
    assert qcow1_header.checksum_matches(image.fd, image.xen, image.header.l1_offset, image.header.l1_entries) is expected
