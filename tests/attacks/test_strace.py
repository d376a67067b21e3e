# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel is asked during a migration: below a directory of images, nothing by a path."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20
RUN = """
import os, sys
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, record_batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.seen_images import SeenImages
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.search import Search, candidates
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records

folder, state, kind = map(os.fsencode, sys.argv[1:])
options = {"layout": "keep"} if kind == b"keep" else {"chains": "flatten", "compression": "zstd"} if kind == b"staged" else {}
if kind == b"flatten":
    options["chains"] = "flatten"

def asked(around):
    found = candidates(Search((folder,), (), False, False), Records(state), around)
    return [Request(path, retire=True, state_dir=state, backing_dirs=(folder,), **options) for path in found.paths]

results = batch.run(asked, batch.Settings(state, reserve=0))
assert results and not [result["msg"] for result in results if result["failed"]], results
choice = record_batch.Choice(state, paths=(folder,))
undo = record_batch.roll_back_all(choice, discard_changes=False) if kind == b"keep" else record_batch.clean_all(choice, min_age=0)
assert undo and all(answer["changed"] for answer in undo), undo
"""


def calls_by_path(log: str, folder: pathlib.Path) -> list[str]:
    """The calls, of all processes, that name something at or below a directory by its path."""
    quoted = re.compile(r'(?<![\w>])"%s(?:/[^"]*)?"' % re.escape(os.fspath(folder)))
    # The arguments of our own start, and qemu-img's, which get names in messages only.
    return [line for line in log.splitlines() if quoted.search(line) and " execve(" not in line]


@pytest.mark.parametrize("kind", ["thin", "keep", "flatten", "staged"])
def test_nothing_below_a_directory_of_images_is_reached_by_path(tmp_path: pathlib.Path, kind: str) -> None:
    """Scan, migration of a chain over a foreign base, and its undoing."""
    oracle.require_qemu_img()
    folder, log = tmp_path / "images", tmp_path / "log"
    folder.mkdir()
    (tmp_path / "raw").write_bytes(os.urandom(MIB))
    oracle.run("convert", "-f", "raw", "-O", "vmdk", tmp_path / "raw", folder / "base.vmdk")
    shape = {"cluster_bits": 9, "l2_bits": 12}
    build(ImageSpec(size=MIB, clusters={3: Plain(b"middle")}, backing=Backing(b"base.vmdk"), **shape)).write(folder / "middle.qcow")
    build(ImageSpec(size=MIB, clusters={9: Plain(b"top")}, backing=Backing(b"middle.qcow"), **shape)).write(folder / "top.qcow")
    command = [require_tool("strace"), "-f", "-s", "4096", "-o", log, "-e", "trace=%file", sys.executable, "-c", RUN]
    subprocess.run([*command, folder, tmp_path / "state", kind], check=True)
    text = log.read_text(errors="replace")
    assert '"middle.qcow"' in text and '"top.qcow2"' in text, "the log tells of names in open directories"
    assert calls_by_path(text, folder) == []
