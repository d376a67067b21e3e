#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: importer.sh VENV ARTIFACT
# Imports ARTIFACT as Ansible Galaxy does, with VENV's galaxy-importer. Errors and warnings fail it.
set -eu -o pipefail

PATH=$(cd "$1" && pwd)/bin:$PATH
export PATH
artifact=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# ansible-test sanity and ansible-lint of the whole tree are steps of their own.
cat > "$scratch/importer.cfg" <<EOF
[galaxy-importer]
ANSIBLE_LOCAL_TMP = $scratch/tmp
CHECK_REQUIRED_TAGS = True
CHECK_CHANGELOG = True
LOG_LEVEL_MAIN = INFO
RUN_ANSIBLE_DOC = True
RUN_ANSIBLE_LINT = False
RUN_ANSIBLE_TEST = False
RUN_FLAKE8 = False
EOF
unset ANSIBLE_COLLECTIONS_PATH PYTHONPATH
cd "$scratch"
if GALAXY_IMPORTER_CONFIG=$scratch/importer.cfg python -m galaxy_importer.main "$artifact" > log 2>&1 && ! grep -E '^(WARNING|ERROR)' log; then
    echo "$(basename "$artifact"), $(stat -c %s "$artifact") bytes: imported without a warning"
else
    cat log >&2
    exit 1
fi
