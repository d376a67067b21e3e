# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same files with other inode numbers, or other times: after a copy to another disk, or another mount of a filesystem that has none of its own."""

import os
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.file_options import set_file_options
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.faults import Scene, sha256
from ansible_collections.vmimage.qcow.tests.support.filesystems import FatByFuse, mounted
from ansible_collections.vmimage.qcow.tests.support.moves import MODES, chain, clean, copied, migrate, on_fuse, roll_back
from ansible_collections.vmimage.qcow.tests.support.require import require_tool


@pytest.mark.parametrize("mode", sorted(MODES))
def test_rollback_after_a_move(tmp_path: Any, mode: str, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path), **MODES[mode])
    assert migrate(scene)[0]["changed"]
    move(scene.images)
    scene.assert_migrated()
    assert not migrate(scene, check=True)[0]["changed"]
    assert not migrate(scene)[0]["changed"]  # nor does it take anything for something else
    if not scene.options["retire"]:  # then it was settled just now
        move(scene.images)
    shown, done = roll_back(scene, check=True), roll_back(scene)
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert "the original is recognized by its content: its inode number is another" in done["reasons"]
    scene.assert_as_before()
    assert not roll_back(scene)["changed"]


def test_cleanup_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    move(scene.images)
    shown, done = clean(scene, check=True), clean(scene)
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert "the original is recognized by its content: its inode number is another" in done["reasons"]
    assert scene.listing() == [os.path.basename(scene.dest)]
    assert not clean(scene)["changed"]


def test_kept_original_is_retired_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    """Its result may be in use by then: only the original is what it was."""
    scene = Scene(str(tmp_path), retire=False)
    migrate(scene)
    subprocess.run([require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 0 4096", scene.dest], check=True)
    move(scene.images)
    scene.options["retire"] = True
    result = migrate(scene)[0]
    assert result["changed"] and result["action"] == "retire" and "the original is recognized" in " ".join(result["reasons"]), result
    assert scene.listing() == sorted(map(os.path.basename, (scene.dest, scene.retired)))
    move(scene.images)
    assert roll_back(scene)["changed"]
    assert scene.listing() == sorted(map(os.path.basename, (scene.dest, scene.src)))


def test_another_filesystem_in_the_old_place(tmp_path: Any) -> None:
    """A larger disk: copied to it, and mounted over the old directory."""
    for act, left in ((roll_back, ["disk.qcow"]), (clean, ["disk.qcow2"])):
        scene = Scene(str(tmp_path))
        migrate(scene)
        folder = tmp_path / act.__name__
        folder.mkdir()
        with mounted("ext4", str(folder)) as disk:
            subprocess.run(["cp", "-a", scene.images, disk], check=True)
            subprocess.run(["mount", "--bind", os.path.join(disk, "images"), scene.images], check=True)
            try:
                done = act(scene)
                assert done["changed"], done
                assert scene.listing() == left
                assert not act(scene)["changed"]
            finally:
                subprocess.run(["umount", scene.images], check=True)


def test_exfat_mounted_again(tmp_path: Any) -> None:
    for act, left in ((roll_back, ["disk.qcow"]), (clean, ["disk.qcow2"])):
        with on_fuse("exfat", tmp_path / act.__name__) as (scene, again):
            assert migrate(scene)[0]["changed"]
            assert again(scene.images)
            assert not migrate(scene)[0]["changed"]
            shown, done = act(scene, check=True), act(scene)
            assert done["changed"] and shown["reasons"] == done["reasons"] and "by its content" in done["msg"], (shown, done)
            assert scene.listing() == left
            again(scene.images)
            assert not act(scene)["changed"]


@pytest.mark.parametrize("act", [roll_back, clean])
def test_fat_in_the_old_place(tmp_path: Any, act: Callable[..., dict[str, Any]]) -> None:
    """Its times are even seconds: those are others, too, once it was mounted again."""
    scene = Scene(str(tmp_path))
    os.utime(scene.src, ns=(10**18 + 10**9 + 7, 10**18 + 10**9 + 7))
    migrate(scene)
    with FatByFuse("fat", str(tmp_path), point=str(tmp_path / "fat")) as disk:
        for name in scene.listing():
            shutil.copyfile(os.path.join(scene.images, name), os.path.join(disk.point, name))
            status = os.stat(os.path.join(scene.images, name))
            os.utime(os.path.join(disk.point, name), ns=(status.st_atime_ns, status.st_mtime_ns))
        subprocess.run(["mount", "--bind", disk.point, scene.images], check=True)
        try:
            done = act(scene)
            assert done["changed"] and "by its content" in done["msg"], done
            assert scene.listing() == ["disk.qcow" if act is roll_back else "disk.qcow2"]
        finally:
            subprocess.run(["umount", scene.images], check=True)
        disk.remount()
        assert os.listdir(disk.point) == ["disk.qcow" if act is roll_back else "disk.qcow2"]


def test_another_time_alone(tmp_path: Any) -> None:
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path))
        migrate(scene)
        os.utime(scene.retired)
        done = act(scene)
        assert done["changed"] and "the original is recognized by its content" in done["reasons"], done


@pytest.mark.parametrize("how", [{}, {"keep_name": True}], ids=["other-name", "same-name"])
def test_chain_after_a_move(tmp_path: Any, how: dict[str, Any], move: Callable[[str], None]) -> None:
    """What an overlay rests on is found under the name that it has now; a foreign overlay's header says what it said."""
    images, choice = chain(tmp_path)
    before = {path.name: sha256(str(path)) for path in images.iterdir()}
    requests = [
        Request(os.fsencode(str(images / name)), retire=True, state_dir=choice.state_dir, **how) for name in ("base.qcow", "over.qcow")
    ]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    move(str(images))
    assert not any(result["changed"] or result["failed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    shown = roll_back_all(choice._replace(check_mode=True), discard_changes=False)
    done = roll_back_all(choice, discard_changes=False)
    assert [entry["msg"] for entry in done if not entry["changed"]] == [] and [
        entry["msg"] for entry in shown if not entry["changed"]
    ] == []
    assert {path.name: sha256(str(path)) for path in images.iterdir()} == before


def test_chain_cleaned_after_a_move(tmp_path: Any, move: Callable[[str], None]) -> None:
    images, choice = chain(tmp_path)
    requests = [Request(os.fsencode(str(images / name)), retire=True, state_dir=choice.state_dir) for name in ("base.qcow", "over.qcow")]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    move(str(images))
    assert [entry["msg"] for entry in clean_all(choice, min_age=0) if not entry["changed"]] == []
    assert sorted(path.name for path in images.iterdir()) == ["base.qcow2", "foreign.img", "over.qcow2"]


def test_settled_once(tmp_path: Any) -> None:
    """A run that only looks writes nothing down; one that acts does, and nothing is read again."""
    scene = Scene(str(tmp_path), retire=False)
    migrate(scene)
    copied(scene.images)
    (before,) = [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()]
    migrate(scene, check=True)
    assert [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()] == [before]
    assert any("recognized" in reason for reason in migrate(scene)[0]["reasons"])
    assert [record.facts["src"]["ino"] for record in Records(os.fsencode(scene.state)).all()] == [os.stat(scene.src).st_ino]
    assert not any("recognized" in reason for reason in migrate(scene)[0]["reasons"])


def test_mode_of_a_moved_result(tmp_path: Any, move: Callable[[str], None]) -> None:
    """The task that names a mode is run again: it goes to the result, which is recognized, or accepted if guests have written to it."""
    scene = Scene(str(tmp_path))
    migrate(scene)

    def set_mode(mode: int, how: str = "auto") -> dict[str, Any]:
        params = dict.fromkeys(("owner", "group", "seuser", "serole", "setype", "selevel", "attributes"))
        module = SimpleNamespace(params=dict(params, mode=mode, state_dir=scene.state, moved_files=how), check_mode=False)
        result = migrate(scene)[0]
        set_file_options(module, result)
        return result

    move(scene.images)
    assert set_mode(0o640)["changed"] and os.stat(scene.dest).st_mode & 0o777 == 0o640
    subprocess.run([require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 2m 64k", scene.dest], check=True)
    copied(scene.images)
    refused = set_mode(0o600)
    assert refused["failed"] and "moved_files=accept" in refused["msg"] and os.stat(scene.dest).st_mode & 0o777 == 0o640
    assert set_mode(0o600, "accept")["changed"] and os.stat(scene.dest).st_mode & 0o777 == 0o600
