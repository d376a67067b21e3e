#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: ansible-test.sh VENV ARGUMENT...
# Runs VENV's ansible-test in a copy of the work tree: it insists on a path ending in ansible_collections/NAMESPACE/NAME that is no
# link, and lints everything it finds there. Its environments and downloads stay under build/, not in the developer's home.
set -eu -o pipefail
shopt -s nullglob

root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$(cd "$1" && pwd)
shift
here=$root/build/ansible-test/$(basename "$venv")
copy=$here/ansible_collections/vmimage/qcow

mkdir -p "$copy/tests/output"
find "$copy" -mindepth 1 -maxdepth 1 ! -name tests -exec rm -rf {} +
find "$copy/tests" -mindepth 1 -maxdepth 1 ! -name output -exec rm -rf {} + # output/ holds environments worth keeping
cd "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
done | tar --create --null --files-from=- | tar --extract --directory="$copy"
git init --quiet --template= "$copy" # ansible-test asks the nearest repository for the list of files: ours ignores build/

# A home of its own, with the user's pip settings.
mkdir -p "$here/home/.ansible/test/cache" "$here/home/.config" "$here/home/.cache"
for settings in .pip .config/pip .cache/pip; do
    if [ -e "$HOME/$settings" ]; then ln -sfn "$HOME/$settings" "$here/home/$settings"; fi
done
# The names under which ansible-test 2.16, 2.17, 2.18-2.19 and 2.20-2.21 look for it.
for version in 20_3_4 21_3_1 23_1_2 24_2 25_2; do
    cp tests/support/get_pip.py "$here/home/.ansible/test/cache/get_pip_$version.py"
done

path=$venv/bin:$PATH
for directory in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do
    path=$path:$directory # at the end: only for versions that the system does not have
done
unset ANSIBLE_COLLECTIONS_PATH PYTHONPATH
cd "$copy"
PATH=$path HOME=$here/home ansible-test "$@" 2>&1 |
    sed -u -E '/^ *(Collecting|Downloading|Using cached|Preparing metadata|Building wheel|Created wheel|Stored in|Installing collected|Successfully|Attempting|Found existing|Uninstalling|Getting requirements|Installing build|━|WARNING: Location)/d'
