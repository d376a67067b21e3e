# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases 37 to 43: backing files."""

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build

MIB = 1 << 20


def overlay(name: bytes, **more) -> ImageSpec:
    """A small overlay of 512-byte clusters over ``name``."""
    return ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"overlay")}, backing=Backing(name, **more))


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"backing_offset": 0, "backing_length": 9}, "offset 0"), ({"backing_offset": 48, "backing_length": 0}, "length 0")],
)
def test_42_half_a_name_is_no_backing_file(workbench, fields: dict, name: str) -> None:
    image = build(ImageSpec(size=MIB, clusters={5: Plain(b"alone")}, fields=fields))
    workbench.converts_to(workbench.image(image), image.guest_bytes())
    assert not workbench.inspect(workbench.directory / "disk.qcow")["backing"], name


@pytest.mark.parametrize("length", [1024, 1 << 20, (1 << 32) - 1])
def test_40_name_of_more_than_1023_bytes_is_refused(workbench, length: int) -> None:
    workbench.is_refused(workbench.image(build(overlay(b"base", length=length))), "damaged", "1023", str(length))


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_40_name_past_the_end_of_the_file_is_an_error(workbench, offset: int) -> None:
    image = build(ImageSpec(size=MIB, fields={"backing_offset": offset, "backing_length": 4}))
    workbench.is_refused(workbench.image(image), "damaged", "backing file name")
