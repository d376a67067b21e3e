#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Installs the programs the tests use, on Debian-like (apt) and RHEL-like (dnf) systems. Does nothing when all are there.
# Without the right to install, it says what is missing: the tests that need it skip, and fail where CI=true.
set -u

# what has to work                            Debian          RHEL
needs=(
    "qemu-img --version                     |qemu-utils     |qemu-img"
    "strace -V                              |strace         |strace"
    "mkfs.xfs -V                            |xfsprogs       |xfsprogs"
    "mkfs.btrfs --version                   |btrfs-progs    |btrfs-progs"
    "setfacl --version                      |acl            |acl"
    "setfattr --version                     |attr           |attr"
    "shellcheck --version                   |shellcheck     |ShellCheck"
    "gcc --version                          |gcc            |gcc"
    "git --version                          |git            |git"
    "test -x /usr/bin/python3 -a -e /usr/include/python3*/Python.h |python3-dev |python3-devel"
    "/usr/bin/python3 -c 'import ensurepip' |python3-venv   |python3"
    "ip -V                                  |iproute2       |iproute"
    "libvirtd --version                     |libvirt-daemon-system |libvirt-daemon"
    "virsh --version                        |libvirt-clients |libvirt-client"
    "/usr/bin/python3 -c 'import libvirt'   |python3-libvirt |python3-libvirt"
    "qemu-system-x86_64 --version           |qemu-system-x86 |qemu-kvm"
    "command -v chromium chromium-browser   |chromium       |chromium"
    "fc-match sans                          |fontconfig     |fontconfig"
)

PATH=$PATH:/usr/sbin:/sbin
if command -v apt-get >/dev/null; then
    column=2
    install=(apt-get install --yes --no-install-recommends)
    export DEBIAN_FRONTEND=noninteractive
elif command -v dnf >/dev/null; then
    column=3
    install=(dnf install --assumeyes)
else
    column=0
fi

missing=()
failing=()
for line in "${needs[@]}"; do
    check=${line%%|*}
    if ! eval "$check" >/dev/null 2>&1; then
        failing+=("${check%% *}")
        [ "$column" = 0 ] || missing+=("$(cut -d'|' -f"$column" <<<"$line" | tr -d ' ')")
    fi
done
[ ${#failing[@]} = 0 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(sudo -n)
fi
if [ "$column" = 0 ] || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; }; then
    echo "Missing for the tests: ${failing[*]}. Cannot install here; ask an administrator for: ${missing[*]:-these programs}." >&2
    [ "${CI:-}" != true ]
    exit
fi

echo "Installing for the tests: ${missing[*]}"
[ "$column" != 2 ] || "${as_root[@]}" apt-get update --quiet=2 || echo "apt-get update failed; going on with the package lists that are there" >&2
run() { # what it prints is of interest only when it fails
    local output
    output=$("${as_root[@]}" "$@" </dev/null 2>&1) || { printf '%s\n' "$output" | tail -n 5 >&2; return 1; }
}
run "${install[@]}" "${missing[@]}" && exit 0
status=0
for package in "${missing[@]}"; do
    # One by one: a package that this distribution does not have (btrfs-progs on RHEL) must not keep the others away.
    run "${install[@]}" "$package" || { echo "Could not install $package." >&2; status=1; }
done
[ "$status" = 0 ] || [ "${CI:-}" != true ]
