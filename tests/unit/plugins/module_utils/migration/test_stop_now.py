# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stopped now, at each state that a record reaches: all is undone, or all is done, and the results say which."""

import os
import pathlib
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Record, Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.stop_run import stop_run
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build

BASE = ImageSpec(size=1 << 20, clusters={1: Plain(b"base")})
CHAIN = {"over.qcow": ImageSpec(size=1 << 20, backing=Backing(b"base.qcow")), "base.qcow": BASE}


def run_stopped(wanted: list[Request], state: bytes, at: int, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """It is stopped when the ``at``-th state is noted in a record."""
    note, noted = Record.note, [0]

    def noting(self: Record, what: str, **facts: Any) -> None:
        note(self, what, **facts)
        noted[0] += 1
        if noted[0] == at:
            stop_run(state, "now", wait=0, check_mode=False)

    with patch.context() as patched:
        patched.setattr(Record, "note", noting)
        return run(wanted, Settings(state))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("specs", [CHAIN, {"base.qcow": BASE}], ids=["chain", "single"])
def test_at_each_state(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, specs: dict[str, ImageSpec], in_place: bool) -> None:
    noted = 5 * len(specs)  # copying, verified, published, repointed, (retired,) done
    for at in range(1, noted + 1):
        scene = tmp_path / str(at)
        scene.mkdir()
        for name, spec in specs.items():
            build(spec).write(scene / name)
        state = os.fsencode(tmp_path / ("state%d" % at))
        paths = [os.fsencode(scene / name) for name in specs]
        wanted = [Request(path, state_dir=state, retire=True, dest=path if in_place else None) for path in paths]
        results = run_stopped(wanted, state, at, monkeypatch)
        assert not any(result["failed"] for result in results), (at, results)
        last = {record.path_of("src"): record for record in Records(state).all()}
        for path, result in zip(paths, results):
            record = last.get(path)
            if record is None or record.state == "failed":
                assert (result["action"], result["reason"], result["changed"]) == ("defer", "stopped", False), (at, result)
            elif record.state == "done":
                assert result["action"] in ("noop", "convert") and result["changed"], (at, result)
            else:
                assert in_place and record.state == "published", (at, record.state)
                assert result["changed"] and "the next run finishes it" in result["msg"] and result["record"] == record.id, (at, result)
        if not in_place:
            assert len({result["changed"] for result in results}) == 1, (at, results)
            assert len(os.listdir(scene)) == len(specs) * (2 if results[0]["changed"] else 1), at
        if os.path.exists(os.path.join(state, b"stop.json")):
            os.unlink(os.path.join(state, b"stop.json"))  # the next run is in the same process
        assert not any(result["failed"] for result in run(wanted, Settings(state))), at
        assert len(os.listdir(scene)) == 2 * len(specs), at
