# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told about chains: who rests on whom, by content and by header, without following what must not be followed."""

import os
import pathlib
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.info import Question, look
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Plain

MIB = 1 << 20


def overlay(path: pathlib.Path, base: bytes) -> pathlib.Path:
    build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"top")}, backing=Backing(base))).write(path)
    return path


def told(directory: pathlib.Path, **options: Any) -> dict:
    images = look(Question(paths=(os.fsencode(directory),), **options), Records(b"")).images
    return {os.path.basename(image["path"]): image for image in images}


@pytest.fixture(name="tree")
def _tree(tmp_path: pathlib.Path) -> pathlib.Path:
    oracle.require_qemu_img()
    build(ImageSpec(size=MIB, clusters={1: Plain(b"base")})).write(tmp_path / "base.qcow")
    overlay(tmp_path / "one.qcow", b"base.qcow")
    (tmp_path / "sub").mkdir()
    overlay(tmp_path / "sub" / "two.qcow", b"../one.qcow")
    oracle.run("create", "-f", "qcow2", "-u", "-b", "base.qcow", "-F", "qcow", tmp_path / "three.qcow2", "1M")
    overlay(tmp_path / "old.qcow.qcow1.orig", b"base.qcow")
    return tmp_path


@pytest.mark.parametrize("report", ["v1", "known"])
def test_chains_and_dependents(tree: pathlib.Path, report: str) -> None:
    images = told(tree, report=report, fingerprint=True)
    assert ("three.qcow2" in images) == (report == "known")
    names = {name: [os.path.basename(item["path"]) for item in image["dependents"]] for name, image in images.items()}
    assert names["base.qcow"] == ["one.qcow", "three.qcow2"]
    assert names["one.qcow"] == ["two.qcow"]
    assert [(os.path.basename(item["path"]), item["format"]) for item in images["two.qcow"]["chain"]] == [
        ("one.qcow", "qcow"),
        ("base.qcow", "qcow"),
    ]
    assert all(image["error"] is None for image in images.values())
    prints = {name: image["fingerprint"] for name, image in images.items()}
    assert None not in prints.values()
    assert prints["one.qcow"] == prints["two.qcow"] != prints["base.qcow"]
    assert prints.get("three.qcow2", prints["base.qcow"]) == prints["base.qcow"]


def test_without_chains_nothing_is_followed(tree: pathlib.Path) -> None:
    images = told(tree, chains=False)
    assert all(not image["chain"] and not image["dependents"] for image in images.values())
    assert images["one.qcow"]["backing"]["name"] == "base.qcow"


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (b"gone.qcow", "missing-base"),
        (b"/etc/hostname", "unsafe"),
        (b"nbd:localhost:1", "unsafe"),
        (b"/dev/zero", "unsafe"),
        (b"top.qcow", "unsafe"),
    ],
)
def test_what_cannot_be_followed_is_told(tmp_path: pathlib.Path, base: bytes, reason: str) -> None:
    overlay(tmp_path / "top.qcow", base)
    image = told(tmp_path)["top.qcow"]
    assert image["candidate"] and image["chain"] == [] and reason in image["reasons"] and image["error"]
