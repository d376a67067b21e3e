#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: all-pythons.sh SCRIPT
# Runs SCRIPT with one interpreter of each Python version from 3.6 on that this machine has, in PATH or of pyenv.
set -eu -o pipefail
shopt -s nullglob

seen=" "
failed=""
for minor in {6..19}; do
    for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python "python3.$minor" python3; do
        # The interpreter itself: a shim starts whatever is selected, or nothing.
        real=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [ "$real" != "3.$minor" ] || [[ $seen == *" $real "* ]]; then continue; fi
        seen+="$real "
        "$python" -X dev -W error::SyntaxWarning "$1" || failed+=" $real"
    done
done
if [ -n "$failed" ]; then
    echo "Failed on Python$failed" >&2
    exit 1
fi
[ "$seen" != " " ] || { echo "No Python found" >&2; exit 1; }
case $seen in *" 3.6 "*) ;; *) echo "NOT RUN on Python 3.6, the oldest that is supported: this machine has none." ;; esac
