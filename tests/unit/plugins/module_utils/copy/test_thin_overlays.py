# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlays written thin over the same base: the guest sees the same, and nothing is copied up that need not be."""

import os
import pathlib
import random

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy.copier import copy_extents
from ansible_collections.vmimage.qcow.plugins.module_utils._copy.writers import Qcow2Options, Qcow2Writer
from ansible_collections.vmimage.qcow.plugins.module_utils._fingerprint import rounded
from ansible_collections.vmimage.qcow.plugins.module_utils._image.extent import thin_extents
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader, Qcow2Reader
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Plain

pytestmark = pytest.mark.usefixtures("hands")

OPTIONS = [
    Qcow2Options(cluster_size, extended_l2=extended, compressed=compressed, backing_name=b"base.qcow", backing_format="qcow")
    for cluster_size, extended, compressed in [
        (512, False, False),
        (4096, False, False),
        (65536, False, False),
        (16384, True, False),
        (65536, True, False),
        (4096, False, True),
        (65536, False, True),
        (16384, True, True),
    ]
]


def random_image(source: random.Random, size: int, cluster_bits: int, **more) -> "ImageSpec":
    cluster = 1 << cluster_bits
    count = -(-size // cluster)
    chosen = source.sample(range(count), min(30, count))
    clusters = {index: Plain(source.choice([source.randbytes(cluster), bytes(cluster)])) for index in chosen}
    return ImageSpec(size=size, cluster_bits=cluster_bits, l2_bits=12 if cluster_bits == 9 else 9, clusters=clusters, **more)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "%d%s%s" % (o.cluster_size, "-ext" * o.extended_l2, "-z" * o.compressed))
@pytest.mark.parametrize("seed", range(5))
def test_thin_overlays_show_the_same(tmp_path: pathlib.Path, seed: int, options: Qcow2Options) -> None:
    oracle.require_v1_driver()
    source = random.Random(seed)
    base = build(random_image(source, source.randrange(1, 4000) * 512, 12))
    size = source.randrange(1, 4000) * 512 + (7 if seed == 0 else 0)
    overlay = build(random_image(source, size, source.choice([9, 9, 12]), backing=Backing(b"base.qcow")))
    base.write(tmp_path / "base.qcow")
    overlay.write(tmp_path / "overlay.qcow")
    with open(tmp_path / "overlay.qcow", "rb") as top, open(tmp_path / "base.qcow", "rb") as below, open(tmp_path / "new", "w+b") as new:
        layers = [Qcow1(top.fileno(), b"overlay"), Qcow1(below.fileno(), b"base")]
        writer = Qcow2Writer(new.fileno(), rounded(size), options)
        copy_extents(thin_extents(layers, writer.unit), layers, writer)
        before = [Qcow1Reader(top.fileno(), b"overlay"), Qcow1Reader(below.fileno(), b"base")]
        verify(before, [Qcow2Reader(new.fileno(), b"new"), before[1]], b"new")
    oracle.assert_clean(tmp_path / "new")
    found = oracle.guest_bytes(oracle.Node(tmp_path / "new", "qcow2"), oracle.Node(tmp_path / "base.qcow"))
    assert found == overlay.guest_bytes(base.guest_bytes()).ljust(rounded(size), b"\0")


def test_subclusters_and_small_clusters_copy_nothing_up(tmp_path: pathlib.Path) -> None:
    """One 512-byte cluster over a full base takes one 512-byte place where units are as small, and a whole cluster where they are not."""
    base = build(ImageSpec(size=1 << 20, clusters={index: Plain(b"base" * 1024) for index in range(256)}))
    overlay = build(ImageSpec(size=1 << 20, cluster_bits=9, l2_bits=12, clusters={777: Plain(b"x" * 512)}, backing=Backing(b"base.qcow")))
    base.write(tmp_path / "base.qcow")
    overlay.write(tmp_path / "overlay.qcow")
    written = {}
    with open(tmp_path / "overlay.qcow", "rb") as top, open(tmp_path / "base.qcow", "rb") as below:
        layers = [Qcow1(top.fileno(), b"overlay"), Qcow1(below.fileno(), b"base")]
        for options in OPTIONS[:5]:
            with open(tmp_path / "new", "w+b") as new:
                writer = Qcow2Writer(new.fileno(), 1 << 20, options)
                written[options.cluster_size, options.extended_l2] = copy_extents(thin_extents(layers, writer.unit), layers, writer).written
                assert os.fstat(new.fileno()).st_size % options.cluster_size == 0
    assert written == {(512, False): 512, (4096, False): 4096, (65536, False): 65536, (16384, True): 512, (65536, True): 2048}
