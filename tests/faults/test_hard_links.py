# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that have several names: one image each, migrated under one of them."""

import os
import pathlib
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
ONE = "the file has a further name (hard link) that keeps the v1 content"


class Host:
    """Two directories: an image, and other names of it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.images, self.others, self.state = root / "images", root / "others", os.fsencode(root / "state")
        self.images.mkdir()
        self.others.mkdir()
        self.image = self.images / "disk.qcow"
        self.built = build(ImageSpec(size=MIB, clusters={3: Plain(b"disk" * 100)}))
        self.built.write(self.image)

    def link(self, path: pathlib.Path) -> pathlib.Path:
        os.link(self.image, path)
        return path

    def migrate(self, *paths: pathlib.Path, check_mode: bool = False, **options: Any) -> list[dict[str, Any]]:
        common = Request(b"", state_dir=self.state, backing_dirs=(os.fsencode(self.others), os.fsencode(self.images)))
        requests = [common._replace(src=os.fsencode(path), **{"retire": True, **options}) for path in paths]
        return batch.run(requests, batch.Settings(self.state, reserve=0, check_mode=check_mode))

    def names(self) -> list[str]:
        return sorted(path.name for folder in (self.images, self.others) for path in folder.iterdir())


@pytest.fixture(name="host")
def _host(tmp_path: pathlib.Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("options", [{}, {"retire": False}, {"keep_name": True}, {"format": "raw"}], ids=str)
@pytest.mark.parametrize("beside", [True, False])
def test_two_names_in_one_batch(host: Host, options: dict[str, Any], beside: bool) -> None:
    """Only the first is migrated, and the second keeps what it showed."""
    second = host.link((host.images if beside else host.others) / "second.qcow")
    for check_mode in (True, False):
        one, two = host.migrate(host.image, second, check_mode=check_mode, **options)
        assert one["changed"] and not one["failed"] and ONE in str(one["warnings"]), one
        assert (two["changed"], two["failed"], two["reason"]) == (False, True, "linked")
        assert "is the same file as %s" % host.image in two["msg"] and "replace it by a link to %s" % one["dest"] in two["msg"], two["msg"]
    assert second.read_bytes() == host.built.data
    assert len(host.names()) == 3, host.names()


def test_order_decides_which_name_it_is(host: Host) -> None:
    second = host.link(host.images / "a.qcow")
    assert [result["reason"] for result in host.migrate(host.image, second, check_mode=True)] == [None, "linked"]
    assert [result["reason"] for result in host.migrate(second, host.image, check_mode=True)] == [None, "linked"]


def test_names_that_are_not_migrated_are_counted(host: Host) -> None:
    host.link(host.others / "second")
    host.link(host.others / "third")
    (result,) = host.migrate(host.image)
    assert result["changed"] and "the file has 2 further names (hard links) that keep the v1 content" in str(result["warnings"]), result


@pytest.mark.parametrize("options", [{}, {"retire": False}, {"keep_name": True}], ids=str)
def test_further_name_of_an_image_that_was_migrated(host: Host, options: dict[str, Any]) -> None:
    """In the next run, and in every one after that, until the name is gone."""
    second = host.link(host.others / "second.qcow")
    (one,) = host.migrate(host.image, **options)
    for check_mode in (True, False, False):
        (result,) = host.migrate(second, check_mode=check_mode, **options)
        assert result["reason"] == "linked" and str(host.image) in result["msg"] and one["dest"] in result["msg"], result
    assert second.read_bytes() == host.built.data


def test_name_that_is_left_when_the_original_is_gone(host: Host) -> None:
    """It is an image of its own again."""
    second = host.link(host.others / "second.qcow")
    assert host.migrate(host.image)[0]["changed"]
    (host.images / "disk.qcow.qcow1.orig").unlink()
    assert host.migrate(second)[0]["changed"]


def test_one_name_given_twice(host: Host) -> None:
    directory = host.images.parent / "by-link"
    directory.symlink_to(host.images)
    for second in (host.image, directory / host.image.name):
        one, two = host.migrate(host.image, second, check_mode=True)
        assert one["changed"] and "further name" not in one["msg"]
        assert two["reason"] == "linked" and "Give each image once." in two["msg"]


def test_link_of_an_interrupted_retirement_is_no_further_name(host: Host) -> None:
    """Where a filesystem cannot rename without overwriting, an original has both of its names for a moment."""
    assert host.migrate(host.image, retire=False)[0]["changed"]
    host.link(host.images / "disk.qcow.qcow1.orig")
    for check_mode in (True, False):
        (result,) = host.migrate(host.image, check_mode=check_mode)
        assert result["changed"] and "further name" not in str(result["warnings"]), result
    assert host.names() == ["disk.qcow.qcow1.orig", "disk.qcow2"]


def test_names_of_a_result_are_left_alone(host: Host) -> None:
    """A further name that was replaced by a link to the result stays in the list of images without harm."""
    second = host.link(host.others / "second.img")
    (result,) = host.migrate(host.image, keep_name=True)
    second.unlink()
    os.link(result["dest"], second)
    assert [(result["changed"], result["failed"]) for result in host.migrate(host.image, second, keep_name=True)] == [(False, False)] * 2


@pytest.mark.parametrize("chains", ["preserve", "flatten"])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_base_under_two_names(host: Host, chains: str, beside: bool, last: bool) -> None:
    """Each overlay names another one: both follow to the one result."""
    oracle.require_v1_driver()
    second = host.link((host.images if beside else host.others) / "second.qcow")
    overlays = []
    for number, base in enumerate((host.image, second)):
        overlays.append(host.images / ("over%d.qcow" % number))
        backing = Backing(os.fsencode(base))
        build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={9: Plain(b"top%d" % number)}, backing=backing)).write(overlays[-1])
    before = [oracle.guest_bytes(oracle.Node(path, "qcow"), oracle.Node(host.image, "qcow")) for path in overlays]
    images = [*overlays, host.image, second] if last else [host.image, second, *overlays]
    for check_mode in (True, False):
        results = {result["src"]: result for result in host.migrate(*images, check_mode=check_mode, chains=chains)}
        assert [results[str(path)]["reason"] for path in (host.image, second, *overlays)] == [None, "linked", None, None], results
    below = [oracle.Node(host.images / "disk.qcow2", "qcow2")] if chains == "preserve" else []
    assert [oracle.guest_bytes(oracle.Node(path.with_suffix(".qcow2"), "qcow2"), *below) for path in overlays] == before


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("how", ["hard link", "symbolic link"])
def test_qcow2_overlay_that_names_the_base_in_another_directory(host: Host, relative: bool, how: str) -> None:
    """It is pointed to where the result is, not to where its name was."""
    oracle.require_v1_driver()
    named = host.others / "named.qcow"
    if how == "hard link":
        host.link(named)
    else:
        named.symlink_to(host.image)
    overlay = host.others / "over.img"
    tool = require_tool("qemu-img")
    subprocess.run([tool, "create", "-q", "-f", "qcow2", "-F", "qcow", "-b", "named.qcow" if relative else named, overlay], check=True)
    (result,) = host.migrate(host.image)
    assert result["repointed"] == [str(overlay)], result["msg"]
    info = oracle.info(overlay, "qcow2")
    assert info["full-backing-filename"] == str(host.images / "disk.qcow2"), info
