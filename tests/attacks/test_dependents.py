# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An overlay that names somebody else's image as its backing file counts only if its owner could read that image."""

import fcntl
import os
import pathlib
import pwd
import signal
import subprocess
import time
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.seen_images import SeenImages
from ansible_collections.vmimage.qcow.tests.attacks.attacker import TENANT, Attacker, allow, give
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool

MIB = 1 << 20
QEMU = 54324
"""The user that guests run as; to us another stranger."""


class Pool:
    """An image of root's that nobody else can read, a pool that it is in, and a tenant's directory below the same tree."""

    def __init__(self, root: pathlib.Path) -> None:
        require_root()
        for folder in (root, *root.parents):
            if folder.stat().st_mode & 0o777 == 0o700:
                folder.chmod(0o711)
        self.tree, self.state = root / "tree", os.fsencode(root / "state")
        self.pool, self.tenant = self.tree / "pool", self.tree / "tenant"
        for made in (self.tree, self.pool, self.tenant):
            made.mkdir()
            made.chmod(0o755)
        self.base = self.pool / "base.qcow"
        build(ImageSpec(size=MIB, clusters={3: Plain(b"base")})).write(self.base)
        self.base.chmod(0o600)
        give(self.tenant)

    def overlay(self, kind: str, path: pathlib.Path, owner: int = TENANT, mode: int = 0o600) -> pathlib.Path:
        if kind == "qcow":
            build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, backing=Backing(os.fsencode(self.base)))).write(path)
        else:
            tool = require_tool("qemu-img")
            subprocess.run([tool, "create", "-q", "-u", "-f", "qcow2", "-F", "qcow", "-b", self.base, path, str(MIB)], check=True)
        if kind == "odd":  # the name of its backing file can be read, but its header not be written anew
            with open(path, "r+b") as stream:
                stream.seek(60000)
                stream.write(b"odd")
        os.chown(path, owner, owner)
        path.chmod(mode)
        return path

    def migrate(self, *names: pathlib.Path, check_mode: bool = False, **options: Any) -> list[dict[str, Any]]:
        requests = [
            Request(os.fsencode(name), state_dir=self.state, backing_dirs=(os.fsencode(self.tree),), **{"retire": True, **options})
            for name in names or (self.base,)
        ]
        return batch.run(requests, batch.Settings(self.state, reserve=0, check_mode=check_mode))


@pytest.mark.parametrize("kind", ["qcow", "qcow2", "odd"])
@pytest.mark.parametrize("beside", [True, False], ids=["in-the-pool", "in-their-own-directory"])
def test_overlay_of_a_stranger_does_not_count(tmp_path: pathlib.Path, kind: str, beside: bool) -> None:
    pool = Pool(tmp_path)
    overlay = pool.overlay(kind, (pool.pool if beside else pool.tenant) / "mine.img")
    before = overlay.read_bytes()
    for check_mode in (True, False):
        (result,) = pool.migrate(check_mode=check_mode)
        assert not result["failed"] and result["repointed"] == [], result["msg"]
        assert "%s names this image as its backing file, but user %d, who owns it" % (overlay, TENANT) in result["warnings"][0]
    assert not pool.base.exists() and (pool.pool / "base.qcow2").exists()
    assert overlay.read_bytes() == before


@pytest.mark.parametrize("kind, reason", [("qcow", "needed"), ("odd", "unsupported")])
def test_overlay_that_counts_keeps_its_base(tmp_path: pathlib.Path, kind: str, reason: str) -> None:
    """Root's own, one that only a service can write in a directory of root's, and a tenant's over a base that they can read."""
    pool = Pool(tmp_path)
    overlay = pool.overlay(kind, pool.pool / "roots.img", owner=0)
    assert pool.migrate()[0]["reason"] == reason
    os.chown(overlay, QEMU, QEMU)
    assert not pool.migrate(check_mode=True)[0]["failed"]
    allow(pool.base, "u:%d:r" % QEMU)
    assert pool.migrate()[0]["reason"] == reason
    overlay.unlink()
    pool.overlay(kind, pool.tenant / "mine.img")
    assert not pool.migrate(check_mode=True)[0]["failed"]
    os.chown(pool.base, TENANT, TENANT)
    assert pool.migrate()[0]["reason"] == reason


def test_overlay_of_roots_counts_whoever_can_write_it(tmp_path: pathlib.Path) -> None:
    """A guest may need it: it keeps its base, and is not forgotten."""
    pool = Pool(tmp_path)
    overlay = pool.overlay("qcow", pool.tenant / "roots.img", owner=0, mode=0o666)
    result = pool.migrate()[0]
    assert result["reason"] == "needed" and str(overlay) in result["msg"]


def test_overlay_of_a_user_whom_the_host_does_not_know_may_be_in_any_group(tmp_path: pathlib.Path) -> None:
    """The directory service may be down, and the user in a group that can read the base."""
    pool = Pool(tmp_path)
    pool.overlay("qcow", pool.tenant / "theirs.img")
    os.chown(pool.base, 0, QEMU)
    assert not pool.migrate(check_mode=True)[0]["failed"]
    pool.base.chmod(0o640)
    assert pool.migrate()[0]["reason"] == "needed"


@pytest.mark.parametrize("owner, mode", [(0, 0o600), (QEMU, 0o644)], ids=["roots", "of-a-running-guest"])
def test_overlay_that_counts_follows(tmp_path: pathlib.Path, owner: int, mode: int) -> None:
    pool = Pool(tmp_path)
    pool.base.chmod(mode)
    overlay = pool.overlay("qcow2", pool.pool / "over.img", owner=owner)
    (result,) = pool.migrate()
    assert result["repointed"] == [str(overlay)], result["msg"]
    shown = subprocess.run([require_tool("qemu-img"), "info", "-U", overlay], check=True, capture_output=True, text=True).stdout
    assert str(pool.pool / "base.qcow2") in shown


@pytest.mark.parametrize("chains", ["preserve", "flatten"])
@pytest.mark.parametrize("first", ["base", "overlay"])
def test_overlay_of_a_stranger_in_the_same_batch_is_refused_alone(tmp_path: pathlib.Path, chains: str, first: str) -> None:
    pool = Pool(tmp_path)
    overlay = pool.overlay("qcow", pool.tenant / "mine.qcow")
    names = [pool.base, overlay] if first == "base" else [overlay, pool.base]
    results = {result["src"]: result for result in pool.migrate(*names, chains=chains)}
    assert results[str(overlay)]["reason"] == "unsafe"
    assert results[str(pool.base)]["changed"], results[str(pool.base)]["msg"]


def test_image_between_that_a_stranger_can_write(tmp_path: pathlib.Path) -> None:
    """Root's overlay over a tenant's over root's base: it is refused, and the base does not wait for it."""
    pool = Pool(tmp_path)
    middle = pool.overlay("qcow2", pool.tenant / "middle.img")
    top = pool.pool / "top.qcow"
    build(ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, backing=Backing(os.fsencode(middle)))).write(top)
    results = {result["src"]: result for result in pool.migrate(top, pool.base)}
    assert results[str(top)]["reason"] == "unsafe"
    assert results[str(pool.base)]["changed"], results[str(pool.base)]["msg"]


def test_crowd_of_overlays_is_told_of_in_few_words(tmp_path: pathlib.Path) -> None:
    pool = Pool(tmp_path)
    overlay = pool.overlay("qcow", pool.tenant / "mine.img")
    for number in range(300):
        made = pool.tenant / ("%03d.img" % number)
        made.write_bytes(overlay.read_bytes())
        give(made)
    (result,) = pool.migrate()
    assert result["changed"] and len(result["warnings"]) < 20 and "and 291 more files like that" in result["warnings"]


def test_overlay_that_comes_and_goes(tmp_path: pathlib.Path) -> None:
    """Renamed back and forth while root plans: it cannot be looked at, and does not count for that."""
    pool = Pool(tmp_path)
    for kind in ("qcow", "qcow2"):
        overlay = pool.overlay(kind, pool.tenant / (kind + ".img"))
        aside = pool.tenant / (kind + ".aside")

        def rename(one: pathlib.Path = overlay, other: pathlib.Path = aside) -> bool:
            one.rename(other)
            other.rename(one)
            return True

        with Attacker(rename) as attacker:
            for _number in attacker.tries(40):
                (result,) = pool.migrate(check_mode=True)
                assert not result["failed"], result["msg"]


def test_overlay_that_its_owner_holds_a_lease_on(tmp_path: pathlib.Path) -> None:
    """Taken as soon as it was seen: nobody can open it then, and it does not count for that."""
    pool = Pool(tmp_path)
    overlay = pool.overlay("qcow", pool.tenant / "mine.img")
    reader, writer = os.pipe()
    pid = 0

    def asked(around: SeenImages) -> list[Request]:
        nonlocal pid
        around._walk([os.fsencode(pool.tenant)], recurse=False)
        around.has_walked([os.fsencode(pool.tree)])
        pid = os.fork()
        if pid == 0:
            try:
                os.setresgid(TENANT, TENANT, TENANT)
                os.setresuid(TENANT, TENANT, TENANT)
                signal.signal(signal.SIGIO, signal.SIG_IGN)  # asked to give it up
                fcntl.fcntl(os.open(overlay, os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
                os.write(writer, b"held")
                time.sleep(60)
            finally:
                os._exit(1)
        assert os.read(reader, 4) == b"held"
        return [Request(os.fsencode(pool.base), retire=True, state_dir=pool.state, backing_dirs=(os.fsencode(pool.tree),))]

    try:
        (result,) = batch.run(asked, batch.Settings(pool.state, reserve=0, check_mode=True))
        with pytest.raises(BlockingIOError):
            os.open(overlay, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    assert not result["failed"], result["msg"]


def test_overlay_that_names_it_through_a_link_of_its_owners(tmp_path: pathlib.Path) -> None:
    pool = Pool(tmp_path)
    link, base = pool.tenant / "link", pool.base
    link.symlink_to(base)
    pool.base = link
    pool.overlay("qcow", pool.tenant / "mine.img")
    (result,) = pool.migrate(base)
    assert result["changed"] and "user %d, who owns it" % TENANT in result["warnings"][0], result


def undo(pool: Pool, *, clean: bool, check_mode: bool = False) -> dict[str, Any]:
    choice = Choice(pool.state, paths=(os.fsencode(pool.pool),), check_mode=check_mode)
    (answer,) = clean_all(choice, min_age=0) if clean else roll_back_all(choice, discard_changes=False)
    return answer


def test_rollback_with_an_overlay_of_a_strangers(tmp_path: pathlib.Path) -> None:
    pool = Pool(tmp_path)
    assert pool.migrate()[0]["changed"]
    pool.base = pool.pool / "base.qcow2"
    overlay = pool.overlay("qcow2", pool.pool / "mine.img", owner=0)
    for check_mode in (True, False):
        assert undo(pool, clean=False, check_mode=check_mode)["reason"] == "needed"
    give(overlay)
    for check_mode in (True, False):
        answer = undo(pool, clean=False, check_mode=check_mode)
        assert answer["changed"] and "%s names this image as its backing file, but user %d" % (overlay, TENANT) in answer["msg"], answer
    assert not pool.base.exists()


@pytest.mark.parametrize("owner", [0, TENANT])
def test_original_that_anything_names_is_not_deleted(tmp_path: pathlib.Path, owner: int) -> None:
    pool = Pool(tmp_path)
    assert pool.migrate()[0]["changed"]
    pool.base = pool.pool / "base.qcow.qcow1.orig"
    overlay = pool.overlay("qcow2", pool.pool / "mine.img", owner=owner)
    answer = undo(pool, clean=True)
    assert answer["reason"] == "needed" and str(overlay) in answer["msg"] and pool.base.exists()
    overlay.unlink()
    assert undo(pool, clean=True)["changed"] and not pool.base.exists()


def test_overlay_of_qemus_user_counts(tmp_path: pathlib.Path) -> None:
    """After a crash it may still belong to them; the right to read its base is given when the guest starts."""
    pool = Pool(tmp_path)
    users = [entry for entry in pwd.getpwall() if entry.pw_name in ("libvirt-qemu", "qemu")]
    require(users, "needs libvirt's user")
    overlay = pool.overlay("qcow2", pool.pool / "over.img", owner=users[0].pw_uid)
    (result,) = pool.migrate()
    assert result["repointed"] == [str(overlay)] and not result["warnings"], result


def test_overlay_that_a_domain_uses_counts(tmp_path: pathlib.Path) -> None:
    """A shut-off domain's, whatever user it belongs to."""
    pool = Pool(tmp_path)
    overlay = pool.overlay("qcow2", pool.pool / "over.img")
    (tmp_path / "libvirt").mkdir()
    daemon = Libvirtd(tmp_path / "libvirt")
    try:
        Guest(daemon, "shop", [disk(overlay, "qcow2")])
        request = Request(os.fsencode(pool.base), retire=True, state_dir=pool.state)
        (result,) = batch.run([request], batch.Settings(pool.state, reserve=0, libvirt_uri=daemon.uri))
    finally:
        daemon.close()
    assert result["repointed"] == [str(overlay)] and not result["warnings"], result
