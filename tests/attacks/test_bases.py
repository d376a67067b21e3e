# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backing files are followed for an image that somebody else can write: those that they could have read, and no others."""

import os
import pathlib
import stat
import subprocess
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.attacks.attacker import TENANT, allow
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool

MIB = 1 << 20
OTHER, GROUP = 54322, 54323
CONTENT = b"of the base " * 40
KINDS = ["raw", "qcow", "qcow2", "vmdk", "vdi"]


class Chain:
    """A tenant's overlay over a base in a folder beside it."""

    def __init__(self, root: pathlib.Path, kind: str, **overlay: int) -> None:
        require_root()
        for folder in (root, *root.parents):
            if folder.stat().st_mode & 0o777 == 0o700:
                folder.chmod(0o711)
        self.state = os.fsencode(root / "state")
        self.folder, self.pool = root / "tenant", root / "pool"
        for made in (self.folder, self.pool):
            made.mkdir()
            made.chmod(0o755)
        self.base, self.image = self.pool / ("base." + kind), self.folder / "over.qcow"
        self._make(kind)
        build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={9: Plain(b"top")}, backing=Backing(os.fsencode(self.base)))).write(
            self.image
        )
        os.chown(self.image, overlay.get("uid", TENANT), overlay.get("gid", TENANT))
        self.image.chmod(overlay.get("mode", 0o600))
        os.chown(self.folder, TENANT, TENANT)
        self.formats: tuple[Any, ...] = ((os.fsencode(self.base), "raw"),) if kind == "raw" else ()

    def _make(self, kind: str) -> None:
        image = build(ImageSpec(size=MIB, clusters={3: Plain(CONTENT)}))
        if kind == "qcow":
            image.write(self.base)
            return
        raw = self.pool / "disk"
        raw.write_bytes(image.guest_bytes())
        subprocess.run([require_tool("qemu-img"), "convert", "-f", "raw", "-O", kind, raw, self.base], check=True)
        raw.unlink()

    def migrate(self, **options: Any) -> dict[str, Any]:
        request = Request(
            os.fsencode(self.image),
            state_dir=self.state,
            chains="flatten",
            backing_dirs=(os.fsencode(self.pool),),
            **{"backing_formats": self.formats, **options},
        )
        (result,) = batch.run([request], batch.Settings(self.state, reserve=0))
        return result

    def holds_the_base(self) -> bool:
        results = list(self.folder.glob("*.qcow2"))
        return any(CONTENT[:200] in path.read_bytes() for path in results)

    def protect(self, uid: int, gid: int, mode: int, access_list: Optional[str] = None) -> None:
        os.chown(self.base, uid, gid)
        self.base.chmod(mode)
        if access_list is not None:
            allow(self.base, access_list)


# Owner, group and mode of the base, an entry of its access list; whether the owner of the overlay could have read it.
RIGHTS = [
    (TENANT, TENANT, 0o600, None, True),
    (TENANT, TENANT, 0o000, None, True),
    (OTHER, OTHER, 0o600, None, False),
    (0, 0, 0o600, None, False),
    (0, 0, 0o640, None, False),
    (0, 0, 0o644, None, True),
    (OTHER, GROUP, 0o640, None, False),
    (OTHER, OTHER, 0o600, "u:%d:r" % TENANT, True),
    (OTHER, OTHER, 0o600, "u:%d:r,m::-" % TENANT, False),
    (0, 0, 0o644, "u:%d:-" % TENANT, False),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uid, gid, mode, access_list, allowed", RIGHTS)
def test_base_of_a_tenant(
    tmp_path: pathlib.Path, kind: str, uid: int, gid: int, mode: int, access_list: Optional[str], allowed: bool
) -> None:
    chain = Chain(tmp_path, kind)
    chain.protect(uid, gid, mode, access_list)
    result = chain.migrate()
    assert chain.holds_the_base() == allowed, result["msg"]
    if not allowed:
        assert result["failed"] and result["reason"] == "unsafe", result
        assert "user %d can write this image but could not read the backing file" % TENANT in result["msg"]


def test_group_that_can_write_the_overlay_must_be_able_to_read_the_base(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "qcow", uid=0, gid=GROUP, mode=0o660)
    os.chown(chain.folder, 0, 0)
    chain.protect(0, GROUP, 0o600)
    assert "group %d can write this image" % GROUP in chain.migrate()["msg"]
    chain.protect(0, GROUP, 0o640)
    assert not chain.migrate()["failed"]


def test_directory_that_the_tenant_cannot_search(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "qcow")
    chain.protect(0, 0, 0o644)
    chain.pool.chmod(0o700)
    assert chain.migrate()["reason"] == "unsafe"


def test_directory_that_its_access_list_lets_the_tenant_search(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "qcow")
    chain.protect(0, 0, 0o644)
    chain.pool.chmod(0o700)
    allow(chain.pool, "u:%d:x" % TENANT)
    result = chain.migrate()
    assert not result["failed"], result["msg"]


def test_image_of_roots_in_a_directory_that_its_access_list_lets_the_tenant_write(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "qcow", uid=0, gid=0)
    os.chown(chain.folder, 0, 0)
    chain.protect(0, 0, 0o600)
    allow(chain.folder, "u:%d:rwx" % TENANT)
    assert "user %d can write this image" % TENANT in chain.migrate()["msg"]


def test_link_in_a_directory_that_its_access_list_lets_the_tenant_write(tmp_path: pathlib.Path) -> None:
    """Whose it is does not help: the tenant can move root's own links about there."""
    chain = Chain(tmp_path, "qcow", uid=0, gid=0)
    os.chown(chain.folder, 0, 0)
    link = tmp_path / "links" / "images"
    link.parent.mkdir(mode=0o755)
    link.symlink_to(chain.folder)
    request = Request(os.fsencode(link / "over.qcow"), state_dir=chain.state, chains="flatten", backing_dirs=(os.fsencode(chain.pool),))
    assert not batch.run([request], batch.Settings(chain.state, reserve=0))[0]["failed"]
    allow(link.parent, "u:%d:rwx" % TENANT)
    (result,) = batch.run([request], batch.Settings(chain.state, reserve=0))
    assert result["reason"] == "unsafe" and "through the symbolic link %s," % link in result["msg"], result["msg"]


def test_image_of_roots_in_a_tenants_directory(tmp_path: pathlib.Path) -> None:
    """libvirt gives the images of running domains other owners: what was the tenant's may be root's now."""
    chain = Chain(tmp_path, "qcow", uid=0, gid=0)
    chain.protect(0, 0, 0o600)
    assert chain.migrate()["reason"] == "unsafe"
    os.chown(chain.folder, 0, 0)
    assert not chain.migrate()["failed"]


def test_file_without_a_signature_has_to_be_declared(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "raw")
    chain.protect(0, 0, 0o644)
    assert "declare it in backing_formats" in chain.migrate(backing_formats=())["msg"]
    assert not chain.holds_the_base()
    assert not chain.migrate()["failed"]


@pytest.mark.parametrize("mode, gid, expected", [(0o644, 0, 0o644), (0o640, TENANT, 0o640), (0o640, 0, 0o600), (0o600, TENANT, 0o600)])
def test_result_can_be_read_by_no_more_than_each_file_of_its_chain(tmp_path: pathlib.Path, mode: int, gid: int, expected: int) -> None:
    chain = Chain(tmp_path, "qcow", mode=0o644)
    chain.protect(TENANT, gid, mode)
    result = chain.migrate()
    assert not result["failed"], result["msg"]
    assert stat.S_IMODE((chain.folder / "over.qcow2").stat().st_mode) == expected
    assert any("Fewer users can read the result" in warning for warning in result["warnings"]) == (expected != 0o644)


def test_set_id_bits_stay_with_the_old_content(tmp_path: pathlib.Path) -> None:
    chain = Chain(tmp_path, "qcow", mode=0o6755)
    chain.protect(0, 0, 0o644)
    assert not chain.migrate()["failed"]
    assert stat.S_IMODE((chain.folder / "over.qcow2").stat().st_mode) == 0o755
