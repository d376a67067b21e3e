# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Follows every reference to a disk image below a directory, and prints those that lead nowhere, or say another format than the image has.

Knows nothing of this collection: only what a link, an overlay, libvirt, xl, VirtualBox, a shell and systemd make of a name.

    python3 follow_references.py DIRECTORY LIBVIRT_URI
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from typing import Iterator, NamedTuple, Optional

SHELL = """#!/bin/sh
for argument; do printf '%s\\n' "$argument"; done
"""


class Reference(NamedTuple):
    where: str
    path: str
    format: Optional[str] = None  # that the reference states


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def options(text: str, where: str) -> Iterator[Reference]:
    """The argument of QEMU's -drive."""
    given = dict(item.split("=", 1) for item in text.replace(",,", "\0").split(",") if "=" in item)
    if "file" in given:
        yield Reference(where, given["file"].replace("\0", ","), given.get("format"))


def arguments(words: list[str], where: str) -> Iterator[Reference]:
    for option, value in zip(words, words[1:]):
        if option == "-drive":
            yield from options(value, where)
        elif option in ("-hda", "-hdb"):
            yield Reference(where, value)


def domains(uri: str) -> Iterator[Reference]:
    for name in tool("virsh", "-c", uri, "list", "--all", "--name").split():
        root = ET.fromstring(tool("virsh", "-c", uri, "dumpxml", "--inactive", name))
        for disk in root.iter("disk"):
            source, driver = disk.find("source"), disk.find("driver")
            assert source is not None and driver is not None
            path = source.get("file")
            if path is None:
                path = tool("virsh", "-c", uri, "vol-path", "--pool", source.get("pool", ""), source.get("volume", "")).strip()
            yield Reference("domain " + name, path, driver.get("type"))
        words = [element.get("value", "") for element in root.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
        yield from arguments(words, "arguments of domain " + name)


def volumes(uri: str) -> Iterator[Reference]:
    for pool in tool("virsh", "-c", uri, "pool-list", "--name").split():
        for line in tool("virsh", "-c", uri, "vol-list", pool).splitlines()[2:]:
            if line.strip():
                yield Reference("pool " + pool, line.split(None, 1)[1].strip())


def xl(path: str) -> Iterator[Reference]:
    for disk in ast.literal_eval(re.search(r"disk\s*=\s*(\[.*\])", open(path).read(), re.DOTALL).group(1)):  # type: ignore[union-attr]
        old = re.match(r"(?:tap2?:)?(\w+):(/[^,]*)", disk)
        if old:
            yield Reference(path, old.group(2), old.group(1))
        else:
            given = dict(item.strip().split("=", 1) for item in disk.split(",") if "=" in item)
            yield Reference(path, given["target"], given.get("format"))


def vbox(path: str) -> Iterator[Reference]:
    for disk in ET.parse(path).iter("{http://www.virtualbox.org/}HardDisk"):
        yield Reference(path, os.path.join(os.path.dirname(path), disk.get("location", "")), disk.get("format", "").lower())


def script(path: str) -> Iterator[Reference]:
    with tempfile.TemporaryDirectory() as stubs:
        stub = os.path.join(stubs, "qemu-system-x86_64")
        with open(stub, "w") as stream:
            stream.write(SHELL)
        os.chmod(stub, 0o755)
        done = subprocess.run(["sh", path], check=True, stdout=subprocess.PIPE, text=True, env={"PATH": stubs + ":/usr/bin:/bin"})
        yield from arguments(done.stdout.splitlines(), path)


def unit(path: str) -> Iterator[Reference]:
    directory = "/"
    for line in open(path):
        key, _equals, value = line.strip().partition("=")
        if key == "WorkingDirectory":
            directory = value
        if key == "ExecStart":
            words = [word.encode().decode("unicode_escape").replace("%%", "%") for word in shlex.split(value.replace("\\", "\\\\"))]
            yield from (found._replace(path=os.path.join(directory, found.path)) for found in arguments(words, path))


def files(top: str) -> Iterator[Reference]:
    readers = {".xl": xl, ".vbox": vbox, ".sh": script, ".service": unit}
    for parent, directories, names in os.walk(top):
        for name in directories + names:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                yield Reference("link " + path, path)
            elif os.path.splitext(name)[1] in readers:
                yield from readers[os.path.splitext(name)[1]](path)
            elif parent.endswith("-clones"):
                yield Reference("clone " + path, path)


def actual(path: str) -> str:
    with open(path, "rb") as stream:
        head = stream.read(8)
    return {b"QFI\xfb\0\0\0\1": "qcow", b"QFI\xfb\0\0\0\2": "qcow2", b"QFI\xfb\0\0\0\3": "qcow2"}.get(head, "raw")


def problem(reference: Reference) -> Optional[str]:
    """Why whoever uses the reference would not see the disk; ``None`` where they would."""
    if not os.path.exists(reference.path):
        return "leads nowhere"
    if os.path.isdir(reference.path):
        return None
    found = actual(reference.path)
    if reference.format not in (None, found):
        return "says %s, is %s" % (reference.format, found)
    chain = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", "--backing-chain", "-f", found, reference.path],
        check=False,
        capture_output=True,
        text=True,
    )
    if chain.returncode:
        return chain.stderr.strip()
    for image in json.loads(chain.stdout):
        base, recorded = image.get("full-backing-filename"), image.get("backing-filename-format")
        if base and recorded not in (None, actual(base)):
            return "%s says that %s is %s, it is %s" % (image["filename"], base, recorded, actual(base))
    return None


def main() -> None:
    top, uri = sys.argv[1:]
    every = [*files(top), *domains(uri), *volumes(uri)]
    dead = [dict(reference._asdict(), problem=why) for reference in every for why in [problem(reference)] if why]
    print(json.dumps({"followed": len(every), "dead": dead}, indent=1))


if __name__ == "__main__":
    main()
