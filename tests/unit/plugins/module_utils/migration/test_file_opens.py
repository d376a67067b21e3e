# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often an image is opened and a directory is listed: a walk reads a head, a look opens the image, and executing a plan opens it once more.

On network storage each open is a round trip, and a tree of millions of files that is walked twice is an hour.
"""

import os
import pathlib
import re
from collections import Counter
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.faults import Server
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Plain

MIB = 1 << 20


@pytest.fixture(name="images")
def _images(tmp_path: pathlib.Path) -> pathlib.Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    build(ImageSpec(size=MIB, clusters={5: Plain(b"data")})).write(images / "base.img")
    build(ImageSpec(size=MIB, clusters={6: Plain(b"more")}, backing=Backing(b"../base.img"))).write(images / "sub" / "over.img")
    return images


class Traced:
    """What a job opens and lists, by last names."""

    def __init__(self, tmp_path: pathlib.Path, job: str, **args: Any) -> None:
        with Server(isolated=False) as server:
            lines = server.trace(str(tmp_path / "log"), ["openat", "openat2", "getdents64"], job, **args)
        opened = [re.search(r'openat2?\([^"]*"([^"]*)".* = \d', line) for line in lines]
        listed = [re.search(r"getdents64\(\d+<([^>]*)>.* = [1-9]", line) for line in lines]
        self.opened = Counter(os.path.basename(match[1]) for match in opened if match)
        self.listed = Counter(os.path.basename(match[1]) for match in listed if match)


def test_info_walks_once_and_looks_once(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    traced = Traced(tmp_path, "look", paths=[str(images)], state=str(tmp_path / "state"))
    assert traced.listed["images"] == traced.listed["sub"] == 1
    assert traced.opened["over.img"] == 2, "the walk's, and the look's"
    assert traced.opened["base.img"] == 3, "and that of the look at the overlay"


def test_conversion_walks_once_plans_once_and_executes_once(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    traced = Traced(tmp_path, "migrate_below", paths=[str(images)], state=str(tmp_path / "state"))
    assert traced.listed["images"] == traced.listed["sub"] == 1
    assert traced.opened["over.img"] == 4, "the walk's, the plan's with a look at whose it is, and the execution's"
    assert traced.opened["base.img"] == 5, "and the last two for its overlay"
