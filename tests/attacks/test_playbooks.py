# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks as a person runs them, while a tenant exchanges names: nothing of root's is read, written or named, and nobody else's image waits."""

import contextlib
import os
import pathlib
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.tests.attacks.attacker import Attacker, exchange, give
from ansible_collections.vmimage.qcow.tests.attacks.host import SECRET, TRIES, Host
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, build
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller
from ansible_collections.vmimage.qcow.tests.support.require import require_root

ROUNDS = max(1, TRIES // 40)
"""A playbook takes some hundred times as long as what is attacked in it."""


def base(host: Host) -> Callable[[], bool]:
    """The raw base of an overlay, and a link to root's file."""
    images = host.tenant / "images"
    build(ImageSpec(size=len(SECRET), clusters={}, backing=Backing(b"base.raw"))).write(host.image)
    (images / "base.raw").write_bytes(b"the tenant's own" * 1056)
    (images / "link").symlink_to(host.secret)
    give(images / "base.raw", images / "link", host.image)
    return lambda: exchange(images / "base.raw", images / "link")


def directory(host: Host) -> Callable[[], bool]:
    """The directory of the images, and a link to root's."""
    for name in ("disk.qcow", "disk.qcow2", "disk.qcow.qcow1.orig"):
        (host.roots / name).write_bytes(host.image.read_bytes())
    lure = host.tenant / "lure"
    lure.symlink_to(host.roots)
    give(lure)
    return lambda: exchange(host.tenant / "images", lure)


def temporary(host: Host) -> Callable[[], bool]:
    """Whatever has a temporary name, and a link to root's file."""
    images, lure = host.tenant / "images", host.tenant / "lure"
    lure.symlink_to(host.secret)
    give(lure)

    def act() -> bool:
        with contextlib.suppress(OSError):
            lure.is_symlink() or (lure.unlink(), lure.symlink_to(host.secret))  # type: ignore[func-returns-value]
        return any(exchange(images / name, lure) for name in os.listdir(images) if name.endswith(".tmp"))

    return act


@pytest.mark.parametrize("race", [base, directory, temporary])
def test_default_playbooks(tmp_path: pathlib.Path, race: Callable[[Host], Callable[[], bool]], tell: Any) -> None:
    require_root()
    host = Host(tmp_path)
    act = race(host)
    before = host.roots_files()
    controller = Controller(tmp_path)
    common = {"state_dir": os.fsdecode(host.state), "paths": [os.fspath(host.tenant / "images"), os.fspath(host.other)]}
    migrate = {"migrate_" + name: value for name, value in common.items()}
    migrate.update(
        migrate_compression="zstd",
        migrate_chains="flatten",
        migrate_backing_formats={os.fspath(host.tenant / "images" / "base.raw"): "raw"},
    )
    converted = undone = 0
    with Attacker(act) as attacker:
        for number in attacker.tries(ROUNDS):
            played = controller.run("migrate", **migrate)
            assert (host.other / "good.qcow2").exists(), played.output
            assert played.counts, played.output
            assert not [data for data in host.results() if SECRET[:64] in data], "root's file is in the result"
            converted += bool(host.results())
            undo, options = ("rollback", {"discard_changes": True}) if number % 2 else ("cleanup", {"min_age_days": 0})
            played = controller.run(undo, **{"%s_%s" % (undo, name): value for name, value in {**common, **options}.items()})
            assert played.counts, played.output
            undone += played.changed > 0
            assert host.roots_files() == before
            with attacker.paused():
                host.reset()
                if not (host.other / "good.qcow").exists():
                    host.make_good()
    tell(
        "%d rounds of playbooks, %d converted the tenant's image, %d undid something; root's files are as they were"
        % (number + 1, converted, undone)
    )
