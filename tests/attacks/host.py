# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host with a tenant's directory, and something of root's that the tenant is after."""

import os
import pathlib
from typing import Any

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.attacks.attacker import exchange, give
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build

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
        self.make_good()
        give(self.tenant, self.tenant / "images")
        self.before = self.roots_files()

    def _make_image(self) -> None:
        build(ImageSpec(size=MIB, clusters={5: Plain(b"tenant")})).write(self.image)
        give(self.image)

    def make_good(self) -> None:
        """The other image, which nobody attacks."""
        build(ImageSpec(size=MIB, clusters={6: Plain(b"other")})).write(self.other / "good.qcow")

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

    def results(self) -> list[bytes]:
        """What is in the tenant's results."""
        return [path.read_bytes() for path in self.tenant.rglob("*.qcow2") if path.is_file()]
