#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: ansible-test.sh VENV ARGUMENT...
# Runs VENV's ansible-test in a copy of the work tree: it insists on a path ending in ansible_collections/NAMESPACE/NAME that is no
# link, and lints everything it finds there. Its environments and downloads stay under build/, not in the developer's home.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$(cd "$1" && pwd)
shift
here=$root/build/ansible-test
copy=$here/ansible_collections/vmimage/qcow

mkdir -p "$copy/tests/output" "$here/home/.ansible/test/cache"
find "$copy" -mindepth 1 -maxdepth 1 ! -name tests -exec rm -rf {} +
find "$copy/tests" -mindepth 1 -maxdepth 1 ! -name output -exec rm -rf {} + # output/ holds environments worth keeping
cd "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
done | tar --create --null --files-from=- | tar --extract --directory="$copy"
git init --quiet --template= "$copy" # ansible-test asks the nearest repository for the list of files: ours ignores build/

# The names under which ansible-test 2.16, 2.17, 2.18-2.19 and 2.20-2.21 look for it.
for version in 20_3_4 21_3_1 23_1_2 24_2 25_2; do
    cp tests/support/get_pip.py "$here/home/.ansible/test/cache/get_pip_$version.py"
done

export PIP_QUIET=1
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pip}
shopt -s nullglob
for directory in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do
    PATH=$PATH:$directory # at the end: only for versions that the system does not have
done
export HOME=$here/home
export PATH=$venv/bin:$PATH
unset ANSIBLE_COLLECTIONS_PATH PYTHONPATH
cd "$copy"
exec ansible-test "$@"
