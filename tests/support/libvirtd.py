# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real libvirtd and real guests for tests, without touching the libvirt of the machine.

The daemon runs in mount and network namespaces of its own; its configuration, state and socket are in a scratch directory, and the
socket is reached from outside through it. Needs root.
"""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List

from ansible_collections.vmimage.qcow.tests.support.require import require, require_root, require_tool

ROOT = pathlib.Path(__file__).resolve().parents[2]

_ENTER = """
set -e
ip link set lo up
mkdir -p /run/libvirt /var/lib/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/etc" /etc/libvirt
exec libvirtd --pid-file "$1/pid"
"""


def binding(scratch: pathlib.Path) -> Any:
    """The module libvirt: of this Python, or the distribution's where it was built for the same version of Python."""
    try:
        return importlib.import_module("libvirt")
    except ImportError:
        pass
    show = "import sys, libvirt, libvirtmod; print(*sys.version_info[:2], libvirt.__file__, libvirtmod.__file__, sep='\\n')"
    found = subprocess.run(["/usr/bin/python3", "-c", show], capture_output=True, text=True, check=False).stdout.split("\n")
    require(
        found[:2] == [str(number) for number in sys.version_info[:2]],
        "needs libvirt-python for this Python (or its distribution's python3-libvirt)",
    )
    place = scratch / "binding"
    place.mkdir()
    for file in found[2:4]:
        (place / os.path.basename(file)).symlink_to(file)
    sys.path.append(str(place))
    return importlib.import_module("libvirt")


class Libvirtd:
    """The daemon; ``uri`` reaches it. ``close`` ends its guests and itself."""

    def __init__(self, scratch: pathlib.Path) -> None:
        require_root()
        for tool in ("libvirtd", "qemu-system-x86_64", "qemu-img", "unshare", "ip"):
            require_tool(tool)
        self.library = binding(scratch)
        self.library.registerErrorHandler(lambda context, error: None, None)
        self.scratch = scratch
        for name in ("run", "lib", "images"):
            (scratch / name).mkdir()
        shutil.copytree("/etc/libvirt", scratch / "etc", ignore=shutil.ignore_patterns("*.xml"))
        (scratch / "etc" / "qemu.conf").write_text(
            'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nstdio_handler = "file"\nnamespaces = []\n'
        )
        (scratch / "etc" / "libvirtd.conf").write_text('auth_unix_ro = "none"\nauth_unix_rw = "none"\n')
        with open(scratch / "libvirtd.log", "wb") as log:
            self._daemon = subprocess.Popen(
                ["unshare", "-m", "-n", "--propagation", "private", "sh", "-c", _ENTER, "libvirtd", str(scratch)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.uri = "qemu+unix:///system?socket=%s/run/libvirt-sock" % scratch
        self.connection = self._connect()

    def _connect(self) -> Any:
        # The first start on a machine asks every emulator for its capabilities: about 15 seconds.
        end = time.monotonic() + 90
        while True:
            try:
                return self.library.open(self.uri)
            except self.library.libvirtError:
                if time.monotonic() > end or self._daemon.poll() is not None:
                    self._daemon.kill()
                    raise AssertionError("libvirtd does not answer: " + (self.scratch / "libvirtd.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def close(self) -> None:
        """End all guests, then the daemon."""
        self.clear()
        self.connection.close()
        self._daemon.terminate()
        try:
            self._daemon.wait(20)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def clear(self) -> None:
        """Forget every domain and pool."""
        for domain in self.connection.listAllDomains():
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefineFlags(
                    self.library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | self.library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | self.library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                )
        for pool in self.connection.listAllStoragePools():
            if pool.isActive():
                pool.destroy()
            pool.undefine()

    def pool(self, name: str, path: pathlib.Path, *, active: bool = True) -> Any:
        """A directory pool."""
        pool = self.connection.storagePoolDefineXML(
            "<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>" % (name, path)
        )
        if active:
            pool.create()
        return pool


class Guest:
    """A defined domain with the tiny guest of tests/lab/guest.sh, its disks and what it said on its console."""

    def __init__(self, daemon: Libvirtd, name: str, disks: List[str], *, cmdline: str = "guest=sha", more: str = "") -> None:
        files = guest_files()
        self.library = daemon.library
        self.console = daemon.scratch / ("%s.console" % name)
        self.console.unlink(missing_ok=True)
        self.domain = daemon.connection.defineXML(
            """<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
            <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
            <cmdline>console=ttyS0 quiet panic=1 {cmdline}</cmdline></os><features><acpi/></features>
            <devices>{disks}<serial type='file'><source path='{console}' append='on'/></serial>{more}</devices></domain>""".format(
                name=name, cmdline=cmdline, disks="".join(disks), console=self.console, more=more, **files
            )
        )

    def xml(self) -> str:
        """Its exact definition."""
        return str(self.domain.XMLDesc(self.library.VIR_DOMAIN_XML_INACTIVE | self.library.VIR_DOMAIN_XML_SECURE))

    def lines(self, prefix: str) -> List[List[str]]:
        """What the guest said so far in lines that begin with this word, split into words."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        found = [line[line.index("GUEST-") :].split() for line in text.splitlines() if "GUEST-" in line]
        return [words for words in found if words[0] == prefix]

    def wait(self, prefix: str, count: int = 1, timeout: float = 300) -> List[List[str]]:
        """Wait until it has said that so many times."""
        end = time.monotonic() + timeout
        while len(self.lines(prefix)) < count:
            assert time.monotonic() < end, "the guest did not say %s: %s" % (prefix, self.console.read_text(errors="replace")[-500:])
            time.sleep(0.1)
        return self.lines(prefix)

    def wait_off(self, timeout: float = 300) -> None:
        """Wait until it has powered off."""
        end = time.monotonic() + timeout
        while self.domain.isActive():
            assert time.monotonic() < end, "the guest did not power off"
            time.sleep(0.1)

    def boot(self) -> Dict[str, str]:
        """Boot it, and return the SHA-256 it saw of each disk."""
        before = len(self.lines("GUEST-SHA"))
        self.domain.create()
        self.wait_off()
        return {words[1]: words[2] for words in self.lines("GUEST-SHA")[before:]}


def guest_files() -> Dict[str, str]:
    """Kernel and initramfs of the tiny guest, built once into the lab's cache."""
    directory = pathlib.Path(os.environ.get("LAB_DIR", str(ROOT / "build" / "lab"))) / "cache" / "guest"
    built = subprocess.run([str(ROOT / "tests" / "lab" / "guest.sh"), "build", str(directory)], capture_output=True, text=True, check=False)
    require(built.returncode != 77, built.stderr.strip())
    assert built.returncode == 0, built.stderr
    return {"kernel": str(directory / "vmlinuz"), "initrd": str(directory / "initrd.gz")}


def disk(path: object, format_name: str, target: str = "vda") -> str:
    """A disk element."""
    return "<disk type='file' device='disk'><driver name='qemu' type='{1}'/><source file='{0}'/><target dev='{2}' bus='virtio'/></disk>".format(
        path, format_name, target
    )
