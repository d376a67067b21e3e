# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The reasons to migrate: what libvirt and QEMU cannot do with QCOW v1 is tried on it first, and works on the migrated image."""

import os
import pathlib
import subprocess
import time
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import IGNORE
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20


def v1(directory: pathlib.Path) -> pathlib.Path:
    """A v1 image of 32 MiB, 4 of them noise."""
    raw = directory / "raw"
    with open(raw, "wb") as file:
        file.write(os.urandom(4 * MIB))
        file.truncate(32 * MIB)
    require_tool("qemu-img")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow", str(raw), str(directory / "a.qcow")], check=True)
    return directory / "a.qcow"


def migrated(image: pathlib.Path, uri: str = "", **how: Any) -> pathlib.Path:
    """The same image after its migration, with its domains."""
    state = os.fsencode(image.parent / "state")
    where = {"libvirt_uri": uri} if uri else {"domains": IGNORE}
    (result,) = batch.run([Request(os.fsencode(image), retire=True, state_dir=state, **how)], batch.Settings(state, reserve=0, **where))
    assert not result["failed"], result["msg"]
    return pathlib.Path(result["dest"])


def io(image: pathlib.Path, form: str, *commands: str, options: str = "") -> str:
    """What qemu-io says to these commands; ``qemu-io`` ends with 0 whatever the commands say."""
    arguments = [word for command in commands for word in ("-c", command)]
    source = ["--image-opts", "driver=%s,file.filename=%s%s" % (form, image, options)]
    done = subprocess.run(["qemu-io", *arguments, *source], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def first_sector(image: pathlib.Path) -> list:
    """The guest's first sector in hexadecimal."""
    return [line for line in io(image, "qcow2", "read -v 0 512").splitlines() if line[8:9] == ":"]


def running(daemon: Libvirtd, image: pathlib.Path, form: str, name: str) -> Guest:
    guest = Guest(daemon, name, [disk(image, form)], cmdline="guest=idle")
    guest.domain.create()
    guest.wait("GUEST-UP")
    return guest


def test_internal_snapshot_of_a_running_domain_and_back(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    image = v1(tmp_path)
    guest = running(daemon, image, "qcow", "shop")
    with pytest.raises(daemon.library.libvirtError, match="internal snapshot for disk vda unsupported for storage type qcow"):
        guest.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>")
    guest.domain.destroy()
    migrated(image, daemon.uri)
    guest.domain.create()
    guest.wait("GUEST-UP", 2)
    snapshot = guest.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>")
    assert guest.domain.revertToSnapshot(snapshot) == 0 and guest.domain.isActive()
    snapshot.delete()


def test_an_external_snapshot_records_its_format_and_reverts(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    image = v1(tmp_path)
    # A v1 overlay cannot say what format its backing file has: libvirt takes it for raw.
    over = tmp_path / "over.qcow"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", "-b", str(image), "-F", "qcow", str(over)], check=True)
    told = subprocess.run(["qemu-img", "info", "--output=json", str(over)], capture_output=True, text=True, check=True).stdout
    assert "backing-filename-format" not in told
    over.unlink()

    dest = migrated(image)
    guest = Guest(daemon, "shop", [disk(dest, "qcow2")])
    overlay = tmp_path / "over.qcow2"
    snapshot = guest.domain.snapshotCreateXML(
        "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external'><source file='%s'/></disk></disks></domainsnapshot>"
        % overlay,
        daemon.library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    )
    told = subprocess.run(["qemu-img", "info", "--output=json", str(overlay)], capture_output=True, text=True, check=True).stdout
    assert '"backing-filename-format": "qcow2"' in told
    before = first_sector(dest)
    io(overlay, "qcow2", "write -P 7 0 64k")
    # Back to the snapshot as libvirt before 9.9 leaves it to the operator: the overlay is dropped.
    snapshot.delete(daemon.library.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    assert first_sector(dest) == before != first_sector(overlay)


def test_discard_gives_space_back(tmp_path: pathlib.Path) -> None:
    require_tool("qemu-io")
    image = v1(tmp_path)
    before = image.stat().st_blocks
    io(image, "qcow", "discard 0 4M", "flush", options=",discard=unmap,file.discard=unmap")
    assert image.stat().st_blocks >= before
    dest = migrated(image)
    before = dest.stat().st_blocks
    assert before * 512 >= 4 * MIB
    io(dest, "qcow2", "discard 0 4M", "flush", options=",discard=unmap,file.discard=unmap")
    assert dest.stat().st_blocks * 512 < MIB


def test_incremental_backup_with_a_checkpoint(daemon: Libvirtd, tmp_path: pathlib.Path) -> None:
    image = v1(tmp_path)
    checkpoint = "<domaincheckpoint><name>c1</name></domaincheckpoint>"
    full = "<domainbackup><disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks></domainbackup>"
    guest = running(daemon, image, "qcow", "shop")
    with pytest.raises(daemon.library.libvirtError, match="checkpoint.* unsupported|not supported|cannot"):
        guest.domain.checkpointCreateXML(checkpoint)
    guest.domain.destroy()
    migrated(image, daemon.uri)
    guest.domain.create()
    guest.wait("GUEST-UP", 2)
    guest.domain.backupBegin(full % (tmp_path / "full.qcow2"), checkpoint)
    wait_for_backup(guest)
    changed = full.replace("<domainbackup>", "<domainbackup><incremental>c1</incremental>")
    guest.domain.backupBegin(changed % (tmp_path / "next.qcow2"), None)
    wait_for_backup(guest)
    sizes = [(tmp_path / name).stat().st_blocks * 512 for name in ("full.qcow2", "next.qcow2")]
    assert sizes[0] >= 4 * MIB > MIB > sizes[1]


def wait_for_backup(guest: Guest) -> None:
    end = time.monotonic() + 120
    while guest.domain.jobInfo()[0] != guest.library.VIR_DOMAIN_JOB_NONE:
        assert time.monotonic() < end, "the backup does not end"
        time.sleep(0.2)


def test_lazy_refcounts_and_extended_l2(tmp_path: pathlib.Path) -> None:
    image = v1(tmp_path)
    refused = subprocess.run(
        ["qemu-img", "create", "-f", "qcow", "-o", "lazy_refcounts=on", str(tmp_path / "no"), "1M"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0 and "lazy_refcounts" in refused.stderr
    assert (
        "does not support"
        in subprocess.run(
            ["qemu-img", "amend", "-f", "qcow", "-o", "extended_l2=on", str(image)], capture_output=True, text=True, check=False
        ).stderr
    )
    dest = migrated(image, lazy_refcounts=True, extended_l2=True)
    told = subprocess.run(["qemu-img", "info", str(dest)], capture_output=True, text=True, check=True).stdout
    assert "lazy refcounts: true" in told and "extended l2: true" in told
    io(dest, "qcow2", "write -P 9 20M 2k", "flush")  # one subcluster of a new cluster
    assert "pattern" not in io(dest, "qcow2", "read -P 9 20M 2k").lower()
    subprocess.run(["qemu-img", "check", "-q", str(dest)], check=True)
