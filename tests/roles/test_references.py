# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A drill: thirty images and everything that people refer to them by. After a migration, a second one and a rollback, a script that knows nothing of us
follows every reference, and each leads to the disk.
"""

import json
import pathlib
import random
import subprocess
import sys
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
FOLLOW = pathlib.Path(__file__).resolve().parents[1] / "support" / "follow_references.py"


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[Libvirtd]:
    scratch = tmp_path / "libvirt"
    scratch.mkdir()
    daemon = Libvirtd(scratch)
    yield daemon
    daemon.close()


class Estate:
    """Images and what refers to them; ``stated`` are those of which something says the format, or which text names."""

    def __init__(self, root: pathlib.Path, daemon: Libvirtd) -> None:
        self.root, self.daemon = root, daemon
        self.number = 0
        self.stated: set[pathlib.Path] = set()
        root.mkdir()
        self._links()
        self._clones()
        self._domains()
        self._texts()
        while self.number < 30:
            self.image("archive/unused-%d.qcow" % self.number)

    def image(self, name: str) -> pathlib.Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.number += 1
        source = random.Random(self.number)
        build(ImageSpec(size=MIB, clusters={at: Plain(source.randbytes(4096)) for at in source.sample(range(256), 12)})).write(path)
        return path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _links(self) -> None:
        vm = self.root / "vm"
        vm.mkdir()
        images = [self.image("store/%04x.qcow" % number) for number in range(6)]
        (vm / "disk.0").symlink_to("../store/0000.qcow")
        (vm / "disk.1").symlink_to(images[1])
        (vm / "again").symlink_to("disk.1")
        (self.root / "alias").symlink_to("store")
        (vm / "disk.2").symlink_to("../alias/0002.qcow")
        (vm / "disk.3").symlink_to(images[3])
        self.daemon.connection.defineXML(self.domain("linked", disk(vm / "disk.3", "qcow")))
        (self.root / "store" / "name with spaces").symlink_to("0004.qcow")

    def _clones(self) -> None:
        for number, tree in enumerate(("web-clones", "shop-clones", "pool-clones")):
            base = self.image("bases/gold-%d.qcow" % number)
            for clone in range(2):
                path = self.root.parent / tree / ("clone-%d.qcow2" % clone)
                path.parent.mkdir(exist_ok=True)
                subprocess.run(
                    [require_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow", str(path)], check=True
                )
        self.daemon.pool("clones", self.root.parent / "pool-clones")
        # One that only a domain knows, and that is replaced under its own name.
        base = self.image("bases/named.qcow2")
        lone = self.root.parent / "lone" / "disk.qcow2"
        lone.parent.mkdir()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow", str(lone)], check=True)
        self.daemon.connection.defineXML(self.domain("lone", disk(lone, "qcow2")))

    def domain(self, name: str, disks: str, more: str = "") -> str:
        return (
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>%s</name><memory>65536</memory>"
            "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>%s</devices>%s</domain>" % (name, disks, more)
        )

    def _domains(self) -> None:
        self.daemon.connection.defineXML(self.domain("plain", disk(self.image("pool-x/plain.qcow"), "qcow")))
        for name in ("x", "y"):
            volume = self.image("pool-%s/volume.qcow" % name)
            self.daemon.pool(name, volume.parent)
            source = "<source pool='%s' volume='volume.qcow'/>" % name
            element = "<disk type='volume' device='disk'><driver name='qemu' type='qcow'/>%s<target dev='vda'/></disk>" % source
            self.daemon.connection.defineXML(self.domain("volume-" + name, element))
        stated = self.image("pool-y/argument.qcow")
        self.stated.add(stated)
        words = "<qemu:arg value='-drive'/><qemu:arg value='file=%s,format=qcow,if=virtio'/>" % stated
        self.daemon.connection.defineXML(self.domain("argument", "", "<qemu:commandline>%s</qemu:commandline>" % words))

    def _texts(self) -> None:
        named = {
            name: self.image("text/" + name)
            for name in ("tap.qcow", "target.qcow", "vbox.qcow", "shell.qcow", "bare.qcow", "unit a.qcow", "linked.qcow")
        }
        self.stated.update(named.values())
        self.write(
            "etc/xen/guest.xl",
            "name = 'guest'\ndisk = [ 'tap:qcow:%s,xvda,w',\n  'format=qcow, vdev=xvdb, access=rw, target=%s' ]\n"
            % (named["tap.qcow"], named["target.qcow"]),
        )
        self.write(
            "text/guest.vbox",
            '<?xml version="1.0"?>\n<VirtualBox xmlns="http://www.virtualbox.org/"><Machine><MediaRegistry><HardDisks>\n'
            '<HardDisk uuid="{1}" location="vbox.qcow" format="QCOW" type="Normal"/>\n</HardDisks></MediaRegistry></Machine></VirtualBox>\n',
        )
        self.write(
            "etc/start.sh",
            'DIR="%s"\nqemu-system-x86_64 -drive "file=$DIR/shell.qcow,format=qcow,if=virtio"\ncd $DIR\nqemu-system-x86_64 -hda "$PWD/bare.qcow"\n'
            % (self.root / "text"),
        )
        (self.root / "vmlinks").symlink_to("text")
        self.write(
            "etc/guest.service",
            "[Service]\nWorkingDirectory=%s\nExecStart=/usr/bin/qemu-system-x86_64 -drive file=unit\\x20a.qcow,format=qcow -hda %s\n"
            % (self.root / "text", self.root / "vmlinks" / "linked.qcow"),
        )

    def dead(self) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(FOLLOW), str(self.root.parent), self.daemon.uri], check=True, stdout=subprocess.PIPE, text=True
        )
        answer = json.loads(done.stdout)
        assert answer["followed"] >= 30, answer
        return list(answer["dead"])


def test_nothing_that_used_an_image_is_left_behind(tmp_path: pathlib.Path, daemon: Libvirtd) -> None:
    (tmp_path / "vms").mkdir()
    estate = Estate(tmp_path / "vms" / "tree", daemon)
    assert estate.dead() == []
    # The distribution's, for its python3-libvirt.
    controller = Controller(tmp_path, hosts={"localhost": {"ansible_python_interpreter": "/usr/bin/python3"}})
    options = {
        "paths": [str(estate.root)],
        "state_dir": str(tmp_path / "state"),
        "libvirt_uri": daemon.uri,
        "report_dir": str(tmp_path / "reports"),
        "reserve": "1M",
    }
    texts = [str(estate.root / "etc"), str(estate.root / "text")]
    clones = [str(tmp_path / "vms" / name) for name in ("web-clones", "shop-clones")]
    migrate = {"migrate_" + name: value for name, value in options.items()}
    migrate.update(migrate_reference_dirs=texts, migrate_backing_dirs=clones)
    checked = controller.run("migrate", "--check", **migrate)
    assert checked.returncode == 2 and estate.dead() == [], checked.output
    done = controller.run("migrate", **migrate)
    assert done.returncode == 2, done.output
    failed = {image["src"] for image in done.converted if image["failed"]}
    changed = {image["src"] for image in done.converted if image["changed"]}
    assert failed == set(map(str, estate.stated)), done.output
    assert len(failed | changed) == 30 == len(done.converted)
    assert estate.dead() == []
    for image in estate.stated:
        assert str(image) in done.text
    assert "%s, and not elsewhere (backing_dirs)" % (tmp_path / "vms" / "pool-clones") in done.text
    assert "link %s leads to it" % (estate.root / "vm" / "disk.0") in done.text
    again = controller.run("migrate", **migrate)
    assert again.changed == 0 and {image["src"] for image in again.converted if image["failed"]} == failed, again.output
    back = controller.run("rollback", **{"rollback_" + name: value for name, value in options.items() if name != "reserve"})
    assert back.returncode == 0, back.output
    assert estate.dead() == []
    again = controller.run("rollback", **{"rollback_" + name: value for name, value in options.items() if name != "reserve"})
    assert again.changed == 0, again.output
    assert sorted(path.name for path in estate.root.rglob("*.orig")) == [] and len(list(estate.root.rglob("*.qcow*"))) >= 30


def test_the_script_finds_what_is_dead(tmp_path: pathlib.Path, daemon: Libvirtd) -> None:
    """Renaming an image by hand leaves every kind of reference to it dead."""
    (tmp_path / "vms").mkdir()
    estate = Estate(tmp_path / "vms" / "tree", daemon)
    for path in estate.root.rglob("*.qcow"):
        if not path.is_symlink():
            path.rename(str(path) + ".gone")
    dead = {entry["where"].rpartition("/")[2].split(" ")[0] for entry in estate.dead()}
    kinds = ["disk.0", "again", "clone-0.qcow2", "guest.xl", "guest.vbox", "start.sh", "guest.service", "domain", "arguments"]
    assert dead.issuperset(kinds), dead


def test_links_follow_a_plan(tmp_path: pathlib.Path) -> None:
    """The plan names images only; the trees that the scan looked through are looked through again for what leads to them."""
    tree = tmp_path / "tree"
    image, link = tree / "store" / "7f3a.qcow", tree / "vm" / "disk.0"
    image.parent.mkdir(parents=True)
    link.parent.mkdir()
    build(ImageSpec(size=MIB, clusters={3: Plain(b"data")})).write(image)
    link.symlink_to("../store/7f3a.qcow")
    controller = Controller(tmp_path)
    common = {"state_dir": str(tmp_path / "state"), "report_dir": str(tmp_path / "reports")}
    scanned = controller.run("scan", scan_paths=[str(tree)], **{"scan_" + name: value for name, value in common.items()})
    assert scanned.returncode == 0 and "link %s" % link in scanned.text, scanned.output
    migrate = {"migrate_" + name: value for name, value in common.items()}
    done = controller.run("migrate", migrate_plan=str(tmp_path / "reports"), migrate_reserve="1M", **migrate)
    assert done.returncode == 0, done.output
    assert [image["changed"] for image in done.converted] == [True] and link.resolve() == image.with_suffix(".qcow2")
    back = controller.run("rollback", rollback_paths=[str(link)], **{"rollback_" + name: value for name, value in common.items()})
    assert back.returncode == 0 and back.changed == 1 and link.resolve() == image, back.output
