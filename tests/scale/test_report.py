# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a large fleet does not grow in memory with the number of hosts, nor its page with that of images; a host with many is bounded, too."""

import os
import pathlib
import subprocess
import sys

import pytest

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_merge
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.tests.support.returned import looked_at

MAKE = """
import sys
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files import make
from ansible_collections.vmimage.qcow.tests.support.memory import peak
totals = make(sys.argv[1], [], "Fleet")[1]
print(int(totals["images"]), peak())
"""

# The result is held as Ansible holds it, and weighed before; one entry serves for all images, but for its name.
MERGE = """
import sys
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_merge
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.tests.support.memory import forget_peak, peak
from ansible_collections.vmimage.qcow.tests.support.returned import converted, looked_at, recorded
directory, play, images = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = [f"/srv/images/of/a/long/name/{number}.qcow" for number in range(images)]
look, result, record = looked_at("x"), converted("x"), recorded("x")
if play == "scan":
    results = Results(found={"images": [dict(look, path=name) for name in names], "summary": {"files": images}},
                      planned={"images": [dict(result, src=name) for name in names]})
else:
    results = Results(done={"images": [dict(result, src=name) for name in names], "records": [
        dict(record, src=name, dest=name + "2", retired=name + ".qcow1.orig", record=f"20261101T{number:06d}.000000Z")
        for number, name in enumerate(names)]})
before = forget_peak()
host_merge.keep(directory, "h", Run(play, "2026-11-01T02:15:12Z", ("/srv",)), results)
print(images, peak() - before)
"""


def run(program, *arguments):
    """What it counted, and MiB of memory."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONPATH=":".join(sys.path)),
    )
    counted, memory = map(int, done.stdout.split())
    return counted, memory / (1 << 20)


def fleet(folder: pathlib.Path, hosts: int, images: int) -> tuple[float, float]:
    folder.mkdir()
    rows = [looked_at(f"/i/{number}.qcow", allocated_size=number, reasons=["x" * 900], check=None) for number in range(images)]
    results = Results(found={"summary": {"files": images}, "images": rows})
    host_merge.keep(str(folder), "h0000", Run("scan", "2026-11-22T01:00:00Z"), results)
    text = (folder / "host-h0000.jsonl").read_text()
    for number in range(1, hosts):
        (folder / f"host-h{number:04d}.jsonl").write_text(text)
    found, memory = run(MAKE, str(folder))
    assert found == hosts * images
    return memory, os.path.getsize(folder / "index.html") / (1 << 20)


def test_ten_times_the_hosts_need_little_more_memory(tmp_path: pathlib.Path) -> None:
    few, _page = fleet(tmp_path / "few", 80, 25)
    many, page = fleet(tmp_path / "many", 800, 25)
    assert many < few + 40, "MiB; the page may list 20,000 images"
    assert page < 6, "MiB"


@pytest.mark.slow
def test_host_with_100000_images(tmp_path: pathlib.Path) -> None:
    for play in ("scan", "migrate"):
        assert run(MERGE, str(tmp_path), play, "100000")[1] < 200, "MiB more than the result itself"
        found, memory = run(MAKE, str(tmp_path))
        assert found == 100000 and memory < 200, "MiB"
