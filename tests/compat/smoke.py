# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole engine on the Python that runs this, from 3.6 on: import everything, then look, convert, verify, roll back and clean up.

Written for Python 3.6 and its standard library alone, and so with a small builder of its own. PYTHONPATH has to lead to the collection.
"""

import compileall
import hashlib
import importlib
import os
import random
import shutil
import struct
import sys
import tempfile
import zlib

import ansible_collections.vmimage.qcow.plugins.module_utils as utilities

HERE = utilities.__name__
CLUSTER = 4096
ENTRIES = 512


def import_all():
    """Import every module utility; return how many there are."""
    top = list(utilities.__path__)[0]
    names = []
    for folder, _folders, files in os.walk(top):
        package = HERE + folder[len(top) :].replace(os.sep, ".")
        names += [package + "." + name[:-3] for name in sorted(files) if name.endswith(".py") and name != "__init__.py"]
    for name in names:
        importlib.import_module(name)
    return len(names)


def compile_modules():
    """Compile what runs on the host but cannot be imported without Ansible."""
    plugins = os.path.join(os.path.dirname(list(utilities.__path__)[0]), "modules")
    folder = tempfile.mkdtemp()
    try:
        copy = shutil.copytree(plugins, os.path.join(folder, "modules"))
        assert compileall.compile_dir(copy, quiet=1), "a module is not written in this Python"
    finally:
        shutil.rmtree(folder)


def make(path, size, filled, seed):
    """Write a v1 image, every other cluster compressed; return the disk as the guest sees it."""
    rng = random.Random(seed)
    disk = bytearray(size)
    tables = {}
    body = bytearray()
    start = 48 + 8 * -(-size // (CLUSTER * ENTRIES))
    start = -(-start // 512) * 512
    for number, index in enumerate(sorted(rng.sample(range(size // CLUSTER), filled))):
        data = bytes(bytearray(rng.randrange(256) for place in range(64))) * (CLUSTER // 64)
        disk[index * CLUSTER : (index + 1) * CLUSTER] = data
        if number % 2:
            packer = zlib.compressobj(9, zlib.DEFLATED, -12)
            stream = packer.compress(data) + packer.flush()
            entry = 1 << 63 | len(stream) << 51 | start + len(body)
            body += stream + bytes(-len(stream) % 512)
        else:
            body += bytes(-(start + len(body)) % CLUSTER)
            entry = start + len(body)
            body += data
        tables.setdefault(index // ENTRIES, [0] * ENTRIES)[index % ENTRIES] = entry
    first = [0] * -(-size // (CLUSTER * ENTRIES))
    for number, table in sorted(tables.items()):
        body += bytes(-(start + len(body)) % CLUSTER)
        first[number] = start + len(body)
        body += struct.pack(">%dQ" % ENTRIES, *table)
    head = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, 12, 9, 0, 0, 48) + struct.pack(">%dQ" % len(first), *first)
    with open(path, "wb") as target:
        target.write(head + bytes(start - len(head)) + body)
    return bytes(disk)


def digest(path):
    """SHA-256 of a file."""
    with open(path, "rb") as source:
        return hashlib.sha256(source.read()).hexdigest()


def migrate(folder):
    """Everything that is done to images, on a few of them."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, info, record_batch
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request

    state = os.path.join(folder, b"state")
    disks = {}
    for seed in range(3):
        path = os.path.join(folder, b"disk%d.qcow" % seed)
        disks[path] = make(path, 8 << 20, 200, seed)
    before = {path: digest(path) for path in disks}

    images, counts = info.look(info.Question(paths=(folder,), check="content", fingerprint=True), Records(state))[:2]
    assert counts["candidates"] == len(disks), counts
    assert [image["check"]["verdict"] for image in images] == ["sound"] * len(disks), images

    raw = os.path.join(folder, b"copy.raw")
    settings = batch.Settings(state_dir=state, workers=2)
    one = sorted(disks)[0]
    kept = batch.run([Request(src=one, dest=raw, format="raw", state_dir=state)], settings)[0]
    assert kept["verified"] and not kept["failed"], kept
    with open(raw, "rb") as source:
        assert source.read() == disks[one]

    requests = [Request(src=path, retire=True, state_dir=state) for path in sorted(disks)]
    results = batch.run(requests, settings)
    assert all(result["verified"] and result["changed"] for result in results), results
    assert [result["fingerprint"] for result in results] == [image["fingerprint"] for image in images]
    after = info.look(info.Question(paths=tuple(path + b"2" for path in sorted(disks)), fingerprint=True), Records(state)).images
    assert [image["fingerprint"] for image in after] == [image["fingerprint"] for image in images], after

    undone = record_batch.roll_back_all(record_batch.Choice(state_dir=state, paths=(one,)), discard_changes=False)
    assert any(result["changed"] for result in undone) and not any(result["failed"] for result in undone), undone
    assert digest(one) == before[one]
    cleaned = record_batch.clean_all(record_batch.Choice(state_dir=state), min_age=0)
    assert not any(result["failed"] for result in cleaned), cleaned
    left = sorted(name for name in os.listdir(folder) if name != b"state")
    assert left == [b"disk0.qcow", b"disk1.qcow2", b"disk2.qcow2"], left  # both results of the first were undone

    with open(one, "r+b") as target:
        target.truncate(os.path.getsize(one) - 5 * CLUSTER)
    refused = batch.run([Request(src=one, state_dir=state)], settings)[0]
    assert refused["failed"] and refused["reason"] == "damaged", refused


def main():
    number = import_all()
    compile_modules()
    folder = tempfile.mkdtemp(prefix="smoke-").encode()
    try:
        migrate(folder)
    finally:
        shutil.rmtree(folder)
    print("Python %d.%d.%d: %d module utilities, images migrated and back" % (sys.version_info[:3] + (number,)))


if __name__ == "__main__":
    main()
