# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stands in for the get-pip script that ansible-test downloads for each environment it makes.

The same work is done with the wheels that come with the interpreter, so that the tests need a package index and nothing else.
tests/support/ansible-test.sh puts this file where ansible-test keeps its download.
"""

import os
import subprocess
import sys

environment = dict(os.environ)  # before ensurepip: it blanks PIP_* and pip's configuration for this process

import ensurepip  # noqa: E402

ensurepip.bootstrap()
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "--upgrade"] + arguments, env=environment))
