# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names that are exchanged while root works: nothing of root's is read, written or named. VMIMAGE_QCOW_ATTACKS says how often each is tried."""

import os
import pathlib
import shutil
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.tests.attacks.attacker import Attacker, exchange, give
from ansible_collections.vmimage.qcow.tests.attacks.host import MIB, SECRET, TRIES, Host
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool


@pytest.fixture(name="host")
def _host(tmp_path: pathlib.Path) -> Host:
    require_root()
    return Host(tmp_path)


def test_base_exchanged_with_a_link(host: Host, tell: Any) -> None:
    images = host.tenant / "images"
    build(ImageSpec(size=len(SECRET), clusters={}, backing=Backing(b"base.raw"))).write(host.image)
    (images / "base.raw").write_bytes(b"the tenant's own" * 1056)
    (images / "link").symlink_to(host.secret)
    give(images / "base.raw", images / "link", host.image)
    formats = ((os.fsencode(images / "base.raw"), "raw"),)
    converted = 0
    with Attacker(lambda: exchange(images / "base.raw", images / "link")) as attacker:
        for _try in attacker.tries(TRIES):
            (result,) = host.run(host.image, chains="flatten", backing_formats=formats)
            converted += not result["failed"]
            assert not [data for data in host.results() if SECRET[:64] in data], "root's file is in the result"
            with attacker.paused():
                host.reset()
    tell("%d of %d runs converted the image, none with a byte of root's file" % (converted, TRIES))
    assert host.roots_files() == host.before


@pytest.mark.parametrize("keep_name", [False, True], ids=["other-name", "same-name"])
def test_directory_exchanged_with_a_link(host: Host, tell: Any, keep_name: bool) -> None:
    """The images of others in the same call are migrated, whatever the tenant does."""
    build(ImageSpec(size=MIB, clusters={7: Plain(b"root's own")})).write(host.roots / "disk.qcow")
    before = host.roots_files()
    lure = host.tenant / "lure"
    lure.symlink_to(host.roots)
    give(lure)
    converted = 0
    with Attacker(lambda: exchange(host.tenant / "images", lure)) as attacker:
        for _try in attacker.tries(TRIES):
            mine, others = host.run(host.image, host.other / "good.qcow", keep_name=keep_name)
            converted += not mine["failed"]
            assert not others["failed"], others["msg"]
            assert host.roots_files() == before, "something was done in root's directory"
            with attacker.paused():
                host.reset()
    tell("%d of %d runs converted the image, none in root's directory" % (converted, TRIES))


def test_temporary_files_exchanged_with_links(host: Host, tell: Any) -> None:
    """Whatever has a temporary name is exchanged with a link to a file of root's as soon as it appears."""
    require_tool("qemu-img")
    images = host.tenant / "images"
    lure = host.tenant / "lure"
    lure.symlink_to(host.secret)
    give(lure)

    def act() -> bool:
        return any(exchange(images / name, lure) for name in os.listdir(images) if name.endswith(".tmp"))

    with Attacker(act) as attacker:
        for _try in attacker.tries(max(4, TRIES // 4)):
            host.run(host.image, compression="zstd")
            assert host.roots_files() == host.before, "a file of root's was written"
            with attacker.paused():
                host.reset()
            if not lure.is_symlink():
                lure.unlink()
                lure.symlink_to(host.secret)
                give(lure)
    tell("%d runs with a temporary file exchanged for a link, no file of root's touched" % max(4, TRIES // 4))


@pytest.mark.parametrize("undo", ["roll back", "clean up"])
def test_directory_exchanged_during_the_undoing(host: Host, undo: str, tell: Any) -> None:
    images, lure = host.tenant / "images", host.tenant / "lure"
    shutil.copy(host.image, host.roots / "disk.qcow2")
    shutil.copy(host.image, host.roots / "disk.qcow.qcow1.orig")
    before = host.roots_files()
    lure.symlink_to(host.roots)
    give(lure)
    choice = Choice(host.state, paths=(os.fsencode(host.image),))
    done = 0
    with Attacker(lambda: exchange(images, lure)) as attacker:
        for _try in attacker.tries(TRIES):
            with attacker.paused():
                host.reset()
                (result,) = host.run(host.image)
                assert not result["failed"], result["msg"]
            if undo == "roll back":
                (answer,) = roll_back_all(choice, discard_changes=True)
            else:
                (answer,) = clean_all(choice, min_age=0)
            done += not answer["failed"]
            assert host.roots_files() == before
    tell("%d of %d runs could %s, none in root's directory" % (done, TRIES, undo))


def test_directory_that_has_become_a_link_keeps_nobody_elses_image_waiting(host: Host) -> None:
    """It is among the directories in which backing files may lie, as everything is below which a playbook looks."""
    images = host.tenant / "images"
    images.rename(host.tenant / "aside")
    images.symlink_to(host.roots)
    give(images)
    build(ImageSpec(size=MIB, backing=Backing(b"good.qcow"))).write(host.other / "top.qcow")
    results = host.run(host.other / "good.qcow", host.other / "top.qcow", backing_dirs=(os.fsencode(images), os.fsencode(host.other)))
    assert [result["changed"] for result in results] == [True, True], results


def test_links_without_end_keep_nobody_elses_image_waiting(host: Host) -> None:
    images = host.tenant / "images"
    (images / "loop").symlink_to("loop/x")
    (images / "long").symlink_to("missing/" + "a/" * 2000)
    for number, name in enumerate((b"loop", b"long", b"loop/../long", b"./loop")):
        build(ImageSpec(size=MIB, backing=Backing(name))).write(images / ("evil%d.qcow" % number))
    evil = sorted(images.glob("evil*"))
    *refused, good = host.run(*evil, host.other / "good.qcow", backing_dirs=(os.fsencode(images), os.fsencode(host.other)))
    assert good["changed"], good
    assert len(refused) == 4 and all(result["failed"] and result["reason"] != "error" for result in refused), refused
