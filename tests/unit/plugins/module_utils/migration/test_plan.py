# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is decided about one image before anything is written."""

import os
import pathlib
import threading
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import CONVERT, REFUSE
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.planner import make_plan
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import WRITTEN, Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build


def migrate(path: pathlib.Path, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    state = os.fsencode(path.parent / "state")
    request = Request(src=os.fsencode(path), state_dir=state, retire=True, **options)
    return batch.run([request], batch.Settings(state_dir=state, check_mode=check_mode))[0]


def test_a_raw_result_under_the_originals_name_is_left_alone_the_second_time(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk.raw"
    image = build(ImageSpec(size=1 << 20, clusters={3: Plain(b"three")}))
    image.write(path)
    first, second = migrate(path, format="raw"), migrate(path, format="raw")
    assert first["changed"] and not first["failed"]
    assert not second["changed"] and not second["failed"], second["msg"]
    assert path.read_bytes() == image.guest_bytes()


def test_check_mode_foresees_a_stream_that_cannot_be_inflated(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk.qcow"
    build(ImageSpec(size=1 << 20, clusters={0: Packed(b"text" * 1024), 7: Packed(stream=b"\xff" * 100)})).write(path)
    asked = migrate(path, check_mode=True)
    assert asked["failed"] and asked["reason"] == "damaged", asked["msg"]
    assert "guest bytes 28672..32767" in asked["msg"]
    done = migrate(path)
    assert done["failed"] and done["reason"] == "damaged", done["msg"]
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow", "state"]


@pytest.mark.parametrize("held", ["", WRITTEN])
def test_a_guest_caught_in_the_middle_of_a_write_is_looked_at_again(tmp_path: pathlib.Path, held: str) -> None:
    """QEMU may have written a table's entry and not yet the cluster it stands for."""
    path = tmp_path / "disk.qcow"
    whole = build(ImageSpec(size=1 << 20, clusters={3: Plain(b"three" * 800)})).data
    path.write_bytes(whole[:-4096])
    writing = threading.Timer(0.5, path.write_bytes, [whole])
    writing.start()
    plan = make_plan(Request(src=os.fsencode(path), domain_access=held), Records(os.fsencode(tmp_path / "state")))
    writing.join()
    assert plan.action == (CONVERT if held else REFUSE), plan.reasons
