#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# execution-environment.sh ENVIRONMENT ARTIFACT: what ansible-builder makes of the collection when it goes into an execution environment.
set -euo pipefail
bin=$(cd "$1/bin" && pwd) artifact=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/ansible-galaxy" collection install --force --offline -p "$work/collections" "$artifact" >/dev/null 2>&1
cd "$work"
printf 'version: 3\nimages:\n  base_image: {name: example.org/base:latest}\ndependencies:\n  galaxy:\n    collections:\n      - name: %s\n        type: file\n' \
    "$artifact" >ee.yml
"$bin/ansible-builder" create -f ee.yml -c context
test -s context/Containerfile || test -s context/Dockerfile  # podman, docker
found=$("$bin/ansible-builder" introspect "$work/collections")
printf '%s\n' "$found"
test -f "$work/collections/ansible_collections/vmimage/qcow/meta/execution-environment.yml"
# It needs nothing that the base image has not.
grep -qx 'python: \(\[\]\|{}\)' <<<"$found" && grep -qx 'system: \(\[\]\|{}\)' <<<"$found"
