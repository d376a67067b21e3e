# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Linked clones that lie elsewhere than their base: found by what libvirt knows, by the layout of the software that made them, and where we are told
to look. Their guests boot before and after.
"""

import os
import pathlib
import random
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, info
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import Domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.seen_images import Searched, looks_like_template
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk

MIB = 1 << 20


class Clones:
    """A base in one tree and linked clones of it in another."""

    def __init__(self, root: pathlib.Path, uri: str = "", base: str = "bases/gold.qcow") -> None:
        self.root, self.uri, self.state = root, uri, os.fsencode(root / "state")
        self.base = root / base
        self.base.parent.mkdir(parents=True)
        source = random.Random(5)
        build(ImageSpec(size=8 * MIB, clusters={index: Plain(source.randbytes(4096)) for index in source.sample(range(2048), 40)})).write(
            self.base
        )

    def clone(self, name: str, *, recorded: str = "qcow", v1: bool = False) -> pathlib.Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if v1:
            build(
                ImageSpec(
                    size=8 * MIB, cluster_bits=9, l2_bits=12, clusters={7: Plain(b"own" * 100)}, backing=Backing(os.fsencode(self.base))
                )
            ).write(path)
        else:
            oracle.run("create", "-f", "qcow2", "-b", self.base, "-F", recorded, path)
        return path

    def migrate(self, *, check: bool = False, searched: Any = None, **options: Any) -> dict[str, Any]:
        request = Request(os.fsencode(self.base), **{"retire": True, "state_dir": self.state, **options})
        settings = batch.Settings(self.state, reserve=0, check_mode=check, **self.libvirt)
        (result,) = batch.run([request], settings, searched=searched)
        return result

    @property
    def libvirt(self) -> dict[str, str]:
        return {"libvirt_uri": self.uri} if self.uri else {"domains": "ignore"}

    def undo(self, *, clean: bool = False) -> dict[str, Any]:
        choice = Choice(self.state, (os.fsencode(self.base),), **self.libvirt)
        (answer,) = clean_all(choice, min_age=0) if clean else roll_back_all(choice, discard_changes=False)
        return answer


@pytest.mark.parametrize("keep_name", [False, True])
def test_the_guest_of_a_clone_elsewhere_boots_after_migration_and_rollback(
    daemon: Libvirtd, tmp_path: pathlib.Path, keep_name: bool
) -> None:
    """libvirt knows the clone by its path, its header names the base: nobody has named the clone's directory."""
    clones = Clones(tmp_path, daemon.uri)
    clone = clones.clone("vms/web1/disk.qcow2")
    guest = Guest(daemon, "web1", [disk(clone, "qcow2")])
    seen, header = guest.boot(), clone.read_bytes()[:65536]
    assert clones.migrate(check=True, keep_name=keep_name)["repointed"] == [str(clone)] and clone.read_bytes()[:65536] == header
    result = clones.migrate(keep_name=keep_name)
    assert not result["failed"], result["msg"]
    facts = oracle.info(clone, "qcow2")
    assert facts["backing-filename-format"] == "qcow2" and facts["full-backing-filename"] == result["dest"]
    assert guest.boot() == seen
    assert clones.migrate(keep_name=keep_name)["changed"] is False
    undone = clones.undo()
    assert undone["changed"], undone["msg"]
    assert clone.read_bytes()[:65536] == header and guest.boot() == seen


def test_a_clone_in_a_pool(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    """No domain uses it, but it is a volume."""
    clones = Clones(tmp_path, daemon.uri)
    clone = clones.clone("pool/volume.qcow2")
    daemon.pool("clones", clone.parent)
    searched: list[Searched] = []
    result = clones.migrate(searched=searched)
    assert result["repointed"] == [str(clone)], result["msg"]
    assert os.fsencode(clone.parent) in [directory.path for directory in searched]


def test_a_scan_sees_them(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path, daemon.uri)
    clone = clones.clone("vms/web1/disk.qcow2")
    Guest(daemon, "web1", [disk(clone, "qcow2")])
    answer = info.look(info.Question((os.fsencode(clones.base),)), Records(clones.state), Domains(daemon.uri))
    assert [entry["path"] for entry in answer.images[0]["dependents"]] == [str(clone)]


def test_a_clone_of_a_running_domain_keeps_its_base_where_it_is(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path, daemon.uri)
    guest = Guest(daemon, "web1", [disk(clones.clone("vms/web1/disk.qcow2"), "qcow2")], cmdline="guest=idle")
    guest.domain.create()
    guest.wait("GUEST-UP")
    result = clones.migrate()
    assert result["failed"] and result["reason"] == "in-use" and clones.base.exists(), result["msg"]


def test_a_v1_clone_elsewhere_is_migrated_with_its_base_or_not_at_all(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path, daemon.uri)
    clone = clones.clone("vms/old/disk.qcow", v1=True)
    Guest(daemon, "old", [disk(clone, "qcow")])
    result = clones.migrate()
    assert result["failed"] and result["reason"] == "needed" and str(clone) in result["msg"]


@pytest.mark.parametrize("clean", [False, True])
def test_a_clone_made_elsewhere_since_keeps_what_it_rests_on(daemon: Libvirtd, tmp_path: pathlib.Path, clean: bool) -> None:
    """Of the result, which a rollback would delete; of the retired original, which a cleanup would."""
    clones = Clones(tmp_path, daemon.uri)
    result = clones.migrate()
    clones.base = pathlib.Path(result["retired"] if clean else result["dest"])
    clone = clones.clone("vms/new/disk.qcow2", recorded="qcow" if clean else "qcow2")
    Guest(daemon, "new", [disk(clone, "qcow2")])
    clones.base = pathlib.Path(result["src"])
    undone = clones.undo(clean=clean)
    assert undone["failed"] and undone["reason"] == "needed" and str(clone) in undone["msg"]


@pytest.mark.parametrize("clean", [False, True])
def test_a_clone_made_since_in_a_tree_that_was_searched(tmp_path: pathlib.Path, clean: bool) -> None:
    """The record says where the migration has looked; whoever undoes it looks there, too."""
    clones = Clones(tmp_path)
    (tmp_path / "vms").mkdir()
    result = clones.migrate(backing_dirs=(os.fsencode(tmp_path / "vms"),))
    clones.base = pathlib.Path(result["retired"] if clean else result["dest"])
    clone = clones.clone("vms/new/disk.qcow2", recorded="qcow" if clean else "qcow2")
    clones.base = pathlib.Path(result["src"])
    undone = clones.undo(clean=clean)
    assert undone["failed"] and undone["reason"] == "needed" and str(clone) in undone["msg"]


@pytest.mark.parametrize(
    ("base", "clone"),
    [("images/100/base-100-disk-0.qcow", "images/101/vm-101-disk-0.qcow2"), ("instances/_base/0a1b2c", "instances/5f6e/disk")],
    ids=["proxmox", "nova"],
)
def test_where_software_keeps_the_clones_that_it_makes(tmp_path: pathlib.Path, base: str, clone: str) -> None:
    clones = Clones(tmp_path, base=base)
    made = clones.clone(clone)
    result = clones.migrate()
    assert result["repointed"] == [str(made)], result["msg"]
    assert oracle.info(made, "qcow2")["full-backing-filename"] == result["dest"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/srv/templates/win.img", True),
        ("/srv/vm/base.qcow", True),
        ("/srv/vm/debian-base.img", True),
        ("/srv/golden/x", True),
        ("/srv/vm/master_7.qcow", True),
        ("/srv/bases/deb7.qcow", True),
        ("/srv/vm/database.qcow", False),
        ("/srv/vm/disk.qcow", False),
        ("/srv/templates/vm/disk.qcow", False),
    ],
)
def test_names_of_templates(name: str, expected: bool) -> None:
    assert looks_like_template(os.fsencode(name)) is expected


def test_a_template_without_clones_is_asked_about(tmp_path: pathlib.Path) -> None:
    """Where its clones may lie elsewhere, the plan says where they were looked for and which option names more."""
    clones = Clones(tmp_path, base="templates/deb7.qcow")
    (warning,) = clones.migrate(check=True)["warnings"]
    assert str(clones.base.parent) in warning and "backing_dirs" in warning
    clones.clone("templates/clone.qcow2")
    assert clones.migrate(check=True)["warnings"] == []


def test_a_directory_that_was_to_be_searched_and_is_not_there_is_told(tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path, base="vm/disk.qcow")
    searched: list[Searched] = []
    missing = tmp_path / "clonse"
    clones.migrate(check=True, searched=searched, backing_dirs=(os.fsencode(missing),))
    (told,) = [directory for directory in searched if directory.error]
    assert told.path == os.fsencode(missing) and "No such file or directory" in str(told.error)


def test_before(tmp_path: pathlib.Path) -> None:
    """What the search is for: a clone that it cannot know of loses its base."""
    clones = Clones(tmp_path)
    clone = clones.clone("vms/web1/disk.qcow2")
    clones.migrate()
    lost = subprocess.run(["qemu-img", "compare", clone, clone], capture_output=True, text=True, check=False)
    assert lost.returncode != 0 and "gold.qcow" in lost.stderr


def test_a_clone_made_beside_the_original_on_a_result_elsewhere(tmp_path: pathlib.Path) -> None:
    """Where the migration has looked without saying so in the record: beside the original, the result and the retired original."""
    clones = Clones(tmp_path)
    (tmp_path / "fast").mkdir()
    result = clones.migrate(dest_dir=os.fsencode(tmp_path / "fast"))
    src, clones.base = clones.base, pathlib.Path(result["dest"])
    clone = clones.clone("bases/new.qcow2", recorded="qcow2")
    clones.base = src
    undone = clones.undo()
    assert undone["failed"] and undone["reason"] == "needed" and str(clone) in undone["msg"]


def test_one_overlay_by_two_paths(tmp_path: pathlib.Path) -> None:
    """The record names it by a link to its directory; the rollback looks there by the directory's own name as well."""
    clones = Clones(tmp_path, base="data/disk.qcow")
    clone = clones.clone("data/clone.qcow2")
    (tmp_path / "alias").symlink_to("data")
    other = Clones(tmp_path / "more", base="x/other.qcow")
    src = clones.base
    clones.base = tmp_path / "alias" / "disk.qcow"
    assert clones.migrate(backing_dirs=(os.fsencode(tmp_path / "alias"),))["repointed"] == [str(tmp_path / "alias" / "clone.qcow2")]
    other.state = clones.state
    other.migrate(backing_dirs=(os.fsencode(src.parent),))
    choice = Choice(clones.state, (os.fsencode(tmp_path),), domains="ignore")
    undone = roll_back_all(choice, discard_changes=False)
    assert [answer["failed"] for answer in undone] == [False, False], undone
    assert oracle.info(clone, "qcow2")["full-backing-filename"].endswith("disk.qcow")


def test_a_link_that_only_a_domain_names(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path, daemon.uri)
    link = tmp_path / "vm" / "disk"
    link.parent.mkdir()
    link.symlink_to(clones.base)
    guest = Guest(daemon, "linked", [disk(link, "qcow")])
    seen = guest.boot()
    result = clones.migrate()
    assert [entry["path"] for entry in result["links"]] == [str(link)] and link.exists()
    assert guest.boot() == seen
    assert clones.undo()["changed"] and link.resolve() == clones.base and guest.boot() == seen


def test_a_scan_of_one_file_sees_what_lies_beside_it(tmp_path: pathlib.Path) -> None:
    clones = Clones(tmp_path)
    clone = clones.clone("bases/clone.qcow2")
    answer = info.look(info.Question((os.fsencode(clones.base),)), Records(clones.state))
    assert [entry["path"] for entry in answer.images[0]["dependents"]] == [str(clone)]
    assert [(place.path, place.recurse) for place in answer.searched] == [(os.fsencode(clones.base.parent), False)]
