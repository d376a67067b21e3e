# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A filesystem that calls data a hole (``SEEK_DATA``, ``SEEK_HOLE``), to the copy and to the verification alike.

Each lie is first shown to fool the copy: without verification the guest would have seen zeros. With it nothing is published, the source is
untouched, and the error says what and where. tests/support/lies.c does the lying, below Python.
"""

import os
import subprocess
import sys
from typing import Any, Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain
from ansible_collections.vmimage.qcow.tests.support.faults import DENSE, Scene, Server, guest_bytes, sha256
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
LIES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support", "lies.c")
CHECK = """
import sys
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.reader import RawReader
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "rb") as result:
    print(verify([RawReader(source.fileno(), b"source")], [RawReader(result.fileno(), b"result")], b"result"))
"""


@pytest.fixture(name="library", scope="module")
def _library(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = str(tmp_path_factory.mktemp("lies") / "lies.so")
    subprocess.run([require_tool("cc"), "-shared", "-fPIC", "-O1", "-o", library, LIES, "-ldl"], check=True)
    return library


@pytest.fixture(name="no_map", params=[False, True], ids=["extent-map", "no-extent-map"])
def _no_map(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the filesystem has no extent map to ask instead."""
    yield request.param


def lying(library: str, lies: str, *, no_map: bool) -> dict[str, str]:
    return {"LD_PRELOAD": library, "VMIMAGE_QCOW_LIES": lies, **({"VMIMAGE_QCOW_NO_MAP": "1"} if no_map else {})}


def migrate(library: str, lies: str, scene: Scene, *, no_map: bool, **options: Any) -> dict[str, Any]:
    job = dict(scene.job, **options)
    with Server(variables=lying(library, lies, no_map=no_map)) as server:
        (result,) = server.call(job.pop("job"), **job)["results"]
    return result


def assert_caught(library: str, lies: str, scene: Scene, guest: bytes, *, no_map: bool, where: int, **options: Any) -> str:
    """The copy is fooled, and the verification is not; returns the message."""
    before = {name: sha256(os.path.join(scene.images, name)) for name in scene.listing()}
    fooled = migrate(library, lies, scene, no_map=no_map, verify=False, retire=False, **options)
    assert not fooled["failed"], fooled["msg"]
    assert guest_bytes(scene.dest, "raw" if scene.dest.endswith(".raw") else "") != guest, "the lie has no victim"
    os.unlink(scene.dest)
    result = migrate(library, lies, scene, no_map=no_map, **options)
    assert result["failed"] and result["reason"] == "verification-failed", result
    assert {name: sha256(os.path.join(scene.images, name)) for name in scene.listing()} == before
    assert scene.states()[-1] == "failed"
    assert "guest bytes %d.." % where in result["msg"], result["msg"]
    assert "Nothing was published" in result["msg"]
    return result["msg"]


def test_raw_base(library: str, tmp_path: Any, no_map: bool) -> None:
    """A base of 8 MiB, one of them called a hole, below an overlay that is flattened."""
    spec = ImageSpec(size=8 * MIB, cluster_bits=9, l2_bits=12, clusters={9000: Plain(b"over" * 128)}, backing=Backing(b"base.raw"))
    scene = Scene(str(tmp_path), spec=spec, chains="flatten")
    disk = bytearray(os.urandom(MIB) * 8)
    with open(os.path.join(scene.images, "base.raw"), "wb") as base:
        base.write(disk)
    disk[9000 * 512 : 9001 * 512] = b"over" * 128
    lies = "base.raw:%d:%d" % (5 * MIB, 6 * MIB)
    message = assert_caught(library, lies, scene, bytes(disk), no_map=no_map, where=5 * MIB)
    assert "base.raw a hole (SEEK_DATA)" in message, message
    honest = migrate(library, "nothing:0:0", scene, no_map=no_map)
    assert not honest["failed"], honest["msg"]
    assert guest_bytes(scene.dest) == disk


def test_tables_of_the_image(library: str, tmp_path: Any, no_map: bool) -> None:
    """The image's L1 table called a hole: a disk without anything."""
    scene = Scene(str(tmp_path), spec=DENSE, name="one.qcow")
    message = assert_caught(library, "one.qcow:0:4096", scene, scene.guest, no_map=no_map, where=0)
    assert "an L1 entry in bytes 48..55" in message, message


def test_clusters_of_the_image(library: str, tmp_path: Any, no_map: bool) -> None:
    """Clusters called a hole: the copy that keeps the layout takes over the file as it is, but for its holes."""
    scene = Scene(str(tmp_path), spec=DENSE, name="two.qcow")
    cluster = 300
    offset = scene.built.places[cluster][0]
    lies = "two.qcow:%d:%d" % (offset, offset + 4096)
    assert_caught(library, lies, scene, scene.guest, no_map=no_map, where=cluster * 4096 // 65536 * 65536, layout="keep")


def test_result(library: str, tmp_path: Any, no_map: bool) -> None:
    """A part of the result called a hole: what gives holes their space writes zeros there."""
    scene = Scene(str(tmp_path), spec=DENSE, format="raw")
    lies = ".tmp:%d:%d" % (2 * MIB, 3 * MIB)
    assert_caught(library, lies, scene, scene.guest, no_map=no_map, where=2 * MIB, preallocation="full")


def test_result_that_is_right(library: str, tmp_path: Any, no_map: bool) -> None:
    """A lie that has changed nothing is no reason to refuse the result."""
    scene = Scene(str(tmp_path), spec=DENSE, format="raw")
    result = migrate(library, ".tmp:%d:%d" % (2 * MIB, 3 * MIB), scene, no_map=no_map)
    assert not result["failed"], result["msg"]
    scene.assert_migrated()


def test_stray_bytes_in_the_result(library: str, tmp_path: Any, no_map: bool) -> None:
    """Bytes that no part of the source accounts for, where the result is called a hole and the source is one."""
    for name, stray in (("source", b""), ("result", b"stray")):
        with open(tmp_path / name, "wb") as stream:
            stream.truncate(64 * MIB)
            stream.write(b"first")
            if stray:
                stream.seek(40 * MIB)
                stream.write(stray)
    paths = os.pathsep.join(path for path in [os.environ.get("PYTHONPATH", ""), *sys.path] if path)
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-c", CHECK, str(tmp_path / "source"), str(tmp_path / "result")],
        env=dict(os.environ, PYTHONPATH=paths, **lying(library, "result:%d:%d" % (39 * MIB, 42 * MIB), no_map=no_map)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "guest bytes %d.." % (40 * MIB) in done.stderr, done.stderr
