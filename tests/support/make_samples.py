# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes a small collection of images as a neglected host holds them: ``python -m ...make_samples DIRECTORY``.

QCOW version 1 images under good and misleading names, and two files that a migration must leave alone.
"""

import hashlib
import os
import random
import sys

from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build

MIB = 1 << 20


def disk(seed: int, *, size: int, filled: int, packed: bool = False) -> ImageSpec:
    """A guest disk of ``size`` bytes with ``filled`` clusters of 4096 bytes of data spread over it, always the same for one ``seed``."""
    rng = random.Random(seed)
    clusters = {}
    for index in sorted(rng.sample(range(size >> 12), filled)):
        word = hashlib.sha256(b"%d %d" % (seed, index)).digest()
        clusters[index] = Packed(word * 128) if packed else Plain(word * 128)
    return ImageSpec(size=size, clusters=clusters)


SAMPLES = {
    "web01.qcow": disk(1, size=64 * MIB, filled=2000),
    "archive/mail-2009.qcow": disk(2, size=256 * MIB, filled=3000, packed=True),
    "archive/big empty.qcow": disk(3, size=1 << 40, filled=16),
    "db01.img": disk(4, size=32 * MIB, filled=1000),
    "golden.qcow2": disk(5, size=16 * MIB, filled=300),
    "no-suffix": disk(6, size=10 * MIB + 512, filled=100),
}
LOOKALIKES = {"notes.txt": b"web01 is the one that must not go down.\n", "scratch.raw": b"\xeb\x3c\x90" + bytes(MIB - 3)}


def main(directory: str) -> None:
    for name, spec in SAMPLES.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        build(spec).write(path)
    for name, content in LOOKALIKES.items():
        with open(os.path.join(directory, name), "wb") as stream:
            stream.write(content)
    print("%d QCOW version 1 images and %d other files made in %s" % (len(SAMPLES), len(LOOKALIKES), directory))


if __name__ == "__main__":
    main(sys.argv[1])
