#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: find-python.sh [MINIMUM]
# Prints the Python that the Makefile builds its environments with: MINIMUM (3.11) or newer, able to make a virtual environment.
# Set PYTHON to choose another one. A name that is found but does not start (a pyenv shim of a version that is not selected) is passed over.
set -u
minimum=${1:-3.11}

# Prints the interpreter itself, not the link or shim it was started by.
usable() {
    "$1" -c 'import sys, ensurepip, venv; print(sys.executable); sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))' "$minimum" 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    found=$(usable "$PYTHON") && echo "$found" && exit 0
    echo "PYTHON=$PYTHON is not a Python $minimum or newer with its venv and ensurepip modules." >&2
    exit 1
fi
shopt -s nullglob
for candidate in python3.11 python3.12 python3.13 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9]*/bin/python3; do
    found=$(usable "$candidate") && echo "$found" && exit 0
done
cat >&2 <<EOF
No usable Python $minimum or newer found. One of these installs it:
  Debian, Ubuntu:       apt-get install python3 python3-venv
  RHEL, Alma, Rocky:    dnf install python3.11
or set PYTHON=/path/to/python3.11. Only the controller needs it: the hosts that hold the images need Python 3.6.
EOF
exit 1
