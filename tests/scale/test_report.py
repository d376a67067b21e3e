# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a large fleet does not grow in memory with the number of hosts, nor its page with that of images."""

import json
import os
import subprocess
import sys

from ansible_collections.vmimage.qcow.tests.support.returned import looked_at

MAKE = """
import resource, sys
from ansible_collections.vmimage.qcow.plugins.action.qcow_report import make
totals = make(sys.argv[1], [], "Fleet")[1]
print(int(totals["images"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def fleet(folder, hosts, images):
    folder.mkdir()
    rows = [looked_at(f"/i/{number}.qcow", allocated_size=number, reasons=["x" * 900], check=None) for number in range(images)]
    text = json.dumps({"schema": 1, "time": "2026-11-22T01:00:00Z", "summary": {"files": images}, "images": rows})
    for number in range(hosts):
        (folder / f"scan-h{number:04d}.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONPATH=":".join(sys.path)),
    )
    found, kilobytes = map(int, done.stdout.split())
    assert found == hosts * images
    return kilobytes / 1024, os.path.getsize(folder / "index.html") / (1 << 20)


def test_ten_times_the_hosts_need_no_more_memory(tmp_path):
    few, _page = fleet(tmp_path / "few", 80, 25)
    many, page = fleet(tmp_path / "many", 800, 25)
    assert many < few + 12, "MiB"
    assert page < 2, "MiB"
