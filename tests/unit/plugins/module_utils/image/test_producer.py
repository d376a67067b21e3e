# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who wrote an image, told by its marks."""

import os
import subprocess

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._image import producer
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.tests.support import genuine
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, Xen, build, header, smallest
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

SIZE = 8 << 20
DATA = {0: Plain(b"x"), 600: Plain(b"y")}
TEXT = {number: Packed(b"text %d " % number * 90) for number in range(5)}


def virtualbox(size, length, tables=()):
    """VirtualBox's layout: the L1 table at 48 takes whole clusters, and what follows begins at the next cluster."""
    content = bytearray(length)
    content[:48] = header(size)
    for index, offset in enumerate(tables):
        content[48 + 8 * index : 56 + 8 * index] = offset.to_bytes(8, "big")
    return bytes(content)


CASES = {
    "qemu": (ImageSpec(size=SIZE, clusters=DATA), producer.QEMU),
    "qemu, empty": (ImageSpec(size=SIZE), producer.QEMU),
    "qemu, compressed": (ImageSpec(size=SIZE, clusters=TEXT), producer.QEMU),
    "qemu, overlay": (ImageSpec(size=SIZE, clusters=DATA, cluster_bits=9, l2_bits=12, backing=Backing(b"/base/of/all.img")), producer.QEMU),
    "qemu 0.9, empty": (smallest(SIZE), producer.QEMU_OLD),
    "qemu 0.9, compressed": (ImageSpec(size=SIZE, clusters=TEXT, layout="qemu-0.9"), producer.QEMU_OLD),
    "qemu 0.8, overlay": (
        ImageSpec(size=SIZE, clusters=DATA, cluster_bits=9, l2_bits=12, backing=Backing(b"/b"), fields={"mtime": 9}),
        producer.QEMU_OLD,
    ),
    "xen": (ImageSpec(size=SIZE, clusters=DATA, xen=Xen()), producer.XEN),
    "xen, little-endian": (ImageSpec(size=SIZE, clusters=DATA, xen=Xen(size=12, little_endian=True)), producer.XEN),
    "xen, empty": (ImageSpec(size=SIZE, xen=Xen(little_endian=True)), producer.XEN),
    "mkimg": (ImageSpec(size=SIZE, clusters=DATA, layout="mkimg"), producer.MKIMG),
    "virtualbox, empty": (virtualbox(SIZE, 8192), producer.VIRTUALBOX),
    "virtualbox": (virtualbox(SIZE, 20480, [8192]), producer.VIRTUALBOX),
    "virtualbox, overlay": (ImageSpec(size=SIZE, clusters=DATA, layout="virtualbox", backing=Backing(b"/b")), producer.VIRTUALBOX),
    "mol": (smallest(SIZE + 77), producer.MOL),
    "L1 anywhere": (ImageSpec(size=SIZE, clusters=DATA, l1_at=8192), producer.UNKNOWN),
    "name anywhere": (ImageSpec(size=SIZE, cluster_bits=9, clusters=DATA, l1_at=512, backing=Backing(b"b", at=99)), producer.UNKNOWN),
    "damaged": (ImageSpec(size=SIZE, clusters=DATA, l1_patch={0: 1 << 60}), producer.QEMU),
}


@pytest.fixture
def guess(tmp_path):
    def run(image):
        path = tmp_path / "image.qcow"
        if isinstance(image, ImageSpec):
            build(image).write(path)
        elif isinstance(image, bytes):
            path.write_bytes(image)
        else:
            path = image
        with open(path, "rb") as stream:
            return producer.likely_producer(Qcow1(stream.fileno(), os.fsencode(path)))

    return run


@pytest.mark.parametrize("name", CASES)
def test_writer(guess, name):
    image, expected = CASES[name]
    found = guess(image)
    assert found.name == expected, found
    assert found.marks


@pytest.mark.parametrize("name", genuine.NAMES)
def test_mkimg_is_known_by_its_own_images(guess, tmp_path, name):
    assert guess(genuine.unpack(name, tmp_path).path).name == producer.MKIMG


@pytest.mark.parametrize("size", ["1M", "5G", "1012M"])
def test_qemu_is_known_by_its_own_images(guess, tmp_path, size):
    qemu_img = require_tool("qemu-img")
    path = tmp_path / "q.qcow"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow", path, size], check=True)
    assert guess(path).name == producer.QEMU
    (tmp_path / "raw").write_bytes(b"boot" * 9000)
    subprocess.run([qemu_img, "convert", "-f", "raw", "-O", "qcow", tmp_path / "raw", path], check=True)
    assert guess(path).name == producer.QEMU
