# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names that are exchanged while root works: nothing of root's is read, written or named. VMIMAGE_QCOW_ATTACKS says how often each is tried."""

import os
import pathlib
import shutil
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.attacks.attacker import Attacker, exchange, give
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool

TRIES = int(os.environ.get("VMIMAGE_QCOW_ATTACKS") or 40)
MIB = 1 << 20
SECRET = b"this is root's and nobody else's " * 512


class Host:
    """A tenant's directory, a good image of somebody else's beside it, and a directory of root's with a secret in it."""

    def __init__(self, root: pathlib.Path) -> None:
        root.chmod(0o755)
        for parent in root.parents:
            if parent.stat().st_mode & 0o777 == 0o700:
                parent.chmod(0o711)  # the tenant has to reach their directory
        self.state = os.fsencode(root / "state")
        self.tenant, self.roots, self.other = root / "tenant", root / "roots", root / "other"
        for folder in (self.tenant, self.tenant / "images", self.roots, self.other):
            folder.mkdir()
        self.roots.chmod(0o700)
        self.secret = self.roots / "secret.raw"
        self.secret.write_bytes(SECRET)
        self.secret.chmod(0o600)
        self.image = self.tenant / "images" / "disk.qcow"
        self._make_image()
        build(ImageSpec(size=MIB, clusters={6: Plain(b"other")})).write(self.other / "good.qcow")
        give(self.tenant, self.tenant / "images")
        self.before = self.roots_files()

    def _make_image(self) -> None:
        build(ImageSpec(size=MIB, clusters={5: Plain(b"tenant")})).write(self.image)
        give(self.image)

    def roots_files(self) -> dict[str, tuple[bytes, int, int]]:
        found = {}
        for path in self.roots.iterdir():
            status = path.stat()
            found[path.name] = (path.read_bytes(), status.st_uid, status.st_mode)
        return found

    def run(self, *sources: pathlib.Path, **options: Any) -> list[dict[str, Any]]:
        requests = [Request(os.fsencode(src), state_dir=self.state, **{"retire": True, **options}) for src in sources]
        return batch.run(requests, batch.Settings(self.state, reserve=0))

    def reset(self) -> None:
        """Everything as before the run, whatever it has done."""
        if (self.tenant / "images").is_symlink() and (self.tenant / "lure").is_dir():
            exchange(self.tenant / "images", self.tenant / "lure")
        for record in pathlib.Path(os.fsdecode(self.state)).glob("records/*"):
            record.unlink()
        for folder in (self.tenant / "images", self.tenant / "lure", self.other):
            if folder.is_symlink() or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.name.endswith(".qcow1.orig"):
                    path.rename(path.with_name(path.name[: -len(".qcow1.orig")]))
            for path in folder.iterdir():
                if path.suffix in (".qcow2", ".tmp"):
                    path.unlink()
        if not self.image.exists():
            self._make_image()


@pytest.fixture(name="host")
def _host(tmp_path: pathlib.Path) -> Host:
    require_root()
    return Host(tmp_path)


def results_of(host: Host) -> list[bytes]:
    return [path.read_bytes() for path in host.tenant.rglob("*.qcow2") if path.is_file()]


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
            assert not [data for data in results_of(host) if SECRET[:64] in data], "root's file is in the result"
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
