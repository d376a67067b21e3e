#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# cut_line.sh VMHOSTS NAME SECONDS: wait until the lab's host copies an image, take its network away for so long, and give it back.
set -euo pipefail
vmhosts=$1 name=$2 seconds=$3
eval "$("$vmhosts" vars)"
for _ in $(seq 600); do
    if grep -qs '"stage": "copy"' "$LAB_DIR/state/$name/root/var/lib/vmimage-qcow/progress/"*-*.json; then
        sleep 6
        ip -n "$LAB_CTL" link set "v-$name" down
        sleep "$seconds"
        ip -n "$LAB_CTL" link set "v-$name" up
        exit 0
    fi
    sleep 0.2
done
echo "$name has never begun to copy" >&2
exit 1
