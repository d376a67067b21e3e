# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of files as data, through the playbooks: whatever an image is called, every step finds it under its own name, and touches nothing else."""

import csv
import os
import pathlib
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.attacks.test_names import EVIL
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played, path_of

ELSEWHERE = {"VICTIM": "../victims/of", "TENANT": "t"}
"""Variables of the environment in which modules run."""

EXACT = [name.replace("/", "|").encode() for name in EVIL] + [
    b"$VICTIM",
    b"${VICTIM}",
    b"$HOME",
    b"${PATH}",
    b"$",
    b"$TENANT/$VICTIM",
    b"$unset/plain",
    b"~root",
    b"~/home",
    b"-rf",
    b"a,b",
    b"'single' \"double\"",
    b"\\xff",
    b"\xff",
    b"\xe9t\xe9 {{ 7 * 7 }}/$VICTIM",
    b"\xc2\x85next line",
    b"\xff/\xfe",
]
"""Names as they are on the filesystem, without the ending; two of them look alike to a person."""


def content(path: bytes) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


class Place:
    """A tree with an image of every name, and images wherever such a name would lead if something expanded it."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch, self.tree = scratch, os.fsencode(scratch / "images")
        self.environment = {"HOME": str(scratch / "home"), "VICTIM": "../victims/of", "TENANT": "t"}
        os.mkdir(self.environment["HOME"])
        self.sources = [os.path.join(self.tree, name + b".qcow") for name in EXACT]
        victims = {self.expanded(source) for source in self.sources} - set(self.sources)
        self.images = {path: self.make(path, number) for number, path in enumerate(self.sources + sorted(victims))}
        self.controller = Controller(scratch)
        self.variables: dict[str, Any] = {
            "%s_%s" % (play, name): value
            for play in ("scan", "migrate", "rollback", "cleanup")
            for name, value in (("state_dir", str(scratch / "state")), ("paths", os.fsdecode(self.tree)))
        }
        # Some victims are below the tree and not meant, such as that of $HOME, an absolute path.
        below = {os.fsdecode(path[len(self.tree) :].split(b"/")[1]) for path in victims if path.startswith(self.tree + b"/")}
        for play in ("scan", "migrate"):
            self.variables[play + "_exclude"] = [os.path.join(os.fsdecode(self.tree), name) for name in sorted(below)]

    def expanded(self, path: bytes) -> bytes:
        """Where a name leads if variables in it are expanded."""
        for name, value in {**os.environ, **self.environment}.items():
            for written in ("${%s}" % name, "$" + name):
                path = path.replace(written.encode(), os.fsencode(value))
        return os.path.normpath(path)

    @staticmethod
    def make(path: bytes, number: int) -> bytes:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        build(ImageSpec(size=1 << 20, clusters={number: Plain(b"%d" % number)})).write(path)
        return content(path)

    def play(self, playbook: str, **variables: Any) -> Played:
        played = self.controller.run(playbook, environment=self.environment, **dict(self.variables, **variables))
        assert played.returncode == 0, played.output
        return played

    def files(self) -> dict[bytes, bytes]:
        """Everything that is there, but for what Ansible and the collection keep for themselves."""
        found = {}
        for top in (self.tree, os.fsencode(self.scratch / "victims")):
            for directory, _directories, names in os.walk(top):
                found.update({path: content(path) for path in (os.path.join(directory, name) for name in names)})
        return found

    def changed(self, original: str) -> None:
        """See that there is a result for each image, of the right name, and that nothing else has changed.

        :param original: what is appended to the originals' names; nothing where they are gone.
        """
        files = self.files()
        results = {path: files.pop(path + b"2", b"") for path in self.sources}
        assert all(result[:4] == b"QFI\xfb" and result[7] == 3 for result in results.values()), sorted(files)
        gone = set(self.sources)
        expected = {path: data for path, data in self.images.items() if path not in gone}
        if original:
            expected.update({path + original.encode(): self.images[path] for path in self.sources})
        assert files == expected


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("names"))


def test_every_playbook(place: Place) -> None:
    place.play("scan", scan_report="v1")
    assert place.files() == place.images
    plan = str(place.controller.work / "qcow-reports")
    planned = place.play("migrate", migrate_plan=plan, migrate_paths="")
    place.changed(".qcow1.orig")
    assert sorted(path_of(image, "dest") for image in planned.converted) == sorted(path + b"2" for path in place.sources)
    place.play("rollback")
    assert place.files() == place.images
    place.play("migrate")
    place.changed(".qcow1.orig")
    place.play("cleanup", cleanup_min_age_days=0)
    place.changed("")
