# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are not recognized by what they cost or hold: each refusal names a way out that works, and nothing wrong is touched."""

import os
import struct
import subprocess
import time
from typing import Any, Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, moved_files
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.faults import Scene, Server, sha256
from ansible_collections.vmimage.qcow.tests.support.moves import (
    HOW,
    chain,
    clean,
    contents,
    copied,
    flip,
    killed_and_moved,
    migrate,
    refused,
    roll_back,
)
from ansible_collections.vmimage.qcow.tests.support.require import require_root, require_tool


def test_large_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, move: Callable[[str], None]) -> None:
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path))
        migrate(scene)
        move(scene.images)
        with monkeypatch.context() as small:
            small.setattr(moved_files, "CHEAP", 8192)
            refused(act, scene, "auto", "bytes have to be read. Nothing was changed. moved_files=compare does that; moved_files=accept")
            assert act(scene, "compare")["changed"]


def test_unverified_record(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path), verify=False)
    migrate(scene)
    move(scene.images)
    for how in ("auto", "compare"):
        refused(roll_back, scene, how, "moved_files=accept")
    shown, done = roll_back(scene, "accept", check=True), roll_back(scene, "accept")
    assert done["changed"] and shown["reasons"] == done["reasons"], (shown, done)
    assert any("unread" in reason for reason in done["reasons"])
    scene.assert_as_before()


def test_encrypted_original(tmp_path: Any, move: Callable[[str], None]) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    how = {"passphrase_files": ((b"", os.fsencode(tmp_path / "secret")),), "force_passphrase": True}
    clusters = {index: Plain(os.urandom(4096)) for index in range(4)}
    for act in (roll_back, clean):
        scene = Scene(str(tmp_path), spec=ImageSpec(size=1 << 20, clusters=clusters, password=b"secret"), **how)
        result = migrate(scene)[0]
        assert result["changed"], result
        move(scene.images)
        for option in ("auto", "compare"):
            refused(act, scene, option, "moved_files=accept")
        assert act(scene, "accept")["changed"]


@pytest.mark.parametrize("act", [roll_back, clean])
def test_changed_original(tmp_path: Any, move: Callable[[str], None], act: Callable[..., dict[str, Any]]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    flip(scene.retired)
    move(scene.images)
    for how in ("auto", "compare"):
        refused(act, scene, how, "moved_files=accept", "changed")
    assert act(scene, "accept")["changed"]


def test_result_written_since_and_moved(tmp_path: Any, move: Callable[[str], None]) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    subprocess.run([require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 2m 64k", scene.dest], check=True)
    newer = sha256(scene.dest)
    copied(scene.images)
    for how in ("auto", "compare"):
        refused(clean, scene, how, "moved_files=accept", "changed")
        refused(roll_back, scene, how, "discard_changes", "changed")
    done = clean(scene, "accept")
    assert done["changed"], done
    assert scene.listing() == [os.path.basename(scene.dest)] and sha256(scene.dest) == newer


def test_accepted_result_has_to_be_sound_all_the_same(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    os.unlink(scene.dest)
    subprocess.run([require_tool("qemu-img"), "create", "-q", "-f", "qcow2", scene.dest, "4M"], check=True)
    refused(clean, scene, "accept", "nothing of what the original holds", "changed")


@pytest.mark.parametrize("how", ["auto", "compare"])
def test_wrong_file_of_the_same_size(server: Server, tmp_path: Any, how: str) -> None:
    """In the place of the original, of the result, or of an unfinished result: nothing happens to it."""

    def replace(path: str) -> None:
        subprocess.run(["cp", "-a", path, path + ".other"], check=True)
        flip(path + ".other", 3 << 10 if path.endswith(".tmp") else -1)
        os.rename(path + ".other", path)

    scene = Scene(str(tmp_path))
    migrate(scene)
    replace(scene.retired)
    for act in (roll_back, clean):
        refused(act, scene, how, "moved_files=accept", "changed")

    scene = Scene(str(tmp_path))
    migrate(scene)
    replace(scene.dest)
    refused(clean, scene, how, "moved_files=accept", "changed")
    refused(roll_back, scene, how, "the guest data differs", "changed")

    def prepare() -> tuple[Scene, dict[str, Any]]:
        scene = Scene(str(tmp_path))
        return scene, scene.job

    replaced = 0
    for scene in killed_and_moved(server, tmp_path, prepare, lambda _directory: None):
        if scene.states() == ["published"]:
            replaced += 1
            replace(scene.dest)
            before = contents(scene)
            result, _recovered = migrate(scene, how)
            assert result["failed"] and "moved_files=accept" in result["msg"], result
            assert contents(scene) == before
    assert replaced


def test_copy_that_names_a_backing_file(tmp_path: Any) -> None:
    """It shows the same by itself, and would show what it names."""
    scene = Scene(str(tmp_path))
    migrate(scene)
    with open(scene.retired, "rb") as stream:
        data = bytearray(stream.read())
    where = data.index(bytes(64), 48)  # of the header's own bytes none is used there
    data[8:20] = (where.bit_length() and where).to_bytes(8, "big") + len(b"/etc/shadow").to_bytes(4, "big")
    data[where : where + 11] = b"/etc/shadow"
    os.unlink(scene.retired)
    with open(scene.retired, "wb") as stream:
        stream.write(data)
    for act in (roll_back, clean):
        for how in HOW:
            refused(act, scene, how, "Compare", "changed")


def test_copy_that_belongs_to_somebody_else(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene)
    copied(scene.images)
    os.chown(scene.retired, 4711, -1)
    for act in (roll_back, clean):
        for how in ("auto", "compare"):
            refused(act, scene, how, "user 4711 can write it, but could not")
    os.chown(scene.dest, 4711, -1)  # as the result, so the original
    assert roll_back(scene)["changed"]


def chain_migrated(tmp_path: Any) -> tuple[Any, Choice]:
    images, choice = chain(tmp_path)
    os.unlink(images / "foreign.img")
    requests = [Request(os.fsencode(images / name), retire=True, state_dir=choice.state_dir) for name in ("base.qcow", "over.qcow")]
    assert all(result["changed"] for result in batch.run(requests, batch.Settings(choice.state_dir, reserve=0)))
    return images, choice


@pytest.mark.parametrize("moved", [False, True])
def test_what_guests_have_written_is_not_taken_on_trust(tmp_path: Any, moved: bool) -> None:
    """``accept`` says which file it is; what a guest has written to a thin overlay is lost only if the operator says so."""
    images, choice = chain_migrated(tmp_path)
    subprocess.run(
        [require_tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 512k 64k", images / "over.qcow2"], check=True, capture_output=True
    )
    if moved:
        copied(str(images))
    choice = choice._replace(moved_files="accept", paths=(os.fsencode(images / "over.qcow"),))
    (refused_one,) = roll_back_all(choice, discard_changes=False)
    assert refused_one["failed"] and refused_one["reason"] == "changed" and (images / "over.qcow2").exists(), refused_one
    (done,) = roll_back_all(choice, discard_changes=True)
    assert done["changed"] and os.path.exists(done["kept"]), done


def test_a_base_that_became_a_link_of_a_strangers(tmp_path: Any) -> None:
    """To be compared, an overlay's base is read by the rules of links: else whoever can write there could have any file compared."""
    require_root()
    images, choice = chain_migrated(tmp_path)
    secret = tmp_path / "secret"
    retired = images / "base.qcow.qcow1.orig"
    secret.write_bytes(retired.read_bytes())
    retired.unlink()
    retired.symlink_to(secret)
    for path in (images, retired):
        os.chown(path, 4711, 4711, follow_symlinks=False)
    os.utime(images / "over.qcow.qcow1.orig")
    opened = []
    whole = moved_files.Source

    def watched(path: bytes, *given: Any) -> Any:
        opened.append(path)
        return whole(path, *given)

    moved_files.Source, before = watched, moved_files.Source  # type: ignore[assignment,misc]
    try:
        (answer,) = roll_back_all(choice._replace(paths=(os.fsencode(images / "over.qcow"),), check_mode=True), discard_changes=False)
    finally:
        moved_files.Source = before  # type: ignore[misc]
    assert answer["failed"] and os.fsencode(secret) not in opened, (answer, opened)


def test_tables_that_would_be_read_without_end(tmp_path: Any) -> None:
    """An original of the recorded size whose tables all name one cluster is damaged, and is not read for hours to find that out."""
    size, src, state = 64 << 30, str(tmp_path / "disk.qcow"), os.fsencode(tmp_path / "state")
    build(ImageSpec(size=size, clusters={index: Plain(os.urandom(4096)) for index in range(20)})).write(src)
    (result,) = batch.run([Request(os.fsencode(src), retire=True, state_dir=state)], batch.Settings(state, reserve=0))
    assert result["changed"], result
    with open(result["retired"], "rb") as stream:
        data = bytearray(stream.read())
    (offset,) = struct.unpack_from(">Q", data, 40)
    count, entries = -(-size // (1 << (data[32] + data[33]))), 1 << data[33]
    table = next(entry for entry in struct.unpack_from(">%dQ" % count, data, offset) if entry)
    cluster = next(entry for entry in struct.unpack_from(">%dQ" % entries, data, table) if entry)
    struct.pack_into(">%dQ" % count, data, offset, *[table] * count)
    struct.pack_into(">%dQ" % entries, data, table, *[cluster] * entries)
    os.unlink(result["retired"])
    with open(result["retired"], "wb") as stream:
        stream.write(data)
    started = time.process_time()
    (answer,) = roll_back_all(Choice(state, paths=(os.fsencode(src),)), discard_changes=False)
    assert answer["failed"] and "damaged" in answer["msg"] and "moved_files=accept" in answer["msg"], answer
    assert time.process_time() - started < 30  # seconds; hours before
