# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the engine does, without Ansible, against the programs that do such work."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

from ansible_collections.vmimage.qcow.bench import images, measure
from ansible_collections.vmimage.qcow.bench.measure import Contest
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted

MIB = 1 << 20
_MOST_WRITTEN = 3 << 30  # bytes: more than any case writes at scale 1
CONVERT = ["qemu-img", "convert", "-f", "qcow", "-O"]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    work: str
    peer: str
    goal: float  # times faster than the peer
    contest: Contest
    factor: float = 1.0  # the peer was given this part of the work only, and its time is multiplied


class Bench:
    """A directory for images and results, and how much to do.

    :param scale: 1 for the sizes of the table; less for a trial run.
    """

    def __init__(self, folder: str, scale: float, pairs: int) -> None:
        self.folder = folder
        self.scale = scale
        self.pairs = pairs
        self.state = os.path.join(folder, "state")

    def size(self, mib: int) -> int:
        """Bytes of ``mib`` MiB at the scale, whole MiB."""
        return max(4, int(mib * self.scale)) * MIB

    def path(self, name: str) -> str:
        """A file's name in the directory."""
        return os.path.join(self.folder, name)

    def made(self, name: str, make: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        """An image; made when it is asked for first, and read once, so that both sides find it in the page cache."""
        path = self.path(name)
        if not os.path.exists(path):
            make(path, *arguments, **options)
        with open(path, "rb") as stream:
            while stream.read(8 * MIB):
                pass
        return path

    def ours(self, src: str, dest: str, **options: Any) -> List[str]:
        """The command that migrates one image as the module would; unverified unless asked for."""
        return engine(do="migrate", state_dir=self.state, images=[[src, dest]], **{"verify": False, **options})

    def contest(
        self,
        ours: Sequence[str],
        theirs: Sequence[str],
        results: Sequence[str],
        check: Optional[Callable[[], None]] = None,
        most: Optional[int] = None,
    ) -> Contest:
        """See :func:`measure.contest`. :param most: pairs, where the peer is too slow for as many as were asked for."""
        return measure.contest(ours, theirs, min(self.pairs, most or self.pairs), results, int(_MOST_WRITTEN * self.scale), check)


def amount(size: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB")):
        if size >= unit and not size % unit:
            return "{0} {1}".format(size // unit, name)
    return "{0} MiB".format(size // MIB)


def engine(**order: Any) -> List[str]:
    """The command for our side."""
    return [sys.executable, "-m", "ansible_collections.vmimage.qcow.bench.engine", json.dumps(order)]


def identical(dest: str, dest_format: str, src: str) -> Callable[[], None]:
    """A check that the guest sees the same in both."""

    def check() -> None:
        subprocess.run(["qemu-img", "compare", "-q", "-f", dest_format, "-F", "qcow", dest, src], check=True)
        if dest_format == "qcow2":
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", dest], check=True)

    return check


def dense(bench: Bench) -> Iterator[Row]:
    """Conversions of an image whose clusters all hold incompressible data, in order."""
    src, dest = bench.made("dense.qcow", images.dense, bench.size(2048)), bench.path("dense.result")
    title = "dense, {0} -> ".format(amount(bench.size(2048)))
    defaults = [*CONVERT, "qcow2", src, dest]

    def against(name: str, to: str, peer: str, goal: float, theirs: Sequence[str], **options: Any) -> Row:
        check = identical(dest, options.get("format", "qcow2"), src)
        return Row("dense", title + to, peer, goal, bench.contest(bench.ours(src, dest, **options), theirs, [dest], check))

    yield against("dense", "qcow2", "qemu-img convert", 10, defaults)
    yield against(
        "dense", "qcow2", "qemu-img convert -m 16 -W", 5, ["qemu-img", "convert", "-m", "16", "-W", *CONVERT[2:], "qcow2", src, dest]
    )
    yield against("dense", "qcow2", "cp --reflink=never", 1 / 1.5, ["cp", "--reflink=never", src, dest])
    yield against("dense", "raw", "qemu-img convert", 12, [*CONVERT, "raw", src, dest], format="raw")
    yield against("dense", "qcow2, verified and fingerprinted", "qemu-img convert alone", 4, defaults, verify=True)
    os.unlink(src)


def shuffled(bench: Bench) -> Iterator[Row]:
    """The same, the clusters in random order."""
    src, dest = bench.made("shuffled.qcow", images.shuffled, bench.size(2048)), bench.path("shuffled.result")
    result = bench.contest(bench.ours(src, dest), [*CONVERT, "qcow2", src, dest], [dest], identical(dest, "qcow2", src))
    yield Row("shuffled", "shuffled 4 KiB clusters, {0} -> qcow2".format(amount(bench.size(2048))), "qemu-img convert", 7, result)
    os.unlink(src)


def compressed(bench: Bench) -> Iterator[Row]:
    """Compressed images."""
    src, dest = bench.made("compressed.qcow", images.compressed, bench.size(512)), bench.path("compressed.result")
    what = "compressed, {0} -> ".format(amount(bench.size(512)))
    result = bench.contest(bench.ours(src, dest), [*CONVERT, "qcow2", src, dest], [dest], identical(dest, "qcow2", src))
    yield Row("compressed", what + "qcow2", "qemu-img convert", 5, result)
    theirs = ["qemu-img", "convert", "-c", *CONVERT[2:], "qcow2", src, dest]
    ours = bench.ours(src, dest, compression="zlib", cluster_size=4096)
    result = bench.contest(ours, theirs, [dest], identical(dest, "qcow2", src), most=3)
    yield Row("compressed", what + "compressed qcow2, streams carried over", "qemu-img convert -c", 10, result)
    result = bench.contest(bench.ours(src, dest, layout="keep"), theirs, [dest], identical(dest, "qcow2", src), most=3)
    yield Row("compressed", what + "compressed qcow2, layout kept", "qemu-img convert -c", 10, result)
    os.unlink(src)


def sparse(bench: Bench) -> Iterator[Row]:
    """Cost of virtual size."""
    src, dest = bench.path("sparse.qcow"), bench.path("sparse.result")
    images.sparse(src, bench.size(1 << 20), 64 * MIB)
    result = bench.contest(bench.ours(src, dest), [*CONVERT, "qcow2", src, dest], [dest], most=1)
    yield Row("sparse", "{0} holding 64 MiB -> qcow2".format(amount(bench.size(1 << 20))), "qemu-img convert", 150, result)
    os.unlink(src)


def overlay(bench: Bench) -> Iterator[Row]:
    """Statistics of an overlay that holds nothing."""
    src = bench.path("overlay.qcow")
    images.overlay(src, bench.size(64 << 10))
    theirs = ["qemu-img", "map", "--output=json", "--image-opts"]
    theirs += ["driver=qcow,file.filename={0},backing.driver=raw,backing.file.filename={0}.base".format(src)]
    result = bench.contest(engine(do="info", paths=[src]), theirs, [], most=1)
    yield Row(
        "overlay",
        "qcow_info of an empty overlay of {0}, 512-byte clusters".format(amount(bench.size(64 << 10))),
        "qemu-img map",
        500,
        result,
    )
    for path in (src, src + ".base"):
        os.unlink(path)


def reflink(bench: Bench) -> Iterator[Row]:
    """On a filesystem that shares blocks."""
    with _filesystem(bench, "xfs") as folder:
        inside = Bench(folder, bench.scale, bench.pairs)
        src, dest = inside.made("dense.qcow", images.dense, bench.size(2048)), inside.path("dense.result")
        what = "dense, {0} on XFS -> ".format(amount(bench.size(2048)))
        for to, options in (("raw", {"format": "raw"}), ("qcow2", {}), ("qcow2 (layout kept)", {"layout": "keep"})):
            kind = options.get("format", "qcow2")
            ours = inside.ours(src, dest, **options)
            result = bench.contest(ours, [*CONVERT, kind, src, dest], [dest], identical(dest, kind, src), most=3)
            yield Row("reflink", what + to, "qemu-img convert", 200, result)
        result = bench.contest(inside.ours(src, dest), ["cp", "--reflink=always", src, dest], [dest])
        yield Row("reflink", what + "qcow2", "cp --reflink=always", 0, result)


@contextlib.contextmanager
def _filesystem(bench: Bench, fstype: str) -> Iterator[str]:
    folder = bench.path("mounts")
    os.makedirs(folder)
    try:
        with mounted(fstype, folder, size_mib=max(512, bench.size(2048) // MIB * 3)) as point:
            yield point
    finally:
        shutil.rmtree(folder)


def tree(bench: Bench) -> Iterator[Row]:
    """Finding the images of a tree."""
    folder = bench.path("tree")
    files = max(2000, int(200000 * bench.scale) // 100 * 100)
    count = max(1, files // 2000)
    images.tree(folder, files, count)
    ours = engine(do="info", paths=[folder], report="v1")
    what = "qcow_info of a tree of {0:,} files, {1} images in it".format(files, count)
    result = bench.contest(ours, ["find", folder, "-type", "f", "-fprint", "/dev/null"], [])
    yield Row("tree", what, "find -type f", 1 / 4, result)
    # A process for every file takes a quarter of an hour: the peer gets one directory in a hundred.
    part = 100 if files >= 100000 else 4
    folders = sorted(os.path.join(top, name) for top, names, _files in os.walk(folder) for name in names if len(name) == 3)[::part]
    theirs = ["find", *folders, "-type", "f", "-exec", "qemu-img", "info", "{}", ";"]
    result = bench.contest(ours, theirs, [], most=3)
    yield Row("tree", what, "find -exec qemu-img info", 300, result, files / (len(folders) * 100))
    shutil.rmtree(folder)


ENGINE = (dense, shuffled, compressed, sparse, overlay, reflink, tree)
