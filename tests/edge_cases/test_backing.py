# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: backing files, and formats that somebody declares."""

import os
import time

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, BuiltImage, ImageSpec, Plain, build

MIB = 1 << 20
FLAT = {"chains": "flatten"}


def overlay(name: bytes, size: int = MIB, **more) -> BuiltImage:
    """A small overlay of 512-byte clusters over ``name``."""
    return build(ImageSpec(size=size, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"overlay")}, backing=Backing(name, **more)))


def base(size: int = MIB) -> BuiltImage:
    """A base with data at its beginning and at its end."""
    return build(ImageSpec(size=size, clusters={0: Plain(b"base" * 1024), (size - 1) // 4096: Plain(b"end" * 1300)}))


def test_base_of_version_1(workbench) -> None:
    workbench.image(base(), "base.qcow")
    top = overlay(b"base.qcow")
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


def test_raw_base(workbench) -> None:
    workbench.file(b"raw base ".ljust(512, b".") * 2048, "base.img")
    top = overlay(b"base.img")
    workbench.converts_to(workbench.image(top), top.guest_bytes(b"raw base ".ljust(512, b".") * 2048), **FLAT)


def test_qcow2_base(workbench) -> None:
    oracle.require_qemu_img()
    disk = workbench.file(base().guest_bytes(), "source")
    oracle.run("convert", "-f", "raw", "-O", "qcow2", "-c", disk, workbench.directory / "base.qcow2")
    disk.unlink()
    top = overlay(b"base.qcow2")
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


@pytest.mark.parametrize("chains", ["flatten", "preserve"])
def test_missing_base_is_refused(workbench, chains: str) -> None:
    workbench.is_refused(workbench.image(overlay(b"gone.qcow")), "missing-base", "gone.qcow", chains=chains)


def test_directory_as_base_is_refused(workbench) -> None:
    (workbench.directory / "folder").mkdir()
    workbench.is_refused(workbench.image(overlay(b"folder"), "folder.qcow"), None, "folder", **FLAT)


@pytest.mark.parametrize("device", [b"/dev/zero", b"/dev/null", b"/proc/self/mem", b"/proc/kcore", b"/sys/power/state"])
def test_device_or_kernel_file_as_base_is_refused(workbench, device: bytes) -> None:
    workbench.is_refused(workbench.image(overlay(device)), "unsafe", os.fsdecode(device), **FLAT)


@pytest.mark.parametrize(("lower", "upper"), [(MIB // 2, MIB), (2 * MIB, MIB), (512, MIB), (MIB - 512, MIB)])
def test_base_of_another_size(workbench, lower: int, upper: int) -> None:
    workbench.image(base(lower), "base.qcow")
    top = overlay(b"base.qcow", upper)
    workbench.converts_to(workbench.image(top), top.guest_bytes(base(lower).guest_bytes()), **FLAT)


def test_smaller_layer_in_the_middle_hides_what_lies_below_its_end(workbench) -> None:
    workbench.image(base(MIB), "base.qcow")
    middle, top = overlay(b"base.qcow", MIB // 2), overlay(b"middle.qcow", MIB)
    workbench.image(middle, "middle.qcow")
    disk = top.guest_bytes(middle.guest_bytes(base(MIB).guest_bytes()))
    assert not any(disk[MIB // 2 :])
    workbench.converts_to(workbench.image(top), disk, **FLAT)


@pytest.mark.parametrize("last", [False, True])
def test_layout_of_an_odd_overlay_over_a_larger_base(workbench, last: bool) -> None:
    """The rest of the last sector is zeros in the result; the base, which is larger, shows something else there."""
    workbench.file(b"\xee" * MIB, "base.img")
    size = MIB // 2 + 100
    clusters = {5: Plain(b"overlay"), **({size // 512: Plain(b"end" * 50)} if last else {})}
    top = build(ImageSpec(size=size, cluster_bits=9, l2_bits=12, clusters=clusters, backing=Backing(b"base.img")))
    result = workbench.convert(workbench.image(top), layout="keep")
    assert ("layout cannot be kept" in result["msg"]) != last
    disk = oracle.guest_bytes(oracle.Node(result["dest"], "qcow2"), oracle.Node(workbench.directory / "base.img", "raw"))
    assert disk == top.guest_bytes(b"\xee" * MIB)


@pytest.mark.parametrize("chains", ["flatten", "preserve"])
def test_base_that_ends_inside_a_sector_is_seen_to_its_end(workbench, chains: str) -> None:
    """QEMU shows zeros in that sector, from the last whole one on. What is kept is what the base holds, as in the base's own result."""
    lower, top = base(MIB // 2 + 100), overlay(b"base.qcow", MIB)
    workbench.image(lower, "base.qcow")
    path = workbench.image(top)
    disk = top.guest_bytes(lower.guest_bytes()[: lower.spec.size])
    assert any(disk[MIB // 2 : MIB // 2 + 100]) and not any(disk[MIB // 2 + 100 :])
    if chains == "flatten":
        told = workbench.converts_to(path, disk, **FLAT)["msg"]
    else:
        below = workbench.convert(workbench.directory / "base.qcow")
        told = workbench.convert(path, chains="preserve")
        assert oracle.guest_bytes(oracle.Node(told["dest"], "qcow2"), oracle.Node(below["dest"], "qcow2")) == disk
        told = told["msg"]
    assert "the last 100 bytes of the base" in told and "which QEMU does not show" in told


@pytest.mark.parametrize("length", [1, 2, 3])
def test_backing_loop_is_noticed_at_once(workbench, length: int) -> None:
    for number in range(length):
        workbench.image(overlay(b"disk%d.qcow" % ((number + 1) % length)), "disk%d.qcow" % number)
    started = time.monotonic()
    workbench.is_refused(workbench.directory / "disk0.qcow", "unsafe", "loop", **FLAT)
    assert time.monotonic() - started < 20  # or for ever


def test_backing_loop_through_hard_link_and_symbolic_link(workbench) -> None:
    path = workbench.image(overlay(b"other.qcow"))
    os.link(path, workbench.directory / "hard.qcow")
    (workbench.directory / "other.qcow").symlink_to("hard.qcow")
    workbench.is_refused(path, "unsafe", "loop", **FLAT)


def test_backing_chain_of_100(workbench) -> None:
    disk = base().guest_bytes()
    workbench.image(base(), "layer0.qcow")
    for number in range(1, 100):
        layer = build(
            ImageSpec(
                size=MIB,
                cluster_bits=9,
                l2_bits=12,
                clusters={20 * number: Plain(b"%d" % number * 100)},
                backing=Backing(b"layer%d.qcow" % (number - 1)),
            )
        )
        workbench.image(layer, "layer%d.qcow" % number)
        disk = layer.guest_bytes(disk)
    workbench.converts_to(workbench.directory / "layer99.qcow", disk, **FLAT)


@pytest.mark.parametrize("name", [b"caf\xe9 \xff.qcow", b"new\nline", "größe".encode(), b"a" * 255, b"  spaces  ", b"-f"])
def test_backing_name_is_taken_byte_by_byte(workbench, name: bytes) -> None:
    base().write(os.path.join(os.fsencode(workbench.directory), name))
    top = overlay(name)
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


def test_backing_name_of_1023_bytes(workbench) -> None:
    workbench.image(base(), "base.qcow")
    name = b"./" * 507 + b"base.qcow"
    assert len(name) == 1023
    top = overlay(name)
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


@pytest.mark.parametrize("tail", [b"\0", b"\0tail of an older name", b"\0" * 30])
def test_backing_name_ends_at_the_first_nul(workbench, tail: bytes) -> None:
    workbench.image(base(), "base.qcow")
    top = overlay(b"base.qcow", tail=tail)
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


@pytest.mark.parametrize("length", [1024, 1 << 20, (1 << 32) - 1])
def test_backing_name_of_more_than_1023_bytes_is_refused(workbench, length: int) -> None:
    workbench.is_refused(workbench.image(overlay(b"base", length=length)), "damaged", "1023", str(length))


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, (1 << 64) - 1])
def test_backing_name_past_the_end_of_the_file_is_an_error(workbench, offset: int) -> None:
    image = build(ImageSpec(size=MIB, fields={"backing_offset": offset, "backing_length": 4}))
    workbench.is_refused(workbench.image(image), "damaged", "backing file name")


def test_colon_in_a_backing_name_makes_a_protocol(workbench) -> None:
    workbench.image(base(), "weird:name")
    workbench.is_refused(workbench.image(overlay(b"weird:name")), "unsafe", "weird", **FLAT)
    top = overlay(b"./weird:name")
    workbench.converts_to(workbench.image(top), top.guest_bytes(base().guest_bytes()), **FLAT)


@pytest.mark.parametrize(
    "name",
    [
        b'json:{"driver":"file","filename":"/etc/hostname"}',
        b"nbd:localhost:10809",
        b"fat:/etc",
        b"http://localhost/x",
        b"ssh://root@localhost/x",
        b"file:/etc/hostname",
        b"rbd:pool/image",
        b"host_device:/dev/sda",
    ],
)
def test_protocols_are_refused(workbench, name: bytes) -> None:
    workbench.is_refused(workbench.image(overlay(name)), "unsafe", **FLAT)


@pytest.mark.parametrize("name", [b"/etc/hostname", b"../secret", b"link", b"sub/../../secret"])
def test_files_outside_the_directory_are_refused_unless_allowed(workbench, name: bytes) -> None:
    secret = workbench.directory.parent / "secret"
    secret.write_bytes(b"secret ".ljust(512, b"!") * 10)
    (workbench.directory / "link").symlink_to("../secret")
    (workbench.directory / "sub").mkdir()
    path = workbench.image(overlay(name))
    result = workbench.is_refused(path, "unsafe", "outside", **FLAT)
    assert "secret !" not in str(result)
    if name != b"/etc/hostname":
        disk = overlay(name).guest_bytes(secret.read_bytes())
        workbench.converts_to(path, disk, backing_dirs=(os.fsencode(workbench.directory.parent),), **FLAT)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"backing_offset": 0, "backing_length": 9}, "offset 0"), ({"backing_offset": 48, "backing_length": 0}, "length 0")],
)
def test_half_a_name_is_no_backing_file(workbench, fields: dict, name: str) -> None:
    image = build(ImageSpec(size=MIB, clusters={5: Plain(b"alone")}, fields=fields))
    workbench.converts_to(workbench.image(image), image.guest_bytes())
    assert not workbench.inspect(workbench.directory / "disk.qcow")["backing"], name


def test_relative_name_starts_at_the_directory_of_the_link(workbench) -> None:
    """The overlay in the middle is reached through a link; its base lies beside the link, not beside its target."""
    folder = workbench.directory / "elsewhere"
    folder.mkdir()
    middle, top = overlay(b"base.qcow"), build(ImageSpec(size=MIB, clusters={}, backing=Backing(b"link.qcow")))
    middle.write(folder / "middle.qcow")
    (workbench.directory / "link.qcow").symlink_to("elsewhere/middle.qcow")
    workbench.image(base(), "base.qcow")
    disk = top.guest_bytes(middle.guest_bytes(base().guest_bytes()))
    path = workbench.image(top)
    if "qcow" in oracle.supported_formats():
        oracle.run("convert", "-f", "qcow", "-O", "raw", path, workbench.directory.parent / "theirs")
        assert workbench.read(workbench.directory.parent / "theirs") == disk
    workbench.converts_to(path, disk, **FLAT)


def test_backing_name_in_a_late_cluster(workbench) -> None:
    lower = build(ImageSpec(size=MIB, clusters={0: Plain(b"base")}, layout="virtualbox"))
    top = build(ImageSpec(size=MIB, clusters={5: Plain(b"top")}, layout="virtualbox", backing=Backing(b"base.qcow")))
    workbench.image(lower, "base.qcow")
    workbench.converts_to(workbench.image(top), top.guest_bytes(lower.guest_bytes()), chains="flatten")


def test_stale_tail_of_a_backing_name_is_refused_with_a_hint(workbench) -> None:
    """VirtualBox keeps the old length when it writes a shorter name: the tail of the old one belongs to the name, for everybody."""
    lower = build(ImageSpec(size=MIB, clusters={0: Plain(b"base")}, layout="virtualbox"))
    backing = Backing(b"base.qcow", tail=b"name.qcow")
    top = build(ImageSpec(size=MIB, clusters={5: Plain(b"top")}, layout="virtualbox", backing=backing))
    workbench.image(lower, "base.qcow")
    workbench.is_refused(workbench.image(top), "missing-base", "base.qcowname.qcow", "older, longer", chains="flatten")


def test_image_that_is_declared_raw_is_refused(workbench) -> None:
    path = workbench.image(base(), "disk.img")
    workbench.is_refused(path, "declared-raw", "raw", backing_formats=((os.path.realpath(os.fsencode(path)), "raw"),))
