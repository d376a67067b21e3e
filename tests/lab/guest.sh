#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# A guest small enough for software emulation: a Debian kernel and an initramfs of busybox and the virtio block modules.
#
#   guest.sh build [DIR]     vmlinuz and initrd.gz in DIR (default: LAB_DIR/cache/guest), once
#
# It speaks on the first serial console. The kernel command line chooses what it does with its disks vda, vdb, ...:
#
#   guest=sha (default)      GUEST-SHA vda <sha256 of the whole disk>, one line per disk, then power off
#   guest=write              write block after block to vda, 4096 bytes each, the first behind the last one found there; after the fsync
#                            of block N: GUEST-WROTE N <seconds since boot>; GUEST-RESUMED N first. Ends with the machine,
#                            after guest.count=N blocks (then it powers off), or by ACPI shutdown.
#   guest.start=MIB          where on vda the blocks begin (default 16)
#   guest=idle               GUEST-UP, then wait for ACPI shutdown;  guest.deaf: do not react to ACPI
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_DIR=${LAB_DIR:-$(cd "$HERE/../.." && pwd)/build/lab}

# shellcheck disable=SC2016  # for the guest's shell
INIT='#!/bin/sh
# Block N of guest=write is one line "BLOCK NNNNNNNN" padded with newlines to 4096 bytes.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/null
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk button evdev; do
    [ ! -f /$m.ko ] || insmod /$m.ko
done
i=0
while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
[ -b /dev/vda ] || { echo "GUEST-FAILED no disk"; poweroff -f; }
mode=sha start=16 count=0 deaf=
for word in $(cat /proc/cmdline); do
    case $word in
        guest=*) mode=${word#guest=} ;;
        guest.start=*) start=${word#guest.start=} ;;
        guest.count=*) count=${word#guest.count=} ;;
        guest.deaf) deaf=1 ;;
    esac
done
# The power button is an input device; whatever arrives on it is a press.
button=$(grep -A 5 "Name=\"Power Button\"" /proc/bus/input/devices | grep -o "event[0-9]*" | head -n 1)
if [ -z "$deaf" ] && [ -n "$button" ]; then
    ( dd if=/dev/input/$button bs=24 count=1 >/dev/null 2>&1; echo "GUEST-BUTTON"; sync; poweroff -f ) &
fi
case $mode in
    sha)
        for disk in /dev/vd[a-z]; do
            echo "GUEST-SHA ${disk#/dev/} $(sha256sum <$disk | cut -c1-64)"
        done
        poweroff -f ;;
    write)
        base=$((start * 256))
        last=$(dd if=/dev/vda bs=4096 skip=$base 2>/dev/null | tr -d "\\000" | grep -a "^BLOCK " | tail -n 1 | cut -c7-14)
        n=${last:-0}
        n=$(expr "$n" + 0)
        echo "GUEST-RESUMED $n"
        while [ "$count" = 0 ] || [ "$n" -lt "$count" ]; do
            n=$((n + 1))
            { printf "BLOCK %08d\n" $n; cat /pad; } | dd of=/dev/vda bs=4096 iflag=fullblock seek=$((base + n - 1)) count=1 conv=notrunc,fsync 2>/dev/null ||
                { echo "GUEST-FAILED write $n"; poweroff -f; }
            read -r up rest </proc/uptime
            echo "GUEST-WROTE $n $up"
            sleep 0.03
        done
        poweroff -f ;;
    idle)
        echo "GUEST-UP"
        while :; do sleep 60; done ;;
esac
echo "GUEST-FAILED mode $mode"
poweroff -f
'

build() {
    local out=${1:-$LAB_DIR/cache/guest} work package module path applet
    [ ! -e "$out/initrd.gz" ] || return 0
    "$HERE/vmhosts.sh" install
    mkdir -p "$out"
    work=$(mktemp -d "$out/work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    # Downloaded and unpacked only: the machine gets no new kernel.
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
    chmod 755 "$work"
    (cd "$work" && apt-get download -qq "$package" 2>"$work/log") || { cat "$work/log" >&2; exit 1; }
    dpkg-deb -x "$work"/*.deb "$work/kernel"
    cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
    mkdir -p "$work"/root/{bin,proc,sys,dev}
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    for applet in $("$work/root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$work/root/bin/$applet"
    done
    # Not every kernel has all of them as modules: init loads what is there, in an order that resolves.
    for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk button evdev; do
        path=$(find "$work/kernel" -name "$module.ko*" | head -1)
        case $path in
            '') ;;
            *.xz) xz -dc "$path" >"$work/root/$module.ko" ;;
            *.zst) zstd -qdc "$path" >"$work/root/$module.ko" ;;
            *) cp "$path" "$work/root/$module.ko" ;;
        esac
    done
    head -c 4081 /dev/zero | tr '\0' '\n' >"$work/root/pad"
    printf '%s' "$INIT" >"$work/root/init"
    chmod 755 "$work/root/init"
    (cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd.gz"
    chmod 644 "$work/vmlinuz" "$work/initrd.gz"
    mv "$work/vmlinuz" "$out/vmlinuz"
    mv "$work/initrd.gz" "$out/initrd.gz"
}

case ${1:-} in
    build) build "${@:2}" ;;
    *) sed -n '/^# A guest/,/^#   guest=idle/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
