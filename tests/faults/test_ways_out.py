# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Messages name what is in the way and the option that is the way out. Nobody is told to move away what may be a guest's disk."""

import os
import pathlib
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import NoSpace, TargetExists, UnsafeImage
from ansible_collections.vmimage.qcow.plugins.module_utils._image.chain import Rules
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, domain_policy
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.domain_references import Domains
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.plan import REFUSE, Plan
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.references import References
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.rollback import plan_rollback
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.source import Source
from ansible_collections.vmimage.qcow.tests.support.faults import Scene
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.require import require_tool


def run(scene: Scene, **options: Any) -> dict[str, Any]:
    state = os.fsencode(scene.state)
    request = Request(**{"src": os.fsencode(scene.src), "state_dir": state, **scene.options, **options})
    return batch.run([request], batch.Settings(state, reserve=0))[0]


def message(scene: Scene, reason: str, **options: Any) -> str:
    result = run(scene, **options)
    assert (result["failed"], result["reason"]) == (True, reason), result
    assert " away" not in result["msg"], result["msg"]
    return str(result["msg"])


def qcow2(path: str) -> None:
    subprocess.run([require_tool("qemu-img"), "create", "-q", "-f", "qcow2", path, "1M"], check=True)


def test_the_results_name_is_taken_by_an_image_that_is_open(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path))
    qcow2(scene.dest)
    assert "is taken by a file that is qcow2. Nothing was changed. Give another dest." in message(scene, "exists")
    with subprocess.Popen(["sleep", "60"], stdin=os.open(scene.dest, os.O_RDONLY)) as user:
        found = message(scene, "exists")
        user.kill()
    assert "in use by" in found and "sleep" in found


def test_the_results_name_is_taken_by_an_earlier_result(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path), retire=False)
    record = run(scene)["record"]
    with open(scene.src, "r+b") as stream:  # the guest has gone on with the original
        stream.seek(-4096, os.SEEK_END)
        stream.write(b"x" * 4096)
    found = message(scene, "exists")
    assert "the result of %s (record %s)" % (scene.src, record) in found and "qcow_rollback" in found and "Give another dest." in found


def test_the_name_of_the_retired_original_is_taken(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path))
    qcow2(scene.retired)
    found = message(scene, "exists")
    assert scene.retired in found and "qcow2" in found and "original=keep" in found
    os.unlink(scene.retired)
    record = run(scene)["record"]
    scene.built.write(scene.src)
    os.unlink(scene.dest)
    found = message(scene, "exists")
    assert "the retired original of %s (record %s)" % (scene.src, record) in found and "qcow_cleanup" in found


def test_the_originals_name_is_taken_when_it_is_to_come_back(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path))
    run(scene)
    qcow2(scene.src)
    (record,) = Records(os.fsencode(scene.state)).all()
    with pytest.raises(TargetExists) as caught:
        plan_rollback(record, References(), discard_changes=False)
    text = str(caught.value)
    assert " away" not in text and "taken by a file that is qcow2" in text and scene.retired in text


def test_domains_that_use_what_has_the_name_are_named() -> None:
    class Known(Domains):
        def survey(self) -> Any:
            return self

        def users_of(self, path: bytes) -> list[Any]:
            return [type("Use", (), {"domain": "shop", "target": "vda"})] if path == b"/i/a.qcow2" else []

    plan = Plan(REFUSE, Request(b"/i/a.qcow"), b"/i/a.qcow2", ["is taken."], "exists")
    (judged,) = domain_policy.judge([plan], Known(), domain_policy.Policy())
    assert judged.reasons == ["is taken. What has the name is used by domain shop (vda)."]


def test_a_symbolic_link_names_the_file_to_give(tmp_path: pathlib.Path) -> None:
    scene = Scene(str(tmp_path))
    link = os.path.join(scene.images, "link.qcow")
    os.symlink("disk.qcow", link)
    assert scene.src in message(scene, "unsafe", src=os.fsencode(link))


def test_too_little_space_but_for_the_reserve(tmp_path: pathlib.Path) -> None:
    with mounted("ext4", str(tmp_path), size_mib=32) as point:
        scene = Scene(point, state=str(tmp_path / "state"))
        request = Request(os.fsencode(scene.src), state_dir=os.fsencode(scene.state))
        with pytest.raises(NoSpace, match="reserve=0"):
            batch.run([request], batch.Settings(os.fsencode(scene.state)))
        assert not batch.run([request], batch.Settings(os.fsencode(scene.state), reserve=0))[0]["failed"]


@pytest.mark.parametrize(("recorded", "way_out"), [("raw", "qemu-img rebase -u -F"), (None, "allow_declared_raw=true")])
def test_a_base_that_is_said_to_be_raw(tmp_path: pathlib.Path, recorded: Any, way_out: str) -> None:
    scene = Scene(str(tmp_path))
    over = os.path.join(scene.images, "over.qcow2")
    named = ["-F", recorded] if recorded else ["-F", "qcow"]
    subprocess.run([require_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-u", "-b", scene.src, *named, over, "1M"], check=True)
    formats = {} if recorded else {os.fsencode(scene.src): "raw"}
    with Source(os.fsencode(over)) as source, pytest.raises(UnsafeImage) as caught:
        source.follow(Rules(formats=formats))
    assert caught.value.reason == "declared-raw" and way_out in str(caught.value)
