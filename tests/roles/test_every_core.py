# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role and playbook, whole, on every ansible-core that is supported, with the oldest Python that it talks to on the host.

The table of docs/docsite/rst/compatibility.rst says what is run here.
"""

import hashlib
import os
import pathlib
import re

import pytest
import yaml

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import CORES, ROOT, Controller, Played

MIB = 1 << 20
RETIRED = b".qcow1.orig"


class Tree:
    """Images of all kinds that roles have to get right, and what their guests see."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = os.fsencode(root)
        self.disks: dict[bytes, str] = {}
        for number, name in enumerate(
            [b"with  spaces.qcow", b"caf\xe9 \xff.img", b"{{ braces }} 'quoted\".qcow", b"deep/er/v1 inside.qcow2", b"new\nline.qcow"]
        ):
            clusters = {5: Plain(b"%d " % number * 99), 7: Packed(b"packed " * 400)}
            self._put(name, ImageSpec(size=MIB + 512 * number, clusters=clusters))
        base = self._put(b"chain/base.qcow", ImageSpec(size=MIB, clusters={1: Plain(b"base")}))
        over = ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"over")}, backing=Backing(b"base.qcow"))
        self._put(b"chain/over lay.qcow", over, base)

    def _put(self, name: bytes, spec: ImageSpec, below: bytes = b"") -> bytes:
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        image = build(spec)
        image.write(path)
        disk = image.guest_bytes(below) if below else image.guest_bytes()
        self.disks[path] = hashlib.sha256(disk).hexdigest()
        return disk

    def files(self) -> dict[bytes, str]:
        """SHA-256 of every file."""
        found = {}
        for folder, _folders, names in os.walk(self.root):
            for name in names:
                with open(os.path.join(folder, name), "rb") as stream:
                    found[os.path.join(folder, name)] = hashlib.sha256(stream.read()).hexdigest()
        return found

    def assert_migrated(self) -> None:
        for path, disk in self.disks.items():
            assert os.path.lexists(path + RETIRED), path
            result = path if path.endswith(b".qcow2") else path[:-5] + b".qcow2" if path.endswith(b".qcow") else path + b".qcow2"
            chain = [oracle.Node(result, "qcow2")]
            if b"over lay" in path:
                chain.append(oracle.Node(os.path.join(os.path.dirname(path), b"base.qcow2"), "qcow2"))
            assert hashlib.sha256(oracle.guest_bytes(*chain)).hexdigest() == disk, path


def assert_ended(played: Played, returncode: int = 0) -> Played:
    assert played.returncode == returncode, played.output
    return played


@pytest.mark.parametrize("core", CORES)
def test_the_whole_job(core: str, tmp_path: pathlib.Path) -> None:
    """Scan, guard, plan, check, migrate, migrate again, roll back, migrate by paths, clean up."""
    oracle.require_qemu_img()
    tree = Tree(tmp_path / "images")
    untouched, images = tree.files(), os.fsdecode(tree.root)
    controller = Controller(tmp_path, core=core, python=CORES[core], hosts={"kvm1": {}})
    state = str(tmp_path / "state")

    found = assert_ended(controller.run("scan", scan_paths=images, scan_state_dir=state, scan_fail_on_found=True), 2)
    assert "%d QCOW version 1 image(s) found" % len(tree.disks) in found.text, found.output
    plan = yaml.safe_load((controller.work / "qcow-reports/plan-kvm1.yml").read_text())
    assert [image["action"] for image in plan["images"]] == ["convert"] * len(tree.disks) and plan["refused"] is None

    checked = assert_ended(controller.run("migrate", "--check", "--diff", migrate_plan="qcow-reports", migrate_state_dir=state))
    assert checked.changed and tree.files() == untouched
    migrated = assert_ended(controller.run("migrate", migrate_plan="qcow-reports", migrate_state_dir=state))
    assert migrated.changed == 1
    tree.assert_migrated()
    files = tree.files()
    assert_ended(controller.run("scan", scan_paths=images, scan_state_dir=state, scan_fail_on_found=True))
    again = assert_ended(controller.run("migrate", migrate_paths=[images], migrate_state_dir=state))
    assert again.changed == 0 and tree.files() == files

    back = assert_ended(controller.run("rollback", rollback_paths=images, rollback_state_dir=state))
    assert back.changed == 1 and tree.files() == untouched
    assert_ended(controller.run("migrate", migrate_paths=images, migrate_state_dir=state))
    tree.assert_migrated()
    would = assert_ended(controller.run("cleanup", "--check", cleanup_min_age_days=0, cleanup_state_dir=state))
    assert would.changed == 1 and tree.files() == files
    assert_ended(controller.run("cleanup", cleanup_min_age_days=0, cleanup_state_dir=state))
    assert not [path for path in tree.files() if path.endswith(RETIRED)]
    assert assert_ended(controller.run("cleanup", cleanup_min_age_days=0, cleanup_state_dir=state)).changed == 0


def rows_of(page: str) -> list[list[str]]:
    """The rows of a page's tables, as lists of words."""
    return [line.split() for line in (ROOT / "docs/docsite/rst" / page).read_text(encoding="utf-8").splitlines()]


def test_the_documented_table_is_what_is_run() -> None:
    said = {row[0]: row[1:] for row in rows_of("compatibility.rst") if row and re.fullmatch(r"2\.\d+", row[0])}
    assert said == {core: [python] + ["runs"] * 4 for core, python in CORES.items()}
    (supported,) = re.findall(r"^ALL_CORES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(supported.split()) == set(CORES)


def test_every_documented_exit_code_has_its_test() -> None:
    rows = rows_of("fleet.rst")
    table = rows[rows.index(["Exit", "codes"]) : rows.index(["Tasks", "of", "your", "own"])]
    said = {int(row[0]) for row in table if row and re.fullmatch(r"\d", row[0])}
    tests = pathlib.Path(__file__).with_name("test_mistakes.py").read_text(encoding="utf-8")
    assert said == {int(code) for code in re.findall(r"def test_exit_code_(\d)_", tests)}
