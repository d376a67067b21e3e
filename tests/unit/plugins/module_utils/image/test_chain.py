# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which file a header means, what it is read as, and what is never followed; and headers of qcow2 overlays as bytes."""

import os
import pathlib
from typing import Iterator, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import DamagedImage, QcowError, UnsafeImage, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils._host.files import open_source
from ansible_collections.vmimage.qcow.plugins.module_utils._image.chain import Member, Rules, allowed, follow, locate
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow2_header import BackingEntry, backing_of, rebased
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.seen_images import SeenImages
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Plain

MIB = 1 << 20


def overlay(directory: pathlib.Path, name: str, base: Optional[bytes]) -> bytes:
    backing = None if base is None else Backing(base)
    build(ImageSpec(size=MIB, clusters={5: Plain(b"data")}, backing=backing)).write(directory / name)
    return os.fsencode(directory / name)


def members(path: bytes, **rules: object) -> Iterator[Member]:
    opened = [open_source(path)]
    try:
        for member, fd in follow(path, opened[0], open_source, Rules(**rules)):
            if fd != opened[0]:
                opened.append(fd)
            yield member
    finally:
        for fd in opened:
            os.close(fd)


def formats(path: bytes, **rules: object) -> list:
    return [member.format for member in members(path, **rules)]


@pytest.mark.parametrize(
    ("image", "name", "path"),
    [
        (b"/a/b.qcow", b"base", b"/a/base"),
        (b"/a/b.qcow", b"../c/base", b"/a/../c/base"),
        (b"/a/b.qcow", b"/abs/base", b"/abs/base"),
        (b"b.qcow", b"base", b"base"),
        (b"/a/b.qcow", b"caf\xe9", b"/a/caf\xe9"),
        (b"/a/b.qcow", b"./x:y", b"/a/./x:y"),
        (b"/a/b.qcow", b"dir/x:y", b"/a/dir/x:y"),
    ],
)
def test_names_are_bytes_relative_to_the_image(image: bytes, name: bytes, path: bytes) -> None:
    assert locate(image, name) == path


@pytest.mark.parametrize("name", [b"nbd:host", b'json:{"driver":"file"}', b"x:y", b"file:base", b"https://x/y", b"a\0b", b":"])
def test_what_is_no_file_name_is_unsafe(name: bytes) -> None:
    with pytest.raises(UnsafeImage):
        locate(b"/a/b.qcow", name)


def test_allowed_is_below_a_directory_links_resolved(tmp_path: pathlib.Path) -> None:
    here = os.fsencode(tmp_path / "here")
    (tmp_path / "here").mkdir()
    (tmp_path / "hereafter").mkdir()
    (tmp_path / "here" / "out").symlink_to("../hereafter")
    assert allowed(here + b"/x", (here,))
    assert allowed(here + b"/out/x", (here, os.fsencode(tmp_path / "hereafter")))
    assert not allowed(here + b"/out/x", (here,))
    assert not allowed(here + b"/../hereafter/x", (here,))
    assert not allowed(here, (here,))
    assert allowed(b"/etc/x", (b"/",))


def test_content_decides_and_a_declared_raw_is_never_overruled(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path, "base.img", None)
    path = overlay(tmp_path, "top.qcow", b"base.img")
    assert formats(path) == ["qcow", "qcow"]
    declared = os.path.realpath(os.fsencode(tmp_path / "base.img"))
    with pytest.raises(UnsafeImage) as refusal:
        formats(path, formats={declared: "raw"})
    assert refusal.value.reason == "declared-raw" and "guest" in str(refusal.value)
    with pytest.raises(UnsafeImage) as refusal:
        formats(path, formats={os.path.realpath(path): "raw"})
    assert refusal.value.reason == "declared-raw" and "QCOW version 1" in str(refusal.value)


def test_overlay_that_records_raw_over_a_version_1_image_is_refused(tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    overlay(tmp_path, "base.img", None)
    oracle.run("create", "-f", "qcow2", "-u", "-b", "base.img", "-F", "raw", tmp_path / "middle.qcow2", "1M")
    path = overlay(tmp_path, "top.qcow", b"middle.qcow2")
    with pytest.raises(UnsafeImage) as refusal:
        formats(path)
    assert refusal.value.reason == "declared-raw"


def test_raw_only_where_nothing_speaks_against_it(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"no magic at all".ljust(4096, b"."))
    path = overlay(tmp_path, "top.qcow", b"base.img")
    assert formats(path) == ["qcow", "raw"]
    with pytest.raises(UnsafeImage):
        formats(path, raw_bases=False)
    key = os.path.realpath(os.fsencode(base))
    assert formats(path, raw_bases=False, formats={key: "raw"}) == ["qcow", "raw"]
    with pytest.raises(DamagedImage):
        formats(path, formats={key: "qcow2"})
    base.write_bytes(b"\x1f\x8b\x08".ljust(4096, b"."))
    with pytest.raises(UnsupportedImage):
        formats(path)
    assert formats(path, formats={key: "raw"}) == ["qcow", "raw"]
    base.write_bytes(b"QFI\xfb\0\0\0\x09".ljust(4096, b"."))
    with pytest.raises(QcowError):
        formats(path)


def test_depth_is_limited(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path, "0", None)
    for number in range(1, 5):
        path = overlay(tmp_path, str(number), b"%d" % (number - 1))
    assert len(formats(path)) == 5
    with pytest.raises(UnsafeImage, match="deep"):
        formats(path, depth=4)


def test_what_was_found_before_a_bad_link_is_told(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path, "middle", b"gone")
    found = members(overlay(tmp_path, "top", b"middle"))
    assert next(found).path.endswith(b"top")
    assert next(found).path.endswith(b"middle")
    with pytest.raises(QcowError) as refusal:
        next(found)
    assert refusal.value.reason == "missing-base"


def test_graph_knows_files_not_names(tmp_path: pathlib.Path) -> None:
    base = overlay(tmp_path, "base", None)
    os.link(base, os.fsencode(tmp_path / "second name"))
    (tmp_path / "link").symlink_to("base")
    paths = [
        overlay(tmp_path, "a", b"base"),
        overlay(tmp_path, "b", b"second name"),
        overlay(tmp_path, "c", b"link"),
        overlay(tmp_path, "d", b"gone"),
    ]
    around = SeenImages()
    for path in [*paths, base, paths[0], os.fsencode(tmp_path / "missing")]:
        around.node(path)
    graph = around.graph
    status = os.stat(base)
    assert [node.path for node in graph.dependents((status.st_dev, status.st_ino))] == paths[:3]
    assert len(graph.nodes) == 5


def cluster_of(path: pathlib.Path) -> bytes:
    head = path.read_bytes()[: 1 << 21]
    return head[: 1 << head[23]]


@pytest.mark.parametrize(
    "options", ["compat=0.10", "compat=1.1", "extended_l2=on", "cluster_size=512", "cluster_size=2M,lazy_refcounts=on"]
)
@pytest.mark.parametrize("name", [b"n", b"new base.qcow2", b"caf\xe9", b"x" * 150])
def test_header_says_the_new_base_and_nothing_else_changes(tmp_path: pathlib.Path, options: str, name: bytes) -> None:
    oracle.require_qemu_img()
    path = tmp_path / "over.qcow2"
    oracle.run("create", "-f", "qcow2", "-o", options, "-u", "-b", "old", "-F", "qcow", path, "64M")
    before = cluster_of(path)
    after = rebased(before, BackingEntry(name, "qcow2"))
    assert len(after) == len(before)
    assert backing_of(after) == (name, "qcow2")
    assert rebased(after, backing_of(before)) == before
    with open(path, "r+b") as stream:
        stream.write(after)
    info = oracle.info(path, "qcow2")
    assert info["backing-filename-format"] == "qcow2"
    assert info["virtual-size"] == 64 * MIB


def test_header_with_something_unknown_is_left_alone(tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    path = tmp_path / "over.qcow2"
    oracle.run("create", "-f", "qcow2", "-u", "-b", "old", "-F", "qcow", path, "64M")
    cluster = bytearray(cluster_of(path))
    cluster[5000:5004] = b"what"
    with pytest.raises(UnsupportedImage, match="byte 5000"):
        rebased(bytes(cluster), BackingEntry(b"new", "qcow2"))
    with pytest.raises(UnsupportedImage, match="fit"):
        rebased(cluster_of(path)[: 1 << 16], BackingEntry(b"n" * 1024, "qcow2"))
