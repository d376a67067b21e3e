# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cleanup: what goes after the soak time, what must stay, and what check mode says."""

import os
import subprocess
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, cleanup
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.new_dependents import NewDependents
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.faults import SPEC, Scene
from ansible_collections.vmimage.qcow.tests.support.require import require_tool


@pytest.fixture(params=["qcow2", "raw", "same-name"])
def scene(request: Any, tmp_path: Any) -> Scene:
    how = {"qcow2": {}, "raw": {"format": "raw"}, "same-name": {"keep_name": True}}[request.param]
    made = Scene(str(tmp_path), **how)
    migrate(made, **how)
    return made


def migrate(scene: Scene, **how: Any) -> None:
    state = os.fsencode(scene.state)
    result = batch.run([Request(os.fsencode(scene.src), retire=True, state_dir=state, **how)], batch.Settings(state, reserve=0))[0]
    assert not result["failed"], result["msg"]


def clean(scene: Scene, *, min_age: float = 0, check: bool = False) -> dict[str, Any]:
    return clean_all(Choice(os.fsencode(scene.state), check_mode=check), min_age=min_age)[0]


def kept(scene: Scene, reason: Optional[str]) -> None:
    answer = clean(scene)
    assert answer["failed"] and (reason is None or answer["reason"] == reason), answer
    assert os.path.exists(scene.retired)


def test_soak_time(scene: Scene) -> None:
    answer = clean(scene, min_age=14 * 86400)
    assert (answer["action"], answer["changed"], answer["failed"]) == ("noop", False, False)
    record = next(Records(os.fsencode(scene.state)).all())
    now = cleanup.retired_at(record) + 14 * 86400
    assert cleanup.plan_cleanup(record, min_age=14 * 86400, now=now - 5, dependents=NewDependents()).action == "noop"
    assert cleanup.plan_cleanup(record, min_age=14 * 86400, now=now + 5, dependents=NewDependents()).action == "delete"
    scene.assert_migrated()


def test_check_mode_then_for_real(scene: Scene) -> None:
    size = os.stat(scene.retired).st_blocks * 512
    shown = clean(scene, check=True)
    assert (shown["action"], shown["changed"], shown["returns"]) == ("delete", True, size)
    scene.assert_migrated()
    done = clean(scene)
    assert (done["changed"], done["returns"], done["state"]) == (True, size, "cleaned")
    assert scene.listing() == [os.path.basename(scene.dest)]
    assert scene.seen_by_guest(scene.dest) == scene.guest
    assert not clean(scene)["changed"]


@pytest.mark.parametrize(
    "how", [{"compression": "zstd"}, {"encryption": "luks"}, {"extended_l2": True}], ids=["zstd", "luks", "extended-l2"]
)
@pytest.mark.parametrize("written", [False, True])
def test_result_that_only_qemu_img_reads(tmp_path: Any, how: dict[str, Any], written: bool) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    if "encryption" in how:
        how = {**how, "luks_passphrase_file": os.fsencode(tmp_path / "secret")}
    made = Scene(str(tmp_path))
    migrate(made, **how)
    if written:
        driver = "driver=qcow2,file.driver=file,file.filename=%s%s" % (made.dest, ",encrypt.key-secret=s" if "encryption" in how else "")
        secret = ["--object", "secret,id=s,file=%s" % (tmp_path / "secret")] if "encryption" in how else []
        subprocess.run([require_tool("qemu-io"), *secret, "--image-opts", "-c", "write -P 7 0 64k", driver], check=True)
    done = clean(made)
    assert done["changed"] and done["state"] == "cleaned", done
    assert made.listing() == [os.path.basename(made.dest)]


def test_result_gone(scene: Scene) -> None:
    os.unlink(scene.dest)
    kept(scene, "missing")


def test_result_damaged(scene: Scene) -> None:
    if scene.dest.endswith(".raw"):
        os.truncate(scene.dest, 4096)
    else:
        with open(scene.dest, "r+b") as stream:  # an L1 entry far behind the end of the file
            stream.seek(40)
            at = int.from_bytes(stream.read(8), "big")
            stream.seek(at)
            stream.write((1 << 63 | 1 << 50).to_bytes(8, "big"))
    kept(scene, "damaged")


def test_result_replaced_by_another_format(scene: Scene) -> None:
    if scene.dest.endswith(".raw"):
        pytest.skip("a raw image has no format to tell")
    with open(scene.dest, "wb") as stream:
        stream.write(bytes(1 << 20))
    kept(scene, "damaged")


def test_original_written_since(scene: Scene) -> None:
    with open(scene.retired, "r+b") as stream:
        stream.seek(scene.original.index(b"\1" * 4096))
        stream.write(b"changed")
    kept(scene, "changed")


def test_original_in_use(scene: Scene) -> None:
    with open(scene.retired, "rb"):
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sleep", ["sleep", "30"])
        with subprocess.Popen(["sleep", "30"], pass_fds=[os.open(scene.retired, os.O_RDONLY)]) as holder:
            kept(scene, "in-use")
            holder.kill()
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_guest_runs_on_the_result(scene: Scene) -> None:
    """The usual case after two weeks: the image is in use and is looked at without disturbing it."""
    require_tool("qemu-io")
    format_name = "raw" if scene.dest.endswith(".raw") else "qcow2"
    with subprocess.Popen(["qemu-io", "-f", format_name, scene.dest], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        assert guest.stdin is not None and guest.stdout is not None
        guest.stdin.write(b"write -P 3 0 64k\nlength\n")
        guest.stdin.flush()
        guest.stdout.readline()
        answer = clean(scene)
        guest.stdin.write(b"quit\n")
        guest.stdin.close()
        guest.wait(20)
    assert answer["changed"], answer["msg"]


def test_unverified_is_kept(tmp_path: Any) -> None:
    scene = Scene(str(tmp_path))
    migrate(scene, verify=False)
    kept(scene, "unverified")


def test_overlay_on_the_retired_original(scene: Scene) -> None:
    tool = require_tool("qemu-img")
    overlay = os.path.join(os.path.dirname(scene.retired), "over.qcow2")
    subprocess.run([tool, "create", "-q", "-f", "qcow2", "-F", "qcow", "-b", scene.retired, overlay], check=True)
    kept(scene, "needed")
    os.unlink(overlay)
    assert clean(scene)["changed"]


def _made_anew(scene: Scene, tool: str, *more: str) -> None:
    size = str(SPEC.size)
    subprocess.run([tool, "create", "-q", "-f", "raw" if scene.dest.endswith(".raw") else "qcow2", *more, scene.dest, size], check=True)


def test_result_made_anew_under_its_name(scene: Scene) -> None:
    """An empty image of the same size, in the same file."""
    inode = os.stat(scene.dest).st_ino
    _made_anew(scene, require_tool("qemu-img"))
    assert os.stat(scene.dest).st_ino == inode
    kept(scene, "changed")


def test_result_replaced_by_another_file(scene: Scene) -> None:
    tool = require_tool("qemu-img")
    os.rename(scene.dest, scene.dest + ".moved")
    _made_anew(scene, tool)
    kept(scene, "changed")


def test_result_that_has_become_an_overlay(scene: Scene) -> None:
    tool = require_tool("qemu-img")
    if scene.dest.endswith(".raw"):
        pytest.skip("a raw image has no backing file")
    base = os.path.join(os.path.dirname(scene.dest), "other.raw")
    with open(base, "wb") as stream:
        stream.truncate(1 << 20)
    subprocess.run([tool, "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", base, scene.dest], check=True)
    kept(scene, "changed")


def test_result_overwritten_with_zeros(scene: Scene) -> None:
    tool = require_tool("qemu-io")
    format_name = "raw" if scene.dest.endswith(".raw") else "qcow2"
    size = SPEC.size // 512 * 512
    subprocess.run([tool, "-f", format_name, "-c", "write -z 0 %d" % size, scene.dest], check=True, stdout=subprocess.DEVNULL)
    kept(scene, "changed")


def test_guest_has_written_to_most_of_the_result(scene: Scene) -> None:
    tool = require_tool("qemu-io")
    format_name = "raw" if scene.dest.endswith(".raw") else "qcow2"
    subprocess.run([tool, "-f", format_name, "-c", "write -P 7 0 2m", scene.dest], check=True, stdout=subprocess.DEVNULL)
    assert clean(scene)["changed"]
