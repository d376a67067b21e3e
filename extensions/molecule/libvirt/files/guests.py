# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on a host of the lab: makes v1 images and domains, boots all of them, prints definitions.

define DIRECTORY JSON    JSON: {name: {"disks": [file, ...], "over": backing file, "pool": name}}
boot                     start every domain, wait until all are off, print {domain: {disk: sha256}}
definitions              print {domain: exact inactive definition}
run NAME MODE            start one domain that stays up (MODE idle or write), wait until its guest does, print its number
look NAME                print {"number", "wrote", "definition"} of one domain; "number" is -1 where it is off
"""

import json
import os
import random
import subprocess
import sys
import time

import libvirt

SIZE = 32 << 20
DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <metadata><lab:note xmlns:lab='https://example.com/lab' about='{name}'><lab:text>kept &amp; untouched</lab:text></lab:note></metadata>
  <memory unit='MiB'>128</memory><vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='0'/></cputune>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>/opt/guest/vmlinuz</kernel><initrd>/opt/guest/initrd.gz</initrd>
    <cmdline>console=ttyS0 quiet panic=1 guest=sha</cmdline></os>
  <features><acpi/></features>
  <devices>{disks}
    <serial type='file'><source path='/var/log/{name}.console' append='on'/></serial>
    <graphics type='vnc' port='-1' autoport='yes' passwd='s3cret'/>
  </devices>
</domain>"""


def make(path: str, seed: int, *, packed: bool = False, over: str = "") -> None:
    """A v1 image with some data and many holes."""
    chance = random.Random(seed)
    if over:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", "-b", over, "-F", "qcow", path], check=True)
        commands = ["write -q -P %d %d 64k" % (chance.randrange(1, 255), chance.randrange(0, 100) * 65536) for _index in range(5)]
        subprocess.run(["qemu-io", "-f", "qcow", path], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)
        return
    raw = path + ".raw"
    with open(raw, "wb") as file:
        file.truncate(SIZE)
        for _index in range(20):
            file.seek(chance.randrange(0, SIZE) // 65536 * 65536)
            file.write(bytes(chance.randrange(256) for _byte in range(256)) * 128)
    # qemu-img ends with 1 after a compressed v1 image that is right; compare is the judge.
    subprocess.run(["qemu-img", "convert", *(["-c"] if packed else []), "-f", "raw", "-O", "qcow", raw, path], check=not packed)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow", raw, path], check=True)
    os.unlink(raw)


def disk(directory: str, file: str, target: str, guest: dict) -> str:
    """The disk element of a file, or of a volume where the guest has its disks in a pool."""
    path = os.path.join(directory, file)
    chain = ""
    if guest.get("pool"):
        source, kind = "<source pool='%s' volume='%s'/>" % (guest["pool"], file), "volume"
    else:
        source, kind = "<source file='%s'/>" % path, "file"
    if guest.get("over"):
        # A v1 image does not say what format its backing file has, and libvirt does not guess: the definition has to.
        chain = "<backingStore type='file'><format type='qcow'/><source file='%s'/><backingStore/></backingStore>" % os.path.join(
            directory, guest["over"]
        )
    return "<disk type='%s' device='disk'><driver name='qemu' type='qcow' cache='none'/>%s%s<target dev='%s' bus='virtio'/></disk>" % (
        kind,
        source,
        chain,
        target,
    )


def define(connection: libvirt.virConnect, directory: str, guests: dict) -> None:
    """Make images, the pool and the domains."""
    for seed, (name, guest) in enumerate(sorted(guests.items())):
        over = os.path.join(directory, guest["over"]) if guest.get("over") else ""
        if over and not os.path.exists(over):
            make(over, 1000)
        disks = []
        for number, file in enumerate(guest["disks"]):
            make(os.path.join(directory, file), seed * 10 + number, packed=name == "packed", over=over)
            disks.append(disk(directory, file, "vd" + "ab"[number], guest))
        if guest.get("pool"):
            pool = connection.storagePoolDefineXML(
                "<pool type='dir'><name>%s</name><target><path>%s</path></target></pool>" % (guest["pool"], directory)
            )
            pool.create()
        connection.defineXML(DOMAIN.format(name=name, disks="".join(disks)))


def boot(connection: libvirt.virConnect) -> dict:
    """What every guest reads from its disks."""
    domains = connection.listAllDomains()
    for domain in domains:
        console = "/var/log/%s.console" % domain.name()
        if os.path.exists(console):
            os.unlink(console)
        domain.create()
    end = time.monotonic() + 900
    while any(domain.isActive() for domain in domains):
        if time.monotonic() > end:
            sys.exit("these guests do not end: %s" % [domain.name() for domain in domains if domain.isActive()])
        time.sleep(0.2)
    read = {}
    for domain in domains:
        with open("/var/log/%s.console" % domain.name(), errors="replace") as file:
            words = [line[line.index("GUEST-SHA") :].split() for line in file if "GUEST-SHA" in line]
        read[domain.name()] = {disk: value for _word, disk, value in words}
        if len(read[domain.name()]) != domain.XMLDesc().count("<target dev='vd"):
            sys.exit("%s did not read its disks" % domain.name())
    return read


def console(name: str) -> list:
    """What a guest has said."""
    with open("/var/log/%s.console" % name, errors="replace") as file:
        return file.read().split("GUEST-")[1:]


def run(connection: libvirt.virConnect, name: str, mode: str) -> int:
    """Have a guest do something else than end, and start it."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    connection.defineXML(connection.lookupByName(name).XMLDesc(flags).replace("guest=sha", "guest=" + mode)).create()
    end = time.monotonic() + 600
    while not any(word.startswith(("UP", "WROTE")) for word in console(name)):
        if time.monotonic() > end:
            sys.exit("%s does not come up" % name)
        time.sleep(0.5)
    return connection.lookupByName(name).ID()


def look(connection: libvirt.virConnect, name: str) -> dict:
    """Its number since the last start, the last block it has written, and its definition."""
    domain = connection.lookupByName(name)
    wrote = [int(word.split()[1]) for word in console(name) if word.startswith("WROTE")]
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    return {"number": domain.ID(), "wrote": wrote[-1] if wrote else 0, "definition": domain.XMLDesc(flags)}


def main() -> None:
    """Do what the first argument says."""
    connection = libvirt.open("qemu:///system")
    if sys.argv[1] == "define":
        define(connection, sys.argv[2], json.loads(sys.argv[3]))
    elif sys.argv[1] == "boot":
        print(json.dumps(boot(connection), sort_keys=True))
    elif sys.argv[1] == "run":
        print(run(connection, *sys.argv[2:]))
    elif sys.argv[1] == "look":
        print(json.dumps(look(connection, sys.argv[2])))
    else:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        print(json.dumps({domain.name(): domain.XMLDesc(flags) for domain in connection.listAllDomains()}, sort_keys=True))


if __name__ == "__main__":
    main()
