# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Safety checks: each one finds what it is for, and sound images pass them all."""

import os
import pathlib

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._image import chain
from ansible_collections.vmimage.qcow.plugins.module_utils._image.chain import classify_backing_name
from ansible_collections.vmimage.qcow.plugins.module_utils._image.safety import inspect
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import REFUSE
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.planner import make_plan
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support import genuine
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, Xen, build, header, smallest

NAMES = {
    b"base.img": chain.RELATIVE,
    b"sub/base.img": chain.RELATIVE,
    b"./weird:name": chain.RELATIVE,
    b"\xff\xfe.img": chain.RELATIVE,
    b"../base.img": chain.RELATIVE,
    b"processed/x": chain.RELATIVE,
    b"/var/lib/libvirt/images/base.img": chain.ABSOLUTE,
    b"/a:b": chain.ABSOLUTE,
    b"/devices/base": chain.ABSOLUTE,
    b"": chain.EMPTY,
    b"\0base": chain.EMPTY,
    b"json:{}": chain.PROTOCOL,
    b"nbd:localhost:10809": chain.PROTOCOL,
    b"nbd+unix:///x?socket=/y": chain.PROTOCOL,
    b"fat:/etc": chain.PROTOCOL,
    b"file:///etc/shadow": chain.PROTOCOL,
    b"https://example.org/x": chain.PROTOCOL,
    b"weird:name": chain.PROTOCOL,
    b":": chain.PROTOCOL,
    b"/dev/sda": chain.DEVICE,
    b"/dev": chain.DEVICE,
    b"//dev//sda": chain.DEVICE,
    b"/x/../dev/sda": chain.DEVICE,
    b"/proc/self/fd/3": chain.KERNEL,
    b"/./proc/kcore": chain.KERNEL,
    b"/sys/x": chain.KERNEL,
}


@pytest.mark.parametrize("name", NAMES)
def test_protocols_devices_and_other_names(name):
    found = classify_backing_name(name)
    assert found.kind == NAMES[name]
    assert found.followable == (found.kind in (chain.RELATIVE, chain.ABSOLUTE))
    assert found.climbs == (b".." in name)
    found.text.encode("utf-8")


def test_a_backing_name_ends_at_the_first_nul():
    found = classify_backing_name(b"new.img\0d.img\0")
    assert (found.name, found.tail, found.kind) == (b"new.img", b"d.img\0", chain.RELATIVE)


def run(image):
    content = build(image).data if isinstance(image, ImageSpec) else image
    return inspect(content[:4096], len(content), lambda length, offset: content[offset : offset + length])


def spec(**more):
    return ImageSpec(**{"size": 1 << 20, "clusters": {0: Plain(b"x")}, **more})


def named(name, **more):
    return spec(cluster_bits=9, l2_bits=12, backing=Backing(name, **more))


CASES = {
    "size 0": (header(0) + bytes(8), "header", "error"),
    "unknown encryption": (header(1 << 20, crypt=2) + bytes(8), "header", "error"),
    "truncated header": (header(1 << 20)[:30], "header", "error"),
    "size of 300 bytes": (smallest(300), "odd-size", "warning"),
    "size 5000": (spec(size=5000), "odd-size", "warning"),
    "half a petabyte in 56 bytes": (header(500 << 40) + bytes(8), "l1-outside-file", "error"),
    "a huge L1": (header(500 << 40) + bytes(8), "huge-l1", "warning"),
    "padding in use": (spec(fields={"padding": 7}), "padding", "note"),
    "L1 outside": (spec(fields={"l1_offset": 1 << 62}), "l1-outside-file", "error"),
    "L1 in the header": (spec(fields={"l1_offset": 8}), "l1-in-header", "error"),
    "NUL in a name": (named(b"new.img", tail=b"\0old"), "backing-nul", "note"),
    "NUL at the end of a name": (named(b"new.img\0"), "backing-nul", "note"),
    "empty name": (named(b"\0\0"), "backing-empty", "note"),
    "name outside": (spec(fields={"backing_offset": 1 << 50, "backing_length": 8}), "backing-outside-file", "error"),
    "name of 1024 bytes": (spec(fields={"backing_offset": 48, "backing_length": 1024}), "header", "error"),
    "json: name": (named(b"json:{}"), "backing-protocol", "error"),
    "device as base": (named(b"/dev/vda"), "backing-device", "error"),
    "kernel file as base": (named(b"/proc/self/mem"), "backing-kernel", "error"),
    "name that climbs": (named(b"../../etc/shadow"), "backing-climbs", "warning"),
    "name offset without length": (spec(fields={"backing_offset": 48}), "backing-fields", "note"),
    "name length without offset": (spec(fields={"backing_length": 48}), "backing-fields", "note"),
    "polyglot GPT": (spec(layout="mkimg", patches=((512, b"EFI PART"),)), "polyglot", "error"),
    "polyglot ISO": (spec(append=bytes(0x8001 - 12288) + b"CD001" + bytes(99)), "polyglot", "warning"),
    "polyglot MBR": (spec(layout="mkimg", patches=((510, b"\x55\xaa"),)), "polyglot", "warning"),
    "polyglot VHD": (spec(append=b"conectix".ljust(512, b"\0")), "polyglot", "warning"),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    image, kind, severity = CASES[name]
    found = [finding for finding in run(image) if finding.kind == kind]
    assert [finding.severity for finding in found] == [severity]
    assert found[0].text


@pytest.mark.parametrize("name", CASES)
def test_errors_refuse_a_migration_and_nothing_else_does(name: str, tmp_path: pathlib.Path) -> None:
    image, kind, severity = CASES[name]
    (tmp_path / "disk.qcow").write_bytes(build(image).data if isinstance(image, ImageSpec) else image)
    severities = {finding.severity for finding in run(image)}
    if kind == "backing-climbs" or kind == "backing-nul":
        (tmp_path / "new.img").write_bytes(bytes(1 << 20))
    plan = make_plan(Request(src=os.fsencode(tmp_path / "disk.qcow")), Records(os.fsencode(tmp_path / "state")))
    assert (plan.action == REFUSE) == ("error" in severities or kind == "backing-climbs"), plan.reasons


def test_one_who_knows_better_may_take_a_file_with_two_marks_for_an_image(tmp_path: pathlib.Path) -> None:
    path = os.fsencode(tmp_path / "disk.qcow")
    build(CASES["polyglot GPT"][0]).write(path)
    records = Records(os.fsencode(tmp_path / "state"))
    refused = make_plan(Request(src=path), records)
    assert refused.action == REFUSE and refused.code == "unsafe" and "allow_declared_raw" in refused.reasons[0]
    assert make_plan(Request(src=path, allow_declared_raw=True), records).action == "convert"


def test_a_base_is_looked_at_as_closely(tmp_path: pathlib.Path) -> None:
    build(CASES["polyglot GPT"][0]).write(tmp_path / "base.img")
    build(named(b"base.img")).write(tmp_path / "over.qcow")
    request = Request(src=os.fsencode(tmp_path / "over.qcow"), chains="flatten")
    assert make_plan(request, Records(os.fsencode(tmp_path / "state"))).code == "unsafe"


def test_all_checks_are_made_and_reported_together():
    image = spec(
        size=5000, cluster_bits=9, backing=Backing(b"/x/../dev/sda\0tail"), fields={"padding": 1}, append=b"conectix".ljust(512, b"\0")
    )
    kinds = {finding.kind for finding in run(image)}
    assert kinds == {"odd-size", "backing-device", "backing-climbs", "backing-nul", "padding", "polyglot"}


SOUND = {
    "qemu": spec(),
    "smallest": smallest(1 << 20),
    "mkimg": spec(layout="mkimg"),
    "virtualbox": spec(layout="virtualbox", backing=Backing(b"/vm/parent.qcow")),
    "xen": spec(xen=Xen(), backing=Backing(b"/vm/parent")),
    "overlay": named(b"base.img"),
    "encrypted": spec(password=b"x"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_images_pass(name):
    assert run(SOUND[name]) == []


@pytest.mark.parametrize("name", genuine.NAMES)
def test_genuine_images_pass(name, tmp_path):
    assert run(genuine.unpack(name, tmp_path).path.read_bytes()) == []


def test_without_a_reader_only_the_head_is_looked_at():
    content = build(spec()).data
    assert inspect(content[:4096], len(content)) == []
