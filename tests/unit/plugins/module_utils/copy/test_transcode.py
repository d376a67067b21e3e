# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Layouts kept: random QCOW v1 images made qcow2 by new metadata alone, clean and identical to qemu-img's eyes and to ours."""

import os
import pathlib
import tempfile
from typing import Any, Optional

import hypothesis
import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy.transcode import transcode, why_not
from ansible_collections.vmimage.qcow.plugins.module_utils._copy.writers import Qcow2Options
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader, Qcow2Reader
from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.big_image import dense_guest, write_dense
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.image_spec import ImageSpec, Plain
from ansible_collections.vmimage.qcow.tests.support.strategies import FAMILIES, write_chain

STANDING_ALONE = ["plain", "compressed", "packed", "odd-size", "odd-size-compressed", "unaligned", "shuffled", "shared", "xen"]


def kept(src: Any, dest: Any, *, backing: Optional[bytes] = None) -> Any:
    """Transcode ``src`` into ``dest`` and prove it; returns what was copied."""
    with open(src, "rb") as old, open(dest, "w+b") as new:
        image = Qcow1(old.fileno(), os.fsencode(src))
        options = Qcow2Options(image.cluster_size, backing_name=backing, backing_format="raw" if backing else None)
        assert why_not(image, options) is None
        copied = transcode(image, new.fileno(), options)
        if backing is None:
            verify([Qcow1Reader(old.fileno(), b"old")], [Qcow2Reader(new.fileno(), b"new")], b"new")
    oracle.assert_clean(dest)
    return copied


@pytest.mark.parametrize("family", STANDING_ALONE)
def test_random_layouts_are_kept(family: str) -> None:
    @hypothesis.settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(chain=FAMILIES[family])
    def keeps(chain: Any) -> None:
        with tempfile.TemporaryDirectory(dir=engine.scratch_directory()) as directory:
            _images, disk = write_chain(directory, chain)
            sources = [name for name in sorted(os.listdir(directory)) if not name.endswith(".qcow2")]
            dest = os.path.join(directory, "kept.qcow2")
            kept(os.path.join(directory, sources[0]), dest)
            assert oracle.guest_bytes(oracle.Node(dest, "qcow2")) == disk

    keeps()


@pytest.mark.parametrize("kind", ["ordered", "shuffled", "compressed"])
def test_large_images(tmp_path: pathlib.Path, kind: str) -> None:
    options = {} if kind == "ordered" else {kind: True}
    write_dense(tmp_path / "old", 24 << 20, **options)
    copied = kept(tmp_path / "old", tmp_path / "new")
    assert copied.carried == (24 << 20 if kind == "compressed" else 0)
    guest = b"".join(dense_guest(24 << 20, compressed=kind == "compressed"))
    assert oracle.guest_bytes(oracle.Node(tmp_path / "new", "qcow2")) == guest


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_blocks_are_shared_where_the_filesystem_can(tmp_path: pathlib.Path, fstype: str) -> None:
    with mounted(fstype, str(tmp_path)) as folder:
        old, new = os.path.join(folder, "old"), os.path.join(folder, "new")
        write_dense(old, 32 << 20)
        os.sync()
        before = os.statvfs(folder).f_bfree
        copied = kept(old, new)
        os.sync()
        assert copied.shared == 32 << 20
        assert (before - os.statvfs(folder).f_bfree) * os.statvfs(folder).f_frsize < 4 << 20
        # The original does not see what is written into the result.
        with open(new, "r+b") as stream:
            stream.seek(1 << 20)
            stream.write(bytes(1 << 20))
        assert oracle.guest_bytes(oracle.Node(old)) == b"".join(dense_guest(32 << 20))


def test_an_overlay_keeps_its_base(tmp_path: pathlib.Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"base" * (1 << 18))
    spec = ImageSpec(
        size=1 << 20, cluster_bits=9, l2_bits=12, clusters={number: Plain(b"%8d" % number * 64) for number in range(3, 2000, 97)}
    )
    image = build(spec)
    image.write(tmp_path / "old")
    kept(tmp_path / "old", tmp_path / "new", backing=b"base.raw")
    found = oracle.guest_bytes(oracle.Node(tmp_path / "new", "qcow2"), oracle.Node(tmp_path / "base.raw", "raw"))
    assert found == image.guest_bytes(b"base" * (1 << 18))


def test_reasons_against(tmp_path: pathlib.Path) -> None:
    def against(name: Optional[bytes] = None, **more: Any) -> Optional[str]:
        build(ImageSpec(**more)).write(tmp_path / "old")
        with open(tmp_path / "old", "rb") as old:
            image = Qcow1(old.fileno(), b"old")
            return why_not(image, Qcow2Options(image.cluster_size, backing_name=name, backing_format="qcow2" if name else None))

    assert against(size=128 << 30, cluster_bits=9, l2_bits=13) is None
    assert "L1 table" in str(against(size=(128 << 30) + 512, cluster_bits=9, l2_bits=13))
    assert against(b"n" * 360, size=1 << 20, cluster_bits=9) is None
    assert "backing file name" in str(against(b"n" * 400, size=1 << 20, cluster_bits=9))
