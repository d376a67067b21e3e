# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``make bench``: this collection and its peers in turn, one table.

``BENCH=name`` runs the cases with that in their name. ``BENCH_SCALE=small`` runs them on small images, for correctness and not for the numbers;
``BENCH_SCALE=0.25`` makes images a quarter as large.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import List

from ansible_collections.vmimage.qcow.bench.calls import CALLS
from ansible_collections.vmimage.qcow.bench.cases import ENGINE, MIB, Bench, Row
from ansible_collections.vmimage.qcow.bench.measure import median, run

CASES = {case.__name__: case for case in (*ENGINE, *CALLS)}
_COLUMNS = ("work", "against", "ours s", "peer's s", "ratio", "spread", "CPU ratio", "at least", "peak MiB", "written MiB")


def main() -> None:
    """Run the cases that were asked for and print the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=0, help="runs of each side (default 5, 1 with BENCH_SCALE=small)")
    parser.add_argument("--folder", default=None, help="where images and results go (default: a new directory in the current one's build/)")
    arguments = parser.parse_args()
    scale = os.environ.get("BENCH_SCALE") or "1"
    small = scale == "small"
    for tool in ("qemu-img", "find", "cp"):
        if shutil.which(tool) is None:
            sys.exit("bench needs {0}".format(tool))
    os.makedirs("build", exist_ok=True)
    folder = tempfile.mkdtemp(prefix="bench-", dir=arguments.folder or "build")
    idle = run([sys.executable, "-c", "pass"]).memory
    rows: List[Row] = []
    try:
        bench = Bench(os.path.abspath(folder), 1 / 64 if small else float(scale), arguments.pairs or (1 if small else 5))
        os.mkdir(bench.state)
        for case in [case for name, case in CASES.items() if (os.environ.get("BENCH") or "") in name]:
            for row in case(bench):
                rows.append(row)
                print("{0}, against {1}: {2:.1f} times".format(row.work, row.peer, median(_ratios(row))), file=sys.stderr)
    except KeyboardInterrupt:
        pass  # what has been measured is shown
    finally:
        shutil.rmtree(folder)
    if not rows:
        sys.exit("no case has {0!r} in its name".format(os.environ.get("BENCH")))
    print(_machine())
    print()
    print(table(rows, idle))


def _ratios(row: Row) -> List[float]:
    return [ratio * row.factor for ratio in row.contest.ratios()]


def table(rows: List[Row], idle: int) -> str:
    """The rows as a reStructuredText table.

    :param idle: bytes of memory that the bare interpreter takes.
    """
    lines = [_COLUMNS]
    for row in rows:
        ratios = _ratios(row)
        lines.append(
            (
                row.work,
                row.peer,
                "{0:.2f}".format(median([each.seconds for each in row.contest.ours])),
                "{0:.2f}".format(median([each.seconds for each in row.contest.theirs]) * row.factor),
                "{0:.1f}".format(median(ratios)) if median(ratios) >= 2 else "{0:.2f}".format(median(ratios)),
                "{0:.1f} - {1:.1f}".format(min(ratios), max(ratios)) if len(ratios) > 1 else "1 pair",
                "{0:.1f}".format(row.contest.cpu_ratio() * row.factor),
                "{0:.3g}".format(row.goal) if row.goal else "",
                "+{0}".format(max(0, max(each.memory for each in row.contest.ours) - idle) // MIB),
                "{0}".format(row.contest.written // MIB) if row.contest.written else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    border = "  ".join("=" * width for width in widths)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([border, text[0], border, *text[1:], border])


def _machine() -> str:
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    version = subprocess.run(["qemu-img", "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout.split("\n")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return "{0}, {1} processors, {2} GiB; Linux {3}; Python {4}; {5}; load when it ended {6:.1f}".format(
        model, os.cpu_count(), memory, platform.release(), platform.python_version(), version, os.getloadavg()[0]
    )


if __name__ == "__main__":
    main()
