#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Usage: build.sh VENV DIRECTORY
# Builds the documentation site with VENV's tools into DIRECTORY/html, from the documentation of modules and roles and from docs/docsite.
# Every warning is an error. Needs no network. ANSIBLE_COLLECTIONS_PATH has to lead to this collection.
set -eu -o pipefail

export PATH=$1/bin:$PATH
site=$2
log=$site/build.log

rm -rf "$site"
mkdir -p "$site"
{
    antsibull-docs sphinx-init --use-current --squash-hierarchy --fail-on-error --dest-dir "$site" \
        --project vmimage.qcow --title "vmimage.qcow: QCOW version 1 images, migrated" --html-short-title vmimage.qcow \
        --copyright "vmimage.qcow contributors" vmimage.qcow
    # Links into the documentation of others would be looked up in their inventories, on the network. Our own links are checked by tests/docs.
    printf '\nintersphinx_mapping = {}\nsuppress_warnings = ["ref.ref"]\n' >> "$site/conf.py"
    "$site/build.sh"
} > "$log" 2>&1 || { grep -E 'WARNING|ERROR|[Ee]rror' "$log" || tail -n 30 "$log"; exit 1; } >&2
mv "$site/build/html" "$site/html"
echo "$site/html/index.html: $(find "$site/html" -name '*.html' | wc -l) pages"
