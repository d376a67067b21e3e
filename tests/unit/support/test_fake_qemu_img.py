# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for a qemu-img without the version 1 driver does what such a qemu-img was measured to do."""

import json
import os
import pathlib
import subprocess

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build

STAND_IN = pathlib.Path(__file__).resolve().parents[2] / "support" / "fake_qemu_img"


@pytest.fixture(name="image")
def _image(tmp_path: pathlib.Path) -> pathlib.Path:
    build(ImageSpec(size=1 << 20, clusters={3: Plain(b"three")})).write(tmp_path / "x.qcow")
    return tmp_path / "x.qcow"


def stand_in(*arguments, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(STAND_IN), *map(str, arguments)], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_help_does_not_list_the_driver() -> None:
    oracle.require_qemu_img()
    words = stand_in("--help").stdout.split()
    assert "qcow2" in words
    assert "qcow" not in words


def test_info_says_raw(image: pathlib.Path) -> None:
    oracle.require_qemu_img()
    answer = stand_in("info", "--output", "json", image)
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["format"] == "raw"
    assert json.loads(answer.stdout)["virtual-size"] == image.stat().st_size


def test_convert_wraps_the_container(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    answer = stand_in("convert", "-O", "qcow2", image, tmp_path / "y.qcow2")
    assert answer.returncode == 0
    wrapped = oracle.guest_bytes(oracle.Node(tmp_path / "y.qcow2", "qcow2"))
    assert wrapped.rstrip(b"\0") == image.read_bytes().rstrip(b"\0")
    assert wrapped[:4] == b"QFI\xfb"


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "-f", "qcow", "IMAGE"],
        ["convert", "-f", "qcow", "-O", "raw", "IMAGE", "OUT"],
        ["convert", "--image-opts", "-O", "raw", "driver=qcow,file.filename=IMAGE", "OUT"],
        ["compare", "-f", "qcow", "-F", "raw", "IMAGE", "IMAGE"],
        ["create", "-f", "qcow2", "-b", "IMAGE", "-F", "qcow", "OUT"],
        ["create", "-f", "qcow2", "-o", "backing_file=IMAGE,backing_fmt=qcow", "OUT", "1M"],
    ],
)
def test_naming_the_driver_is_an_error(arguments: list, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    answer = stand_in(*[word.replace("IMAGE", str(image)).replace("OUT", str(tmp_path / "out")) for word in arguments])
    assert answer.returncode == 1
    assert "Unknown driver 'qcow'" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_check_and_compare_take_it_for_raw(image: pathlib.Path) -> None:
    oracle.require_qemu_img()
    assert stand_in("check", image).returncode == 63
    assert "identical" in stand_in("compare", image, image).stdout


def test_other_formats_pass_through(tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    assert stand_in("create", "-f", "qcow2", tmp_path / "y.qcow2", "1M").returncode == 0
    assert json.loads(stand_in("info", "--output=json", tmp_path / "y.qcow2").stdout)["format"] == "qcow2"


def test_without_a_real_program_info_still_says_raw(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    answer = stand_in("info", "--output", "json", image, FAKE_QEMU_IMG_REAL="/nonexistent", FAKE_QEMU_IMG_LOG=str(log))
    assert json.loads(answer.stdout)["format"] == "raw"
    assert stand_in("convert", image, tmp_path / "y", FAKE_QEMU_IMG_REAL="/nonexistent").returncode == 1
    assert json.loads(log.read_text(encoding="utf-8"))[0] == "info"


def test_its_own_overlay_over_a_version_1_base_is_raw_too(tmp_path: pathlib.Path, image: pathlib.Path) -> None:
    oracle.require_qemu_img()
    build(ImageSpec(size=1 << 20, backing=Backing(image.name.encode()))).write(tmp_path / "o.qcow")
    assert json.loads(stand_in("info", "--output", "json", tmp_path / "o.qcow").stdout)["format"] == "raw"
