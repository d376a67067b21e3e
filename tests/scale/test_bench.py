# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmark in small: every case runs to its end, its own comparisons of results included. The figures mean nothing at this size."""

import os
import pathlib
import subprocess
import sys

import pytest

from ansible_collections.vmimage.qcow.bench.run import CASES
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.require import require_root


@pytest.mark.parametrize("case", sorted(CASES))
def test_case_runs(case: str, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    if case == "reflink":
        require_root()
    done = subprocess.run(
        [sys.executable, "-m", "ansible_collections.vmimage.qcow.bench.run", "--folder", str(tmp_path)],
        env={**os.environ, "BENCH": case, "BENCH_SCALE": "small"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 pair" in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == [], "something was left behind"
