# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stands in for the get-pip script that ansible-test downloads for each environment it makes.

The same work is done with the wheels that come with the interpreter, so that the tests need a package index and nothing else.
tests/support/ansible-test.sh puts this file where ansible-test keeps its download.
"""

import ensurepip
import subprocess
import sys

# As a process of its own: it blanks PIP_* and pip's configuration where it runs.
subprocess.run([sys.executable, "-m", "ensurepip"], stdout=subprocess.DEVNULL, check=True)
# The release asked for is fetched only where the bundled one cannot read today's wheels: it costs seconds in each environment.
if tuple(int(part) for part in ensurepip.version().split(".")[:2]) < (21, 3):
    wanted = [argument for argument in sys.argv[1:] if argument.startswith("pip==")]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"] + wanted, check=True)
