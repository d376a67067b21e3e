#!/usr/bin/env bash
# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Test lab: virtual machine hosts with a real systemd, sshd, libvirtd and QEMU, each in its own root and network namespace.
#
#   vmhosts.sh check                        can this machine run the lab? (exit 77: no, and why)
#   vmhosts.sh install                      the packages the lab needs, by apt
#   vmhosts.sh build SUITE                  root tree of one Debian release, once, kept in the cache
#   vmhosts.sh up NAME SUITE ADDR [FS]      boot a host; its image folder lies on FS (xfs, btrfs, ext4); ADDR is 10.77.1.x
#   vmhosts.sh down NAME | down-all         end it: no process, mount, loop device or namespace stays
#   vmhosts.sh ssh NAME COMMAND...          run a command on a host
#   vmhosts.sh inventory                    Ansible inventory (YAML) of the hosts that are up
#   vmhosts.sh vars                         the SSH settings as shell assignments: LAB_KEY, LAB_CTL, LAB_PROXY
#
# While hosts are up, LAB_DIR/state holds id (the SSH key) and proxy (the SSH ProxyCommand that reaches them).
#
# LAB_DIR    everything the lab writes (default: build/lab below the project); LAB_DIR/cache survives, LAB_DIR/state does not
# LAB_SIZE   size of a host's image folder (default 2G);  LAB_MIRROR  Debian mirror (default: the one apt uses here)
#
# Hosts talk only inside network namespaces: two labs with different LAB_DIR never meet, though they use the same addresses.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_DIR=${LAB_DIR:-$(cd "$HERE/../.." && pwd)/build/lab}
mkdir -p "$LAB_DIR/cache" "$LAB_DIR/state"
LAB_DIR=$(cd "$LAB_DIR" && pwd -P)
CACHE=$LAB_DIR/cache STATE=$LAB_DIR/state
ID=$(printf '%s' "$STATE" | sha256sum | cut -c1-6)
CTL=qlab-$ID
IMAGES=var/lib/libvirt/images

# A machine that cannot run the lab skips it with the reason; under CI=true a missing lab is a failure.
cannot() {
    if [ "${CI:-}" = true ]; then echo "lab: FAILED: $*" >&2; exit 1; fi
    echo "lab: skipped: $*" >&2
    exit 77
}

check() {
    [ "$(uname -s)" = Linux ] || cannot "needs Linux"
    [ "$(id -u)" = 0 ] || cannot "needs root (mounts, network namespaces, systemd-nspawn)"
    command -v apt-get >/dev/null || cannot "needs a Debian machine: the hosts are built from Debian packages"
    unshare -m -n true 2>/dev/null || cannot "mount and network namespaces are not allowed here"
}

packages() {
    local missing=() needed p
    mapfile -t needed < <(sed -nE 's/^([^# ]+) \[.*\<lab\>.*/\1/p' "$HERE/../../bindep.txt")
    for p in "${needed[@]}"; do
        dpkg-query -W -f '${Status}\n' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$LAB_DIR/apt.log" 2>&1 && return
    apt-get update -qq >>"$LAB_DIR/apt.log" 2>&1 || true
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$LAB_DIR/apt.log" 2>&1 ||
        cannot "apt-get cannot install ${missing[*]}: $(tail -1 "$LAB_DIR/apt.log")"
}

# shellcheck disable=SC2016  # apt's own placeholders
mirror() {
    local m=${LAB_MIRROR:-}
    [ -n "$m" ] || m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
        'Component: main' 2>/dev/null | head -1)
    [ -n "$m" ] || { apt-get update -qq >/dev/null 2>&1 || true
        m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
            'Component: main' 2>/dev/null | head -1); }
    [ -n "$m" ] || cannot "no Debian mirror among this machine's apt sources; set LAB_MIRROR"
    printf '%s\n' "${m%/}"
}

build() {
    local suite=$1 tree=$CACHE/$1 from
    [ -e "$tree/.complete" ] && return
    from=$(mirror)
    exec 9>"$CACHE/$suite.lock"
    flock 9
    [ -e "$tree/.complete" ] && return
    rm -rf "$tree" "$tree.tmp"
    local dpkg=()
    for p in man doc locale info; do dpkg+=(--dpkgopt="path-exclude=/usr/share/$p/*"); done
    mmdebstrap --quiet --variant=apt --aptopt='Apt::Install-Recommends "false"' "${dpkg[@]}" \
        --include=python3,python3-libvirt,openssh-server,qemu-utils,qemu-system-x86,libvirt-daemon-system,libvirt-clients \
        --include=systemd-sysv,dbus,iproute2,attr,strace,ovmf \
        "$suite" "$tree.tmp" "$from" >"$CACHE/$suite.log" 2>&1 ||
        { tail -5 "$CACHE/$suite.log" >&2; rm -rf "$tree.tmp"; exit 1; }
    # There is no writable cgroup v1 in the host, and nobody to ask for authorization.
    echo 'cgroup_controllers = []' >>"$tree.tmp/etc/libvirt/qemu.conf"
    printf 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n' >>"$tree.tmp/etc/libvirt/libvirtd.conf"
    mkdir -p "$tree.tmp/$IMAGES"
    touch "$tree.tmp/.complete"
    mv "$tree.tmp" "$tree"
}

net() {
    [ -f "$STATE/id" ] || ssh-keygen -q -t ed25519 -N '' -C lab -f "$STATE/id"
    proxy >"$STATE/proxy"
    ip netns list | grep -qw "$CTL" && return
    ip netns add "$CTL"
    ip -n "$CTL" link set lo up
    ip -n "$CTL" link add br0 type bridge
    ip -n "$CTL" addr add 10.77.1.1/24 dev br0
    ip -n "$CTL" link set br0 up
}

up() {
    local name=$1 suite=$2 addr=$3 fs=${4:-xfs}
    local dir=$STATE/$name ns=$CTL-$1
    check; packages; build "$suite"
    [ ! -d "$dir" ] || down "$name"
    exec 8>"$STATE/lock"; flock 8; net; flock -u 8; exec 8>&-
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    ip -n "$CTL" link add "v-$name" type veth peer name host0 netns "$ns"
    ip -n "$CTL" link set "v-$name" master br0 up
    ip -n "$ns" addr add "$addr/24" dev host0
    ip -n "$ns" link set host0 up
    mkdir -p "$dir"/{up,work,root}
    echo "$addr" >"$dir/addr"
    truncate -s "${LAB_SIZE:-2G}" "$dir/images.img"
    case $fs in
        xfs) mkfs.xfs -q -m reflink=1 "$dir/images.img" ;;
        btrfs) mkfs.btrfs -q "$dir/images.img" >/dev/null ;;
        *) "mkfs.$fs" -q -F "$dir/images.img" ;;
    esac
    mount -t overlay "$ns" -o "lowerdir=$CACHE/$suite,upperdir=$dir/up,workdir=$dir/work" "$dir/root"
    mount -o loop "$dir/images.img" "$dir/root/$IMAGES"
    chmod 711 "$dir/root/$IMAGES"
    install -d -m 700 "$dir/root/root/.ssh"
    install -m 600 "$STATE/id.pub" "$dir/root/root/.ssh/authorized_keys"
    echo "$name" >"$dir/root/etc/hostname"
    : >"$dir/root/etc/machine-id"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 setsid systemd-nspawn -q --register=no --keep-unit -D "$dir/root" \
        --network-namespace-path="/run/netns/$ns" -M "$name" --boot </dev/null >"$dir/console.log" 2>&1 9>&- &
    echo $! >"$dir/pid"
    for _ in $(seq 300); do
        nsenter --net="/run/netns/$CTL" bash -c "exec 3<>/dev/tcp/$addr/22" 2>/dev/null && return 0
        sleep 0.1
    done
    echo "lab: $name does not answer; the end of its console:" >&2
    tail -5 "$dir/console.log" >&2
    exit 1
}

down() {
    local dir=$STATE/$1 ns=$CTL-$1 pid leader
    [ -d "$dir" ] || return 0
    pid=$(cat "$dir/pid" 2>/dev/null || true)
    # The number may belong to somebody else by now: only what still is our systemd-nspawn is ended.
    if [ -n "$pid" ] && grep -aqs "$dir/root" "/proc/$pid/cmdline"; then
        leader=$(ps -o pid= --ppid "$pid" || true)
        # shellcheck disable=SC2086
        [ -z "$leader" ] || kill -9 $leader 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    umount "$dir/root/$IMAGES" 2>/dev/null || umount -l "$dir/root/$IMAGES" 2>/dev/null || true
    umount "$dir/root" 2>/dev/null || umount -l "$dir/root" 2>/dev/null || true
    ip netns del "$ns" 2>/dev/null || true
    if mountpoint -q "$dir/root"; then echo "lab: $dir/root is still mounted" >&2; exit 1; fi
    rm -rf "$dir"
    # The last one puts out the light.
    compgen -G "$STATE/*/" >/dev/null || { ip netns del "$CTL" 2>/dev/null || true; rm -rf "${STATE:?}"; }
}

down_all() {
    local d
    for d in "$STATE"/*/; do [ ! -d "$d" ] || down "$(basename "$d")"; done
    ip netns del "$CTL" 2>/dev/null || true
    rm -rf "${STATE:?}"
}

proxy() { printf 'nsenter --net=/run/netns/%s nc %%h %%p' "$CTL"; }

remote() {
    local addr
    addr=$(cat "$STATE/$1/addr")
    shift
    ssh -q -i "$STATE/id" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        -o ProxyCommand="$(proxy)" "root@$addr" "$@"
}

inventory() {
    local d n
    printf 'all:\n  vars:\n    ansible_user: root\n    ansible_ssh_private_key_file: %s\n' "$STATE/id"
    printf '    ansible_python_interpreter: /usr/bin/python3\n'
    printf '    ansible_ssh_common_args: >-\n      -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ControlMaster=no -o ControlPath=none\n'
    printf '      -o ProxyCommand="%s"\n' "$(proxy)"
    printf '  children:\n    vm_hosts:\n      hosts:\n'
    for d in "$STATE"/*/; do
        [ -f "$d/addr" ] || continue
        n=$(basename "$d")
        printf '        %s:\n          ansible_host: %s\n' "$n" "$(cat "$d/addr")"
    done
}

case ${1:-} in
    check) check ;;
    install) check; packages ;;
    build) check; packages; build "$2" ;;
    net) check; packages; net ;;
    up) up "${@:2}" ;;
    down) down "$2" ;;
    down-all) down_all ;;
    ssh) remote "${@:2}" ;;
    inventory) inventory ;;
    vars) printf 'LAB_KEY=%q\nLAB_CTL=%q\nLAB_PROXY=%q\n' "$STATE/id" "$CTL" "$(proxy)" ;;
    *) sed -n '/^# Test lab/,/^# Hosts talk/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
