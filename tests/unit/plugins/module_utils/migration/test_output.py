# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a result is like, as qemu-img tells it, and what it holds, as qemu-img reads it."""

import json
import os
import pathlib
import random
import subprocess
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import BuiltImage, build
from ansible_collections.vmimage.qcow.tests.support.filesystems import loop_device
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Packed, Plain, Xen
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
PASSPHRASE = b"correct horse battery"


def image(size: int = 8 * MIB, **more: Any) -> BuiltImage:
    source = random.Random(7)
    clusters = {
        index: Plain((b"line %d\n" % index) * 500 if index % 2 else source.randbytes(4096))
        for index in source.sample(range(size // 4096), 200)
    }
    return build(ImageSpec(size=size, clusters=clusters, **more))


def convert(path: pathlib.Path, dest: pathlib.Path, **options: Any) -> dict:
    state = os.fsencode(path.parent / "state")
    (result,) = batch.run([Request(src=os.fsencode(path), dest=os.fsencode(dest), state_dir=state, **options)], Settings(state))
    return result


@pytest.fixture(name="source")
def _source(tmp_path: pathlib.Path) -> pathlib.Path:
    oracle.require_qemu_img()
    image().write(tmp_path / "disk.qcow")
    return tmp_path / "disk.qcow"


def test_options_are_what_qemu_img_tells(source: pathlib.Path) -> None:
    cases = [
        ({}, {"compat": "1.1", "lazy-refcounts": False, "extended-l2": False, "compression-type": "zlib"}, 65536),
        ({"lazy_refcounts": True}, {"lazy-refcounts": True}, 65536),
        ({"cluster_size": 4096}, {}, 4096),
        ({"cluster_size": 2 * MIB}, {}, 2 * MIB),
        ({"extended_l2": True}, {"extended-l2": True}, 65536),
        ({"extended_l2": True, "cluster_size": 16384}, {"extended-l2": True}, 16384),
        ({"compression": "zlib"}, {"compression-type": "zlib"}, 65536),
        ({"compression": "zstd"}, {"compression-type": "zstd"}, 65536),
        ({"compat": "0.10"}, {"compat": "0.10"}, 65536),
        ({"compat": "0.10", "cluster_size": 512, "compression": "zlib"}, {"compat": "0.10"}, 512),
    ]
    for number, (options, told, cluster_size) in enumerate(cases):
        dest = source.parent / ("result%d" % number)
        result = convert(source, dest, **options)
        assert not result["failed"] and result["verified"], result["msg"]
        info = oracle.info(dest, "qcow2")
        data = info["format-specific"]["data"]
        assert {name: data[name] for name in told} == told
        assert info["cluster-size"] == cluster_size == result["after"]["cluster_size"]
        oracle.assert_clean(dest)
        assert oracle.guest_bytes(oracle.Node(dest, "qcow2")) == image().guest_bytes()
        assert result["engine"] == ("staged" if options.get("compression") == "zstd" else "native")
        compressed = oracle.check(dest).get("compressed-clusters", 0)
        assert bool(compressed) == ("compression" in options)
    assert len({path for path in os.listdir(source.parent) if path.startswith(".")}) == 0


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_preallocated_qcow2(source: pathlib.Path, preallocation: str) -> None:
    dest = source.parent / "result"
    result = convert(source, dest, preallocation=preallocation)
    assert not result["failed"], result["msg"]
    answer = oracle.check(dest)
    assert answer["allocated-clusters"] == answer["total-clusters"] == 128
    oracle.assert_clean(dest)
    assert oracle.guest_bytes(oracle.Node(dest, "qcow2")) == image().guest_bytes()
    used = dest.stat().st_blocks * 512
    assert used >= 8 * MIB if preallocation != "metadata" else used < 8 * MIB


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_preallocated_raw(source: pathlib.Path, preallocation: str) -> None:
    dest = source.parent / "result"
    assert not convert(source, dest, format="raw", preallocation=preallocation)["failed"]
    assert dest.read_bytes() == image().guest_bytes()
    assert dest.stat().st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compat": "0.10", "lazy_refcounts": True}, "compat 0.10"),
        ({"compression": "zlib", "preallocation": "full"}, "preallocated"),
        ({"compression": "zstd", "engine": "native"}, "qemu-img"),
        ({"format": "raw", "preallocation": "metadata"}, "metadata"),
    ],
)
def test_what_cannot_be_is_refused_in_words(source: pathlib.Path, options: dict, words: str) -> None:
    result = convert(source, source.parent / "result", **options)
    assert result["failed"] and words in result["msg"]
    assert not list(Records(os.fsencode(source.parent / "state")).all())


def test_little_endian_xen_image_through_qemu_img(tmp_path: pathlib.Path) -> None:
    """qemu-img reads this image as empty; what it writes for us comes from our own reading."""
    oracle.require_qemu_img()
    xen = build(ImageSpec(size=6 * MIB, clusters={3: Plain(b"three"), 1100: Plain(b"eleven")}, xen=Xen(little_endian=True)))
    xen.write(tmp_path / "xen.qcow")
    assert not convert(tmp_path / "xen.qcow", tmp_path / "result", compression="zstd")["failed"]
    assert oracle.guest_bytes(oracle.Node(tmp_path / "result", "qcow2")) == xen.guest_bytes()


# ---- encryption ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(name="secret")
def _secret(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "secret").write_bytes(PASSPHRASE)
    return tmp_path / "secret"


def luks_bytes(path: pathlib.Path, secret: pathlib.Path) -> bytes:
    target = path.parent / "opened"
    node = "driver=qcow2,file.filename=%s,encrypt.key-secret=s" % path
    oracle.run("convert", "--object", "secret,id=s,file=%s" % secret, "--image-opts", "-O", "raw", node, target)
    return target.read_bytes()


@pytest.mark.slow
def test_result_in_luks(source: pathlib.Path, secret: pathlib.Path) -> None:
    dest = source.parent / "result"
    result = convert(source, dest, encryption="luks", luks_passphrase_file=os.fsencode(secret))
    assert not result["failed"] and result["verified"], result["msg"]
    info = oracle.info(dest, "qcow2")
    assert info["encrypted"] and info["format-specific"]["data"]["encrypt"]["format"] == "luks"
    assert luks_bytes(dest, secret) == image().guest_bytes()
    assert b"line 1\n" * 50 not in dest.read_bytes()


@pytest.fixture(name="in_place_of_qemu_img")
def _in_place_of_qemu_img(source: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pathlib.Path]:
    """Called with what a shell does first, puts that before the real qemu-img; the script is what is found as qemu-img from then on."""

    def put(first: str) -> pathlib.Path:
        script = source.parent / "bin" / "qemu-img"
        script.parent.mkdir()
        script.write_text(f'#!/bin/bash\n{first}exec "{require_tool("qemu-img")}" "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        return script

    return put


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "qemu-img"])
def test_a_second_try_of_qemu_img_writes_to_the_same_file(
    source: pathlib.Path, secret: pathlib.Path, in_place_of_qemu_img: Any, engine: str
) -> None:
    """The busy machine is a stand-in for qemu-img that fails once, and before that removes what it was to write, as qemu-img does."""
    program = in_place_of_qemu_img(
        'if [[ "$*" == convert*encrypt.format=luks* ]] && mkdir "$0.failed" 2>/dev/null; then\n'
        '    rm -f -- "${@: -1}"\n'
        '    echo "qemu-img: error while converting qcow2: Unable to get accurate CPU usage" >&2\n'
        "    exit 1\n"
        "fi\n"
    )
    result = convert(source, source.parent / "result", engine=engine, encryption="luks", luks_passphrase_file=os.fsencode(secret))
    assert (program.parent / "qemu-img.failed").is_dir()
    assert not result["failed"] and result["verified"], result["msg"]


def test_an_error_of_qemu_img_names_the_result(source: pathlib.Path, in_place_of_qemu_img: Any) -> None:
    """The real qemu-img, in a shell that lets it write no file of more than 64 KiB."""
    in_place_of_qemu_img('trap "" XFSZ\n[ "$1" != convert ] || ulimit -f 64\n')
    result = convert(source, source.parent / "result", engine="qemu-img")
    assert result["failed"] and result["reason"] == "tool-failed"
    assert "File too large" in result["msg"] and "/proc/" not in result["msg"], result["msg"]
    assert "nothing was published" in result["msg"]
    assert not (source.parent / "result").exists()


@pytest.mark.slow
@pytest.mark.parametrize("passphrase", [b"", b"\n", b"\r\n"])
def test_empty_luks_passphrase_is_refused(source: pathlib.Path, tmp_path: pathlib.Path, passphrase: bytes) -> None:
    (tmp_path / "empty").write_bytes(passphrase)
    result = convert(source, tmp_path / "result", encryption="luks", luks_passphrase_file=os.fsencode(tmp_path / "empty"))
    assert result["failed"] and "the LUKS passphrase is empty" in result["msg"]
    assert not (tmp_path / "result").exists()


def test_from_legacy_encryption_to_luks(tmp_path: pathlib.Path, secret: pathlib.Path) -> None:
    oracle.require_qemu_img()
    encrypted = image(password=PASSPHRASE)
    encrypted.write(tmp_path / "disk.qcow")
    other = tmp_path / "other"
    other.write_bytes(b"another one")
    keys = ((b"", os.fsencode(secret)),)
    result = convert(
        tmp_path / "disk.qcow", tmp_path / "result", passphrase_files=keys, encryption="luks", luks_passphrase_file=os.fsencode(other)
    )
    assert not result["failed"] and result["verified"], result["msg"]
    assert luks_bytes(tmp_path / "result", other) == encrypted.guest_bytes()


def test_qemu_img_engine_decrypts_chains(tmp_path: pathlib.Path, secret: pathlib.Path) -> None:
    oracle.require_v1_driver()
    base, top = (
        image(password=PASSPHRASE),
        build(ImageSpec(size=8 * MIB, cluster_bits=9, l2_bits=12, clusters={9: Plain(b"top")}, backing=Backing(b"base.qcow"))),
    )
    base.write(tmp_path / "base.qcow")
    top.write(tmp_path / "top.qcow")
    keys = ((os.fsencode(tmp_path / "base.qcow"), os.fsencode(secret)),)
    result = convert(tmp_path / "top.qcow", tmp_path / "result", passphrase_files=keys, engine="qemu-img", chains="flatten")
    assert not result["failed"] and result["engine"] == "qemu-img" and result["verified"], result["msg"]
    assert oracle.guest_bytes(oracle.Node(tmp_path / "result", "qcow2")) == top.guest_bytes(base.guest_bytes())


# ---- salvage ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over_base", [False, True])
@pytest.mark.parametrize("chains", ["preserve", "flatten"])
def test_salvage_keeps_what_can_be_read_and_lists_the_rest(tmp_path: pathlib.Path, chains: str, *, over_base: bool) -> None:
    oracle.require_qemu_img()
    (tmp_path / "base.img").write_bytes(b"base" * (MIB // 4))
    clusters = {0: Plain(b"zero"), 3: Packed(b"three"), 5: Packed(stream=b"\xff" * 40), 600: Plain(b"six"), 200: Plain(b"two")}
    spec = ImageSpec(
        size=8 * MIB, clusters=clusters, l2_patch={200: 1 << 40}, l1_patch={1: 1 << 50}, backing=Backing(b"base.img") if over_base else None
    )
    built = build(spec)
    built.write(tmp_path / "disk.qcow")
    refused = convert(tmp_path / "disk.qcow", tmp_path / "result", chains=chains)
    assert refused["reason"] == "damaged" and "salvage" in refused["msg"]
    result = convert(tmp_path / "disk.qcow", tmp_path / "result", chains=chains, salvage=True)
    assert not result["failed"] and result["verified"], result["msg"]
    lost = {(entry["start"], entry["length"]) for entry in result["lost"]}
    assert lost == {(5 * 4096, 4096), (200 * 4096, 4096), (2 * MIB, 2 * MIB)}
    (record,) = (record for record in Records(os.fsencode(tmp_path / "state")).all())
    assert record.facts["lost"] == result["lost"]
    disk = bytearray((b"base" * (MIB // 4)).ljust(8 * MIB, b"\0") if over_base else bytes(8 * MIB))
    for index, content in ((0, b"zero"), (3, b"three")):
        disk[index * 4096 : (index + 1) * 4096] = content.ljust(4096, b"\0")
    for start, length in lost:
        disk[start : start + length] = bytes(length)
    nodes = [oracle.Node(tmp_path / "result", "qcow2")]
    if over_base and chains == "preserve":
        nodes.append(oracle.Node(tmp_path / "base.img", "raw"))
    assert oracle.guest_bytes(*nodes) == disk


# ---- block devices ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(name="device")
def _device(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    with loop_device(tmp_path / "backing", b"\xa5" * 12 * MIB) as path:
        yield path


def test_raw_into_a_block_device(source: pathlib.Path, device: pathlib.Path) -> None:
    result = convert(source, device, format="raw", retire=True)
    assert not result["failed"] and result["verified"], result["msg"]
    found = device.read_bytes()
    assert found[: 8 * MIB] == image().guest_bytes(), "zeros have to be written too"
    assert found[8 * MIB :] == b"\xa5" * 4 * MIB, "what lies behind the disk is none of ours"
    assert (source.parent / "disk.qcow.qcow1.orig").exists()


def test_block_device_is_refused(source: pathlib.Path, device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = device.read_bytes()
    assert "raw results only" in convert(source, device)["msg"]
    image(size=64 * MIB).write(tmp_path / "large.qcow")
    assert convert(tmp_path / "large.qcow", device, format="raw")["reason"] == "no-space"
    assert device.read_bytes() == before
    with open(device, "rb") as stream:
        holder = subprocess.Popen(["sleep", "60"], stdin=stream)
    try:
        assert convert(source, device, format="raw")["reason"] == "in-use"
    finally:
        holder.kill()
        holder.wait()
    subprocess.run([require_tool("mkfs.ext4"), "-q", device], check=True)
    before = device.read_bytes()
    refused = convert(source, device, format="raw")
    assert refused["reason"] == "exists" and "ext" in refused["msg"]
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    done = subprocess.run(["mount", device, mountpoint], check=False, capture_output=True)
    if done.returncode == 0:
        try:
            assert convert(source, device, format="raw", overwrite_device=True)["reason"] == "in-use"
        finally:
            subprocess.run(["umount", mountpoint], check=True)
    assert device.read_bytes()[2 * MIB :] == before[2 * MIB :]
    result = convert(source, device, format="raw", overwrite_device=True)
    assert not result["failed"], json.dumps(result)


def test_which_results_qemu_img_checks(source: pathlib.Path, tmp_path: pathlib.Path, in_place_of_qemu_img: Any) -> None:
    """The program is the real one behind a script that writes down what it is asked."""
    program = in_place_of_qemu_img('[ "$1" != check ] || echo "$*" >>"$0.asked"\n')
    names = [f"{number:02}.qcow" for number in range(45)]
    for name in names:
        image(MIB).write(tmp_path / name)
    state = os.fsencode(tmp_path / "state")

    def asked(**options: Any) -> int:
        given = [
            Request(os.fsencode(tmp_path / name), os.fsencode(tmp_path / f"{name}-{len(options)}"), state_dir=state, **options)
            for name in names
        ]
        results = batch.run(given, Settings(state))
        assert all(result["verified"] for result in results)
        told = (program.parent / "qemu-img.asked").read_text().splitlines()
        (program.parent / "qemu-img.asked").unlink()
        return len(told)

    assert asked() == 20 + 2, "of small plain ones the first twenty and then each tenth"
    assert asked(compression="zlib") == 45
    assert asked(layout="keep", lazy_refcounts=False) == 45
