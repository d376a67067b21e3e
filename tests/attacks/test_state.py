# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A state directory that others made, or can write, is not obeyed."""

import json
import os
import pathlib
import stat
from typing import Callable

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import StateError
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.attacks.attacker import TENANT, allow
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_root


@pytest.fixture(name="state")
def _state(tmp_path: pathlib.Path) -> pathlib.Path:
    """A state directory with the record of a migration."""
    require_root()
    image = tmp_path / "disk.qcow"
    build(ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})).write(image)
    state = tmp_path / "state"
    (result,) = batch.run([Request(os.fsencode(image), retire=True, state_dir=os.fsencode(state))], batch.Settings(os.fsencode(state)))
    assert not result["failed"], result["msg"]
    return state


def _linked(state: pathlib.Path) -> None:
    state.rename(state.with_name("elsewhere"))
    state.symlink_to(state.with_name("elsewhere"))


SPOILT = {
    "belongs to somebody else": lambda state: os.chown(state, TENANT, TENANT),
    "can be written by a group": lambda state: (os.chown(state, 0, TENANT), state.chmod(0o770)),
    "can be written by everybody": lambda state: state.chmod(0o777),
    "can be written by a user of its access list": lambda state: allow(state, "u:%d:rwx" % TENANT),
    "is a symbolic link": _linked,
    "is in a directory of somebody else": lambda state: os.chown(state.parent, TENANT, TENANT),
    "has records of somebody else": lambda state: os.chown(state / "records", TENANT, TENANT),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_nothing_is_done_by_its_records(state: pathlib.Path, spoil: Callable[[pathlib.Path], object]) -> None:
    folder, choice = state.parent, Choice(os.fsencode(state))
    spoil(state)
    before = sorted(path.name for path in folder.iterdir())
    whole = choice._replace(paths=(os.fsencode(folder),))
    for act in (lambda: roll_back_all(whole, discard_changes=True), lambda: clean_all(choice, min_age=0)):
        with pytest.raises(StateError, match=r"put there by others.*chown, chmod"):
            act()
    with pytest.raises(StateError):
        list(Records(os.fsencode(state)).all())
    assert sorted(path.name for path in folder.iterdir()) == before


def test_planted_record_does_not_count(state: pathlib.Path) -> None:
    """As it was: a record that a tenant made had root delete a file."""
    (record,) = (state / "records").iterdir()
    victim = state.parent / "victim"
    victim.write_bytes(b"of root")
    facts = json.loads(record.read_text().splitlines()[-1])
    planted = record.with_name("2" + record.name)
    name = {"path": str(victim), "path_base64": None}
    planted.write_text(json.dumps(dict(facts, id="2", state="failed", src=name, dest=name, temporary=name)) + "\n")
    os.chown(planted, TENANT, TENANT)
    batch.run([], batch.Settings(os.fsencode(state)))
    assert victim.exists()
    assert len(list(Records(os.fsencode(state)).all())) == 1


def test_one_that_does_not_exist_is_made_for_us_alone(tmp_path: pathlib.Path) -> None:
    state = tmp_path / "new" / "state"
    Records(os.fsencode(state)).begin({"path": "/a"}, {"path": "/b"})
    for made in (state.parent, state, state / "records"):
        assert (stat.S_IMODE(made.stat().st_mode), made.stat().st_uid) == (0o700, os.geteuid())
    assert len(list(Records(os.fsencode(state)).all())) == 1


def test_link_of_a_stranger_in_a_sticky_directory(tmp_path: pathlib.Path, state: pathlib.Path) -> None:
    """As in /tmp: everybody may create names there, and root's directory behind such a link is not what was meant."""
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(state.parent)
    os.chown(sticky / "link", TENANT, TENANT, follow_symlinks=False)
    before = sorted(path.name for path in state.iterdir())
    with pytest.raises(StateError, match="put there by others"):
        batch.run([], batch.Settings(os.fsencode(sticky / "link" / "state")))
    assert sorted(path.name for path in state.iterdir()) == before
