# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A directory of images, and a real libvirt whose domains use them."""

import os
import pathlib
import random
import subprocess
from typing import Any, Dict, List

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, domain_policy
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd


class Host:
    """A directory of images, and the libvirt that uses them."""

    def __init__(self, daemon: Libvirtd, directory: pathlib.Path) -> None:
        self.daemon = daemon
        self.directory = directory / "images"
        self.directory.mkdir()
        self.state = directory / "state"
        self.journal = self.state / "domain-journal"

    def image(self, name: str, *arguments: str) -> pathlib.Path:
        """A v1 image of 32 MiB with some data."""
        raw = self.directory.parent / "plain"
        chance = random.Random(name)
        with open(raw, "wb") as file:
            file.truncate(32 << 20)
            for _index in range(10):
                file.seek(chance.randrange(0, 8 << 20) // 4096 * 4096)
                file.write(chance.randbytes(16384))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow", *arguments, str(raw), str(self.directory / name)], check=True)
        return self.directory / name

    def run(self, *images: pathlib.Path, check_mode: bool = False, **how: Any) -> List[Dict[str, Any]]:
        """Migrate them as the role does."""
        request = {key: how.pop(key) for key in list(how) if key in Request._fields}
        policy = domain_policy.Policy(how.pop("running", "refuse"), 240)
        settings = batch.Settings(
            os.fsencode(self.state), reserve=0, check_mode=check_mode, libvirt_uri=self.daemon.uri, running=policy, **how
        )
        wanted = [Request(os.fsencode(image), retire=True, state_dir=settings.state_dir, **request) for image in images]
        self.recovered: List[Dict[str, Any]] = []
        return batch.run(wanted, settings, self.recovered)

    def starts(self, name: str) -> int:
        """The number libvirt gave it when it was started last; each start takes the next."""
        return int(self.daemon.connection.lookupByName(name).ID())

    def names(self) -> List[str]:
        """What lies in the directory."""
        return sorted(path.name for path in self.directory.iterdir())


def up(host: Host, name: str, *disks: str, cmdline: str = "guest=idle") -> Guest:
    """A guest that runs."""
    guest = Guest(host.daemon, name, list(disks), cmdline=cmdline)
    guest.domain.create()
    guest.wait("GUEST-WROTE" if "write" in cmdline else "GUEST-UP")
    return guest
