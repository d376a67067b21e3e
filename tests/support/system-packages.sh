#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Installs what bindep.txt lists for the tests, on Debian-like (apt) and RHEL-like (dnf) systems. Does nothing when all is there.
# Without the right to install, it says what is missing: the tests that need it skip, and fail where CI=true.
set -u
cd "$(dirname "$0")/../.." || exit

if command -v apt-get >/dev/null; then
    platform=dpkg
    install=(apt-get install --yes --no-install-recommends)
    export DEBIAN_FRONTEND=noninteractive
elif command -v dnf >/dev/null; then
    platform=rpm
    install=(dnf install --assumeyes)
else
    platform=
    install=()
fi

is_there() {
    case $platform in
        dpkg) [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
        rpm) rpm --query --quiet --whatprovides "$1" ;;
        *) false ;;
    esac
}

# Only what this list uses of bindep's format: a name, and in brackets the platform, if it is one's alone, and profiles.
missing=()
while read -r package selectors; do
    case " ${selectors//[][]/ } " in
        *" platform:$platform test "*) ;;
        *" platform:"*) continue ;;
        *" test "*) ;;
        *) continue ;;
    esac
    is_there "$package" || missing+=("$package")
done < <(grep '^[a-zA-Z]' bindep.txt)
[ ${#missing[@]} = 0 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(sudo -n)
fi
if [ -z "$platform" ] || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; }; then
    echo "Missing for the tests, and cannot be installed here: ${missing[*]}. Ask an administrator for them." >&2
    [ "${CI:-}" != true ]
    exit
fi

echo "Installing for the tests: ${missing[*]}"
[ "$platform" != dpkg ] || "${as_root[@]}" apt-get update --quiet=2 || echo "apt-get update failed; going on with the package lists that are there" >&2
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
