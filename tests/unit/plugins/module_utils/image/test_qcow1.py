# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables that are looked at as a whole say what looking at each of their entries says."""

import pathlib
import random
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils.image.check import check
from ansible_collections.vmimage.qcow.plugins.module_utils.image.measure import measure
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import Damage, Qcow1
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build

NOISE = random.Random(3).randbytes(65536)
CUTS = (0, 1, 511, 512, 5000)


def look(path: pathlib.Path) -> Any:
    """What an image says of itself in every way that takes a table as a whole."""
    with open(path, "rb") as stream:
        damage: list[Damage] = []
        image = Qcow1(stream.fileno(), bytes(path), damage.append)
        extents = [tuple(extent[:3]) + tuple(extent[4:]) for extent in image.extents()]
        needs = [
            measure(image.runs(), cluster_size=size, virtual_size=image.virtual_size, tables=tables)
            for size in (512, 4096, 65536)
            for tables in (True, False)
        ]
        return extents, damage, needs, check(stream.fileno(), bytes(path)).as_dict()


@pytest.mark.parametrize("order", ["guest", "shuffled", "reversed"])
@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("what", ["full", "holes", "compressed", "encrypted", "odd-size"])
def test_short_cuts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, what: str, bits: int, order: str) -> None:
    count = 300
    size = (count << bits) - (700 if what == "odd-size" else 0)
    left_out = {7, 8, 64, count - 1} if what == "holes" else set()
    clusters: dict[int, Any] = {number: Plain(NOISE[: 1 << bits]) for number in range(count) if number not in left_out}
    if what == "compressed":
        clusters[70] = Packed(b"again " * 80)
    image = build(
        ImageSpec(size=size, cluster_bits=bits, l2_bits=6, clusters=clusters, order=order, password=b"pw" if what == "encrypted" else None)
    )
    whole = tmp_path / "whole.qcow"
    image.write(whole)
    for cut in CUTS:
        path = tmp_path / ("%d.qcow" % cut)
        path.write_bytes(whole.read_bytes()[: -cut or None])
        short = look(path)
        with monkeypatch.context() as patch:
            patch.setattr(Qcow1, "_in_order", lambda *arguments: False)
            patch.setattr(Qcow1, "only_whole_clusters", lambda *arguments: False)
            assert look(path) == short
