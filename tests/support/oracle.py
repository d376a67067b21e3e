# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other people's readers of QCOW version 1, asked what an image holds: qemu-img first, libqcow (pyqcow) as a third opinion.

What qemu-img says about a *sound* image is right. It turns damage into zeros and drops the last bytes of a disk that is no multiple of
512, so only sound images may be judged by it. libqcow misreads some sound ones: ask ``libqcow_can_read`` first.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from typing import Any, NamedTuple, Optional, Sequence, Union

from ansible_collections.vmimage.qcow.tests.support.builder import BuiltImage, Entry
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

try:
    import pyqcow
except ImportError:
    pyqcow = None

Path = Union[str, bytes, os.PathLike]
SECTOR = 512


class OracleError(Exception):
    """qemu-img failed where the test expected an answer."""


class Node(NamedTuple):
    """One file of a chain: its path, the name of qemu's driver for it, and the file that holds its password, if any."""

    path: Path
    driver: str = "qcow"
    secret: Optional[Path] = None


def supported_formats() -> frozenset[str]:
    """The drivers ``qemu-img --help`` lists; empty when there is no qemu-img. Tests put other programs of that name first in PATH."""
    program = shutil.which("qemu-img")
    return frozenset() if program is None else _formats_of(program)


@functools.lru_cache(maxsize=None)
def _formats_of(program: str) -> frozenset[str]:
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    for line in text.splitlines():
        # "Supported formats:" up to 10.0, "Supported image formats:" from 10.2 on.
        if line.startswith("Supported") and "formats:" in line:
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def require_qemu_img() -> None:
    """Skip the test (fail it under CI) where there is no qemu-img."""
    require_tool("qemu-img")


def require_v1_driver() -> None:
    """Skip the test (fail it under CI) where qemu-img cannot read QCOW version 1."""
    require_qemu_img()
    require("qcow" in supported_formats(), "qemu-img was built without the QCOW version 1 driver")


def run(*arguments: Path, allowed: Sequence[int] = (0,)) -> subprocess.CompletedProcess:
    """Run qemu-img; raise OracleError with its words when it exits with another code than ``allowed``."""
    done = subprocess.run([require_tool("qemu-img"), *arguments], capture_output=True, check=False)
    if done.returncode not in allowed:
        raise OracleError(
            "qemu-img %s: exit %d: %s%s"
            % (
                " ".join(map(repr, arguments)),
                done.returncode,
                done.stderr.decode("utf-8", "replace"),
                done.stdout.decode("utf-8", "replace"),
            )
        )
    return done


def node_options(nodes: Sequence[Node]) -> tuple[list[Path], str]:
    """Arguments that name a chain (top first) with a driver for every node: (``--object`` arguments, ``--image-opts`` string)."""
    objects: list[Path] = []
    options = []
    prefix = ""
    for number, node in enumerate(nodes):
        # A chain of regular files only; a comma inside a name is doubled for the option parser.
        options.append("%sdriver=%s" % (prefix, node.driver))
        if node.driver == "raw":
            options.append("%sfile.driver=file" % prefix)
        options.append("%sfile.filename=%s" % (prefix, os.fsdecode(node.path).replace(",", ",,")))
        if node.secret is not None:
            objects += ["--object", "secret,id=s%d,file=%s" % (number, os.fsdecode(node.secret).replace(",", ",,"))]
            options.append("%sencrypt.key-secret=s%d" % (prefix, number))
        prefix += "backing."
    return objects, ",".join(options)


def to_raw(target: Path, *nodes: Node) -> None:
    """Write what the guest reads from a chain (top first) to ``target``; every driver is named, nothing is probed."""
    objects, options = node_options(nodes)
    run("convert", *objects, "--image-opts", "-O", "raw", options, target)


def guest_bytes(*nodes: Node) -> bytes:
    """What the guest reads from a chain (top first), as far as whole sectors go."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as directory:
        target = os.path.join(directory, "disk.raw")
        to_raw(target, *nodes)
        with open(target, "rb") as source:
            return source.read()


def make_v1(source: Path, target: Path, *, compressed: bool = False, source_driver: str = "raw") -> None:
    """Let qemu-img write a QCOW version 1 image.

    ``convert -c -O qcow`` ends with exit code 1 and no message although the image is complete (6.0 to 10.2), so its code says nothing
    and the result is compared with the source instead.
    """
    flags = ["-c"] if compressed else []
    run("convert", *flags, "-f", source_driver, "-O", "qcow", source, target, allowed=(0, 1) if compressed else (0,))
    if compressed and not identical(Node(source, source_driver), Node(target)):
        raise OracleError("qemu-img convert -c wrote an image that differs from its source: %r" % target)


def identical(left: Node, right: Node) -> bool:
    """Whether two images without passwords and backing files hold the same disk (``qemu-img compare``, not strict about size)."""
    return run("compare", "-f", left.driver, "-F", right.driver, left.path, right.path, allowed=(0, 1)).returncode == 0


def check(path: Path, driver: str = "qcow2") -> dict[str, Any]:
    """The JSON answer of ``qemu-img check``, with its exit code as ``returncode`` (0 clean, 2 corrupt, 3 leaks, 63 no such check)."""
    done = run("check", "-f", driver, "--output", "json", path, allowed=(0, 1, 2, 3, 63))
    answer = json.loads(done.stdout or b"{}")
    answer["returncode"] = done.returncode
    return answer


def assert_clean(path: Path) -> None:
    """Fail when ``qemu-img check`` finds corruption or leaks in a qcow2 image."""
    answer = check(path)
    assert answer["returncode"] == 0 and not answer.get("corruptions") and not answer.get("leaks"), answer


def block_map(path: Path, driver: str = "qcow") -> list[dict[str, Any]]:
    """``qemu-img map``: the allocated and unallocated runs of an image (costs time per virtual cluster on version 1)."""
    return json.loads(run("map", "-f", driver, "--output", "json", path).stdout)


def info(path: Path, driver: Optional[str] = None) -> dict[str, Any]:
    """``qemu-img info``; without ``driver`` qemu-img probes, which only tests about probing may want."""
    flags = [] if driver is None else ["-f", driver]
    return json.loads(run("info", *flags, "--output", "json", path).stdout)


def libqcow_can_read(image: BuiltImage) -> bool:
    """Whether an image lies inside what libqcow 20260703 reads right. Backing files are not asked of it.

    Measured: it fails on or misreads byte-packed streams with 512-byte clusters, L2 tables of 64 KiB (and of 32 KiB with 64 KiB
    clusters), clusters that are only sector-aligned, files under 512 bytes, passwords over 16 bytes or not ASCII; it refuses compressed
    clusters in an encrypted image; it takes 4 << l2_bits bytes for the L1 table, whatever lies there, and wants L2 tables no larger than a
    cluster.
    """
    spec = image.spec
    if pyqcow is None or spec.backing or spec.xen or spec.size % SECTOR or image.length < SECTOR:
        return False
    password = spec.password or b""
    if (
        spec.l2_bits == 13
        or spec.l2_bits + 3 > spec.cluster_bits
        or (spec.l2_bits, spec.cluster_bits) == (12, 16)
        or len(password) > 16
        or not password.isascii()
    ):
        return False
    table_end = image.l1_at + (4 << spec.l2_bits)
    others = [*image.l2_at.values(), *(offset for offset, _stored in image.places.values()), image.length]
    if 8 * spec.l1_entries > 4 << spec.l2_bits or any(offset < table_end for offset in others):
        return False
    packed = any(entry >> 63 for entry in image.entries.values())
    if packed and (spec.cluster_bits == 9 or spec.password is not None):
        return False
    odd_places = any(not entry >> 63 and entry % spec.cluster_size for entry in image.entries.values()) or any(
        isinstance(cluster, Entry) for cluster in spec.clusters.values()
    )
    return not odd_places and not spec.l2_skew and not spec.l1_patch and not spec.l2_patch


def libqcow_bytes(path: Path, size: int, password: Optional[bytes] = None) -> bytes:
    """The first ``size`` guest bytes of an image as libqcow reads them."""
    image = pyqcow.file()
    if password is not None:
        image.set_password(password.decode("utf-8"))
    image.open(os.fsdecode(path))
    try:
        pieces = []
        while size > 0:
            piece = image.read_buffer(min(size, 1 << 20))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
    finally:
        image.close()
