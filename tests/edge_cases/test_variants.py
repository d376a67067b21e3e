# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: images of other writers, and the genuine ones of FreeBSD's mkimg."""

import hashlib
import pathlib
from typing import Optional

import pytest

from ansible_collections.vmimage.qcow.tests.support import genuine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, Xen, build

MIB = 1 << 20


@pytest.mark.parametrize("layout", ["qemu", "qemu-0.9", "mkimg", "virtualbox"])
def test_layouts_of_other_writers(workbench, layout: str) -> None:
    clusters = {3: Plain(b"three"), 4: Plain(b"four"), 600: Packed(b"six " * 999) if layout.startswith("qemu") else Plain(b"six")}
    image = build(ImageSpec(size=4 * MIB, clusters=clusters, layout=layout))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize("size", [12, 16])
def test_big_endian_xen_image(workbench, size: int) -> None:
    image = build(ImageSpec(size=4 * MIB, clusters={3: Plain(b"three"), 600: Plain(b"six")}, xen=Xen(size)))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


def test_preallocated_xen_image(workbench) -> None:
    image = build(ImageSpec(size=MIB, clusters={3: Plain(b"three")}, xen=Xen(12, min_cluster_alloc=512), preallocate=True))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize(
    ("flags", "size"),
    [(None, 16), (1, 16), (3, 16), (0x02000000, 16), (0x03000000, 16), (0, 16), (None, 12)],
    ids=["right", "host order", "says big-endian", "unswapped flag", "unswapped flags", "none", "no flags"],
)
def test_little_endian_xen_image_whatever_its_flag_says(workbench, flags: Optional[int], size: int) -> None:
    clusters = {3: Plain(b"three"), 600: Plain(b"six"), 1100: Plain(b"eleven")}
    image = build(ImageSpec(size=6 * MIB, clusters=clusters, xen=Xen(size, little_endian=True, flags=flags)))
    path = workbench.image(image)
    workbench.converts_to(path, image.guest_bytes())
    if "qcow" in oracle.supported_formats():
        assert oracle.guest_bytes(oracle.Node(path)) == bytes(6 * MIB), "qemu-img reads these as empty"


@pytest.mark.parametrize("flags", [0, 1, 0x02000000])
def test_big_endian_xen_image_whatever_its_flag_says(workbench, flags: int) -> None:
    image = build(ImageSpec(size=6 * MIB, clusters={3: Plain(b"three"), 600: Plain(b"six")}, xen=Xen(flags=flags)))
    workbench.converts_to(workbench.image(image), image.guest_bytes())


@pytest.mark.parametrize("little_endian", [False, True])
def test_empty_table_in_a_xen_image_is_an_empty_disk(workbench, little_endian: bool) -> None:
    image = build(ImageSpec(size=4 * MIB, xen=Xen(little_endian=little_endian)))
    workbench.converts_to(workbench.image(image), bytes(4 * MIB))


@pytest.mark.parametrize("name", genuine.NAMES)
def test_genuine_mkimg_image(workbench, name: str) -> None:
    sample = genuine.unpack(name, workbench.directory)
    result = workbench.convert(sample.path, format="raw")
    disk = pathlib.Path(result["dest"]).read_bytes()
    assert len(disk) == sample.size
    assert hashlib.sha256(disk).hexdigest() == sample.sha256
