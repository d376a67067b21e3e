# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A workbench for one image: put it there, look at it, convert it both ways, or see it refused with nothing touched."""

import json
import os
import pathlib
from typing import Any, Mapping, Optional

import pytest

from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import BuiltImage

QCOW2_ONLY = frozenset(["cluster_size", "compression", "lazy_refcounts", "extended_l2", "compat"])


class Workbench:
    """A directory with images, and the state directory of the engine beside it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.directory = root / "images"
        self.results = root / "results"
        self.state = root / "state"
        self.secrets = root / "secrets"
        self.directory.mkdir()
        self.secrets.mkdir()
        self.results.mkdir()

    def file(self, content: bytes, name: str = "disk.qcow") -> pathlib.Path:
        """A file with this content."""
        (self.directory / name).write_bytes(content)
        return self.directory / name

    def image(self, image: BuiltImage, name: str = "disk.qcow", *, sparse: bool = False) -> pathlib.Path:
        """A built image as a file."""
        image.write(self.directory / name, sparse=sparse)
        return self.directory / name

    def inspect(self, path: pathlib.Path) -> dict[str, Any]:
        """What the collection says about a file."""
        return engine.inspect(path)

    def convert(self, path: pathlib.Path, **options: Any) -> dict[str, Any]:
        """Convert into ``results`` and return the module's result; raises engine.Refused."""
        name = "result.%d" % len(list(self.results.iterdir()))
        return engine.convert(path, self.results / name, state_dir=self.state, **options)

    def secret(self, password: bytes) -> pathlib.Path:
        """A file with a password, outside the images."""
        path = self.secrets / ("secret%d" % len(list(self.secrets.iterdir())))
        path.write_bytes(password)
        return path

    @staticmethod
    def read(path: Any) -> bytes:
        """The bytes of a file."""
        return pathlib.Path(os.fsdecode(path)).read_bytes()

    def converts_to(self, path: pathlib.Path, disk: bytes, **options: Any) -> dict[str, Any]:
        """Convert to raw and to qcow2 and compare both with ``disk``; return the qcow2 result."""
        before = self._snapshot()
        raw = self.convert(path, format="raw", **{name: value for name, value in options.items() if name not in QCOW2_ONLY})
        found = pathlib.Path(os.fsdecode(raw["dest"])).read_bytes()
        assert len(found) == len(disk)
        assert found == disk
        qcow2 = self.convert(path, format="qcow2", **options)
        if "qcow2" in oracle.supported_formats():
            oracle.assert_clean(qcow2["dest"])
            assert oracle.guest_bytes(oracle.Node(qcow2["dest"], "qcow2")) == disk
        assert raw["fingerprint"] == qcow2["fingerprint"]
        assert self._snapshot() == before, "converting changed the images"
        return qcow2

    def is_refused(self, path: pathlib.Path, reason: Optional[str], *words: str, **options: Any) -> dict[str, Any]:
        """Both conversions are refused with this reason code and these words, and nothing is published or changed; return the result."""
        before = self._snapshot()
        for wanted in ("raw", "qcow2"):
            with pytest.raises(engine.Refused) as refusal:
                self.convert(path, format=wanted, **options)
            result = refusal.value.result
            assert reason in (None, result["reason"]), (result["reason"], result["msg"])
            for word in words:
                assert word in result["msg"]
            assert path.name in result["msg"] or os.fsdecode(result["dest"]) in result["msg"]
        assert not list(self.results.iterdir()), "something was published"
        assert self._snapshot() == before, "refusing changed the images"
        return result

    def is_not_migrated(self, path: pathlib.Path) -> None:
        """Not a version 1 image: never a candidate, and converting says so or has nothing to do."""
        before = self._snapshot()
        assert not self.inspect(path)["candidate"]
        try:
            assert not self.convert(path, format="qcow2")["changed"]
        except engine.Refused as refusal:
            assert refusal.result["reason"] == "not-v1", refusal.result["msg"]
        assert not list(self.results.iterdir())
        assert self._snapshot() == before

    @staticmethod
    def ranges(result: Mapping[str, Any]) -> list[tuple[int, int]]:
        """(first guest byte, bytes) of the damage a refusal names."""
        return [(found["start"], found["length"]) for found in result["details"]["ranges"]]

    @staticmethod
    def mentions(result: Mapping[str, Any], word: str) -> bool:
        """Whether a result's words contain ``word`` (numbers in other keys do not count)."""
        told = [result.get(key) for key in ("msg", "reasons", "warnings", "notes", "error")]
        return word in json.dumps(told)

    def _snapshot(self) -> dict[str, tuple]:
        return {str(path): _facts(path) for path in sorted(self.directory.rglob("*"))}


def _facts(path: pathlib.Path) -> tuple:
    status = path.lstat()
    content: Optional[bytes] = path.read_bytes() if path.is_file() and not path.is_symlink() and status.st_size < 64 << 20 else None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, content


@pytest.fixture(name="workbench")
def _workbench(tmp_path: pathlib.Path) -> Workbench:
    return Workbench(tmp_path)
