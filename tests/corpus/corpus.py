# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What piles up on a VM host: version 1 images under all kinds of names, and things that look like them and are none."""

import hashlib
import os
import pathlib
import random
import socket
import stat
import subprocess
from typing import NamedTuple, Optional

from ansible_collections.vmimage.qcow.tests.support import genuine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import BuiltImage, ImageSpec, Packed, Plain, build, smallest

MIB = 1 << 20
OWNER = (12345, 23456)
MTIME_NS = 1_111_111_111_222_333_444


class Image(NamedTuple):
    """A version 1 image in the corpus: its path, and size in bytes and SHA-256 of the disk the guest sees."""

    path: bytes
    size: int
    sha256: str


class Facts(NamedTuple):
    """What must not change about a file that is none of our business, or a retired original."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    content: Optional[bytes]


def facts(path: bytes) -> Facts:
    """The facts of one path; the content of regular files, the target of links, the entries of folders."""
    status = os.lstat(path)
    content = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as source:
            content = hashlib.sha256(source.read()).digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(status.st_mode) and os.access(path, os.R_OK):
        content = b"/".join(sorted(os.listdir(path)))
    return Facts(status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns, status.st_size, content)


class Corpus:
    """A folder with images and lookalikes, made from scratch."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = os.fsencode(root)
        self.images: list[Image] = []
        self.lookalikes: list[bytes] = []
        os.makedirs(self.root)

    def path(self, name: bytes) -> bytes:
        """The path of a name below the root; makes the folders in between."""
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def put(self, name: bytes, image: BuiltImage) -> Image:
        """Add a built image."""
        path = self.path(name)
        image.write(path)
        return self._add(path, image.guest_bytes())

    def _add(self, path: bytes, disk: bytes) -> Image:
        added = Image(path, len(disk), hashlib.sha256(disk).hexdigest())
        self.images.append(added)
        return added

    def add_named_images(self) -> None:
        """Version 1 content under names that say nothing, or something else."""
        names = [
            b"web.qcow",
            b"mail.img",
            b"db.qcow2",
            b"old.raw",
            b"nosuffix",
            b"with  spaces .qcow",
            b"new\nline.qcow",
            b"caf\xe9 \xff.qcow",
            b"-rf.qcow",
            b"'quoted\" {{ braces }}.img",
            b"nested/a/b/c/deep.qcow",
            b"nested/.hidden.qcow",
            "größe.qcow".encode(),
        ]
        for number, name in enumerate(names):
            self.put(name, self.sample(number))
        self._add_attributes(names[1])
        tiny = self.path(b"tiny.qcow")
        pathlib.Path(os.fsdecode(tiny)).write_bytes(smallest(MIB))
        self._add(tiny, bytes(MIB))

    @staticmethod
    def sample(number: int) -> BuiltImage:
        """An image that differs from number to number: plain, compressed, small and large clusters, sizes that are no round numbers."""
        source = random.Random(number)
        bits = [12, 9, 16, 12][number % 4]
        size = MIB + 4096 * number + (300 if number % 5 == 4 else 0)
        indexes = source.sample(range(size >> bits), min(9, size >> bits))
        clusters = {
            index: Packed(b"%d words " % number * 60) if number % 3 == 2 and index % 2 else Plain(source.randbytes(1 << bits))
            for index in indexes
        }
        return build(ImageSpec(size=size, cluster_bits=bits, clusters=clusters, layout=["qemu", "qemu-0.9"][number % 2], order="shuffled"))

    def _add_attributes(self, name: bytes) -> None:
        path = self.path(name)
        os.chmod(path, 0o640)
        if os.geteuid() == 0:
            os.chown(path, *OWNER)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))

    def add_genuine_images(self) -> int:
        """The images written by mkimg, as far as they are at hand; how many."""
        known = genuine.expected()
        folder = pathlib.Path(os.fsdecode(self.path(b"genuine/x"))).parent
        for name in known:
            sample = genuine.unpack(name, folder)
            self.images.append(Image(os.fsencode(sample.path), sample.size, sample.sha256))
        return len(known)

    def add_qemu_img_images(self) -> None:
        """A plain and a compressed image written by qemu-img itself."""
        disk = random.Random(99).randbytes(300_000).ljust(MIB, b"\0") + b"some text " * 100_000
        disk = disk.ljust(3 * MIB, b"\0")
        source = self.path(b"../source.raw")
        with open(source, "wb") as target:
            target.write(disk)
        for name, compressed in ((b"made-by/plain.qcow", False), (b"made-by/compressed.qcow", True)):
            oracle.make_v1(source, self.path(name), compressed=compressed)
            self._add(self.path(name), disk)
        os.unlink(source)

    def add_lookalikes(self) -> None:
        """Everything that is no version 1 image; all of it has to stay as it is."""
        self._lookalike(b"lookalikes/raw.img", random.Random(7).randbytes(MIB))
        self._lookalike(b"lookalikes/notes.qcow", b"QFI is a magic, but this is text\n")
        self._lookalike(b"lookalikes/empty.qcow", b"")
        self._lookalike(b"lookalikes/version4.qcow", b"QFI\xfb\0\0\0\x04" + bytes(4096))
        self._lookalike(b"lookalikes/inside.raw", bytes(512) + smallest(MIB))
        self._lookalike(b"lookalikes/seven.qcow", b"QFI\xfb\0\0\0")
        if "qcow2" in oracle.supported_formats():
            oracle.run("create", "-f", "qcow2", self.path(b"lookalikes/real.qcow2"), "4M")
            oracle.run("create", "-f", "qcow2", "-o", "compat=0.10", self.path(b"lookalikes/version2.qcow"), "4M")
            self.lookalikes += [self.path(b"lookalikes/real.qcow2"), self.path(b"lookalikes/version2.qcow")]
        os.mkfifo(self.path(b"lookalikes/fifo.qcow"))
        with socket.socket(socket.AF_UNIX) as server:
            # A socket's name may be 107 bytes long at most: bind it from inside its folder.
            before = os.getcwd()
            os.chdir(os.path.dirname(self.path(b"lookalikes/socket.qcow")))
            try:
                server.bind("socket.qcow")
            finally:
                os.chdir(before)
        os.symlink(b"missing.qcow", self.path(b"lookalikes/dangling.qcow"))
        os.symlink(b"loop-b.qcow", self.path(b"lookalikes/loop-a.qcow"))
        os.symlink(b"loop-a.qcow", self.path(b"lookalikes/loop-b.qcow"))
        os.symlink(b"..", self.path(b"lookalikes/up"))
        self._lookalike(b"locked/notes.txt", b"nothing to see\n")
        os.chmod(self.path(b"locked"), 0)
        self.lookalikes.append(self.path(b"locked"))
        for name in (b"fifo.qcow", b"socket.qcow", b"dangling.qcow", b"loop-a.qcow", b"loop-b.qcow", b"up"):
            self.lookalikes.append(self.path(b"lookalikes/" + name))
        self.lookalikes.append(os.path.dirname(self.path(b"lookalikes/x")))

    def _lookalike(self, name: bytes, content: bytes) -> None:
        path = self.path(name)
        with open(path, "wb") as target:
            target.write(content)
        self.lookalikes.append(path)

    def lookalike_facts(self) -> dict[bytes, Facts]:
        """Facts of all lookalikes."""
        return {path: facts(path) for path in self.lookalikes}

    def files(self) -> set[bytes]:
        """Every path in the corpus."""
        return {os.path.join(folder, name) for folder, folders, names in os.walk(self.root) for name in folders + names}

    def unlock(self) -> None:
        """Let pytest remove the folder that nobody may read."""
        subprocess.run(["chmod", "-R", "u+rwX", self.root], check=False)
