# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A block device is written only if the operator has named it, wherever a tenant lets the name of a result lead."""

import os
import pathlib
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.attacks.attacker import give
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.filesystems import loop_device

MIB = 1 << 20
BLANK = b"\xa5" * 4 * MIB


@pytest.fixture(name="device")
def _device(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    with loop_device(tmp_path / "backing", BLANK) as path:
        yield path


@pytest.fixture(name="image")
def _image(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "tenant"
    folder.mkdir()
    build(ImageSpec(size=MIB, clusters={3: Plain(b"of the tenant")})).write(folder / "disk.qcow")
    give(folder, folder / "disk.qcow")
    return folder / "disk.qcow"


def migrate(image: pathlib.Path, **options: Any) -> dict[str, Any]:
    state = os.fsencode(image.parent.parent / "state")
    (result,) = batch.run([Request(os.fsencode(image), format="raw", state_dir=state, **options)], batch.Settings(state, reserve=0))
    return result


@pytest.mark.parametrize("overwrite", [False, True])
def test_result_that_leads_to_a_device(image: pathlib.Path, device: pathlib.Path, overwrite: bool) -> None:
    (image.parent / "disk.raw").symlink_to(device)
    result = migrate(image, overwrite_device=overwrite)
    assert result["failed"] and result["reason"] == "exists", result["msg"]
    assert device.read_bytes() == BLANK


def test_destination_in_a_tenants_directory_that_leads_to_a_device(image: pathlib.Path, device: pathlib.Path) -> None:
    link = image.parent / "destination"
    link.symlink_to(device)
    result = migrate(image, dest=os.fsencode(link), overwrite_device=True)
    assert result["failed"] and "through the symbolic link" in result["msg"], result["msg"]
    assert device.read_bytes() == BLANK


def after_planning(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    original = batch.preflight

    def preflight(*arguments: Any, **options: Any) -> Any:
        plans = original(*arguments, **options)
        change()
        return plans

    monkeypatch.setattr(batch, "preflight", preflight)


def test_result_that_leads_to_a_device_since_it_was_planned(
    image: pathlib.Path, device: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_planning(monkeypatch, lambda: (image.parent / "disk.raw").symlink_to(device))
    assert migrate(image, overwrite_device=True)["failed"]
    assert device.read_bytes() == BLANK


def test_other_device_than_was_planned_for(
    image: pathlib.Path, device: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link of root's, as those below /dev/disk are."""
    with loop_device(tmp_path / "other", BLANK) as other:
        link = tmp_path / "by-name"
        link.symlink_to(device)

        def change() -> None:
            link.unlink()
            link.symlink_to(other)

        after_planning(monkeypatch, change)
        result = migrate(image, dest=os.fsencode(link))
        assert result["failed"] and "not the device that was planned for" in result["msg"], result["msg"]
        assert device.read_bytes() == other.read_bytes() == BLANK
        monkeypatch.undo()
        assert migrate(image, dest=os.fsencode(link))["changed"]
        assert other.read_bytes() != BLANK
