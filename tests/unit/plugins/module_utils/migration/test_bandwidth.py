# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Consideration for others: bandwidth, priority, page cache; and layouts kept, from the request on."""

import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.progress import Pace
from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.big_image import write_dense
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.image_spec import ImageSpec, Plain


@pytest.fixture(name="image")
def _image(tmp_path: pathlib.Path) -> pathlib.Path:
    write_dense(tmp_path / "old.qcow", 12 << 20)
    return tmp_path / "old.qcow"


def test_a_pace_is_kept_and_waits_are_not_saved_up() -> None:
    pace = Pace(10 << 20)
    time.sleep(0.5)
    started = time.monotonic()
    for _count in range(6):
        pace(1 << 20)
    assert 0.3 < time.monotonic() - started
    Pace(None)(1 << 60)


def test_bandwidth_limits_copy_and_verification(image: pathlib.Path) -> None:
    started = time.monotonic()
    result = engine.convert(image, str(image) + "2", bandwidth=16 << 20)
    assert 2 * 12 / 16 - 0.6 < time.monotonic() - started
    assert result["verified"]


def test_low_priority(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, sys; from ansible_collections.vmimage.qcow.plugins.module_utils._host import linux; "
        "assert linux.lower() == [], 1; print(os.nice(0))"
    )
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.strip() == b"19"


def cached_bytes(path: Any) -> int:
    """Bytes of a file in the page cache, as the kernel tells them through util-linux's fincore."""
    found = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", os.fspath(path)], stdout=subprocess.PIPE, check=True)
    return int(found.stdout)


def test_the_page_cache_is_spared(tmp_path: pathlib.Path) -> None:
    with mounted("ext4", str(tmp_path), size_mib=256) as folder:
        old = os.path.join(folder, "old.qcow")
        write_dense(old, 48 << 20)
        os.sync()
        results = {}
        for cache in ("use", "spare"):
            results[cache] = engine.convert(old, os.path.join(folder, cache), page_cache=cache)
        assert results["use"]["fingerprint"] == results["spare"]["fingerprint"]
        assert cached_bytes(os.path.join(folder, "use")) > 40 << 20
        assert cached_bytes(os.path.join(folder, "spare")) < 8 << 20


def test_a_kept_layout_comes_out_of_a_request(image: pathlib.Path) -> None:
    result = engine.convert(image, str(image) + "2", layout="keep")
    assert result["after"]["cluster_size"] == 4096 and result["verified"]
    assert "the layout is kept, clusters of 4096 bytes" in result["reasons"]
    oracle.assert_clean(str(image) + "2")
    assert result["fingerprint"] == engine.convert(image, str(image) + ".new")["fingerprint"]


def test_what_cannot_be_kept_is_written_anew_and_said(tmp_path: pathlib.Path) -> None:
    build(ImageSpec(size=1 << 40, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"x" * 512)})).write(tmp_path / "old.qcow")
    result = engine.convert(tmp_path / "old.qcow", tmp_path / "new", layout="keep")
    assert any("the layout cannot be kept: with clusters of 512 bytes the L1 table" in reason for reason in result["reasons"])
    assert result["after"]["cluster_size"] == 65536


@pytest.mark.parametrize("other", [{"cluster_size": 65536}, {"compression": "zlib"}, {"extended_l2": True}])
def test_contradictions_are_refused(image: pathlib.Path, other: Any) -> None:
    with pytest.raises(engine.Refused, match="layout=keep leaves every cluster as it is"):
        engine.convert(image, str(image) + "2", layout="keep", **other)
