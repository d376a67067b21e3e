# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Broken images by the thousand: header, tables and streams of sound ones changed at random.

For each: nothing but our own errors, no step that takes 2 s, no growth of memory; and where both reading paths get through, the same bytes.
``VMIMAGE_FUZZ_INPUTS`` says how many (20,000 unless given), ``VMIMAGE_FUZZ_SEED`` which ones.
"""

import os
import random
import signal
import struct
import time
from itertools import islice

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils._fingerprint import BLOCK
from ansible_collections.vmimage.qcow.plugins.module_utils._image import crypt, safety
from ansible_collections.vmimage.qcow.plugins.module_utils._image.extent import COMPRESSED, DATA, ENCRYPTED, Extent
from ansible_collections.vmimage.qcow.plugins.module_utils._image.findings import DAMAGED
from ansible_collections.vmimage.qcow.plugins.module_utils._image.producer import likely_producer
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1_check import CONTENT, check
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1_header import HEADER_SIZE
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import guest_blocks
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, Shared, Xen, build
from ansible_collections.vmimage.qcow.tests.support.memory import forget_peak, peak

INPUTS = int(os.environ.get("VMIMAGE_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("VMIMAGE_FUZZ_SEED", "1"))
SLOWEST = 2
MOST_MEMORY = 128 << 20
SMALL_DISK = 1 << 20
MOST_EXTENTS = 2000
DAMAGE = {"table-outside-file", "table-cut-off", "misaligned", "outside-file", "cut-off", "bad-stream"}

NOISE = random.Random(7).randbytes(4096)
TEXT = b"it was a dark and stormy disk; " * 140
MIXED = {0: Plain(b"boot" * 99), 1: Packed(TEXT), 2: Plain(NOISE), 5: Packed(TEXT[:900]), 70: Plain(NOISE), 71: Packed(b"z" * 99)}

CORPUS = [
    build(spec).data
    for spec in (
        ImageSpec(size=300 << 10, cluster_bits=12, clusters=MIXED),
        ImageSpec(size=300 << 10, cluster_bits=9, l2_bits=12, clusters=MIXED, backing=Backing(b"base.img")),
        ImageSpec(size=300 << 10, cluster_bits=9, l2_bits=6, clusters=MIXED, order="shuffled"),
        ImageSpec(size=100 << 10, cluster_bits=10, l2_bits=6, clusters=MIXED, layout="qemu-0.9"),
        ImageSpec(size=300 << 10, cluster_bits=16, l2_bits=6, clusters={0: Packed(TEXT), 3: Packed(TEXT)}),
        ImageSpec(size=300 << 10, clusters=MIXED, layout="mkimg"),
        ImageSpec(size=300 << 10, clusters=MIXED, layout="virtualbox", backing=Backing(b"/vm/base", tail=b"old")),
        ImageSpec(size=300 << 10, clusters={n: c for n, c in MIXED.items() if isinstance(c, Plain)}, password=b"pw"),
        ImageSpec(size=300 << 10, clusters=MIXED, xen=Xen(), cluster_bits=9, l2_bits=6),
        ImageSpec(size=300 << 10, clusters=MIXED, xen=Xen(size=12, little_endian=True), cluster_bits=9, l2_bits=6),
        ImageSpec(size=5001, clusters={0: Plain(NOISE), 1: Packed(TEXT)}),
        ImageSpec(size=300 << 10, cluster_bits=9, l2_bits=6, clusters={**MIXED, 9: Shared(2)}, share_l2={3: 0}),
        ImageSpec(size=1 << 30),
    )
]


class Hang(BaseException):
    """Not an Exception: nothing may swallow it."""


def mutant(source: random.Random) -> bytes:
    image = bytearray(source.choice(CORPUS))
    for _change in range(source.choice([1, 1, 1, 2, 2, 3, 5, 9])):
        if len(image) < HEADER_SIZE:
            break
        source.choice(CHANGES)(source, image)
    return bytes(image)


def _front(source, image):
    """A word in header or L1 table."""
    _word(source, image, source.randrange(0, min(len(image), 128)) & ~3)


def _table(source, image):
    """A word anywhere: most of them lie in tables."""
    used = [at for at in range(0, len(image) - 7, 8) if image[at : at + 8] != bytes(8)] if source.random() < 0.05 else None
    _word(source, image, source.choice(used) if used else source.randrange(0, len(image)) & ~7)


def _word(source, image, at):
    size = len(image)
    old = int.from_bytes(image[at : at + 8].ljust(8, b"\0"), "big")
    value = source.choice(
        [
            0,
            1,
            1 << 63,
            (1 << 64) - 1,
            1 << 62,
            old ^ 1 << source.randrange(64),
            old + 512,
            old ^ 1 << 63,
            size,
            size - 1,
            size - 512,
            size & ~511,
            48,
            512,
            4096,
            source.randrange(size) & ~511,
            source.randrange(size),
            source.getrandbits(64),
            1 << 63 | source.randrange(1, 4096) << source.choice([47, 51, 54]) | source.randrange(size),
        ]
    )
    image[at : at + 8] = struct.pack(">Q", value & (1 << 64) - 1)


def _shape(source, image):
    image[32] = source.randrange(8, 18)
    image[33] = source.randrange(5, 15)


def _size(source, image):
    image[24:32] = struct.pack(
        ">Q", source.choice([0, 1, 2, 511, 513, source.getrandbits(20), source.getrandbits(34), source.getrandbits(64)])
    )


def _bits(source, image):
    for _bit in range(source.randrange(1, 9)):
        image[source.randrange(len(image))] ^= 1 << source.randrange(8)


def _noise(source, image):
    at = source.randrange(len(image))
    length = source.randrange(1, 600)
    image[at : at + length] = source.randbytes(min(length, len(image) - at))


def _move(source, image):
    length = source.choice([8, 64, 512, 4096])
    here, there = source.randrange(len(image)), source.randrange(len(image))
    piece = image[here : here + length]
    image[there : there + len(piece)] = piece


def _cut(source, image):
    del image[source.randrange(len(image)) :]


def _grow(source, image):
    image.extend(source.choice([bytes(5000), NOISE]))


CHANGES = [_front, _front, _table, _table, _table, _shape, _size, _bits, _noise, _move, _cut, _grow]


def content(extent: Extent) -> bytes:
    stored = os.pread(extent.layer.fd, -(-extent.stored // 512) * 512, extent.offset)
    if extent.kind == COMPRESSED:
        return extent.layer.inflate(extent)[extent.skip :][: extent.length]
    if extent.kind == ENCRYPTED:
        return extent.layer.decrypt(extent.start, stored.ljust(-(-len(stored) // 512) * 512, b"\0"))[: extent.length]
    return stored[: extent.length] if extent.kind == DATA else bytes(extent.length)


def examine(fd: int, image: bytes) -> str:
    """Everything we have, on one input. Returns how far it came."""
    for finding in safety.inspect(image[:4096], len(image), lambda length, offset: os.pread(fd, length, offset)):
        assert finding.text
    try:
        report = check(fd, b"fuzz", CONTENT)
    except QcowError:
        report = None
    try:
        reader = Qcow1(fd, b"fuzz")
    except QcowError:
        assert report is None or report.verdict == DAMAGED
        return "refused"
    assert report is not None
    likely_producer(reader)
    try:
        assert reader.backing_name is None or len(reader.backing_name) < 1024
    except QcowError:
        assert report.verdict == DAMAGED
    if reader.header.crypt_method:
        reader.unlock(crypt.decryptor(b"pw"))
    damage = set(report.found) & DAMAGE
    disk = bytearray(reader.virtual_size) if reader.virtual_size <= SMALL_DISK else None
    position = 0
    try:
        for extent in islice(reader.extents(), MOST_EXTENTS):
            assert extent.start >= position and extent.length > 0, "extents out of order"
            position = extent.start + extent.length
            assert position <= reader.virtual_size
            assert extent.kind == "zero" or 48 <= extent.offset < extent.offset + extent.stored <= len(image)
            if disk is not None:
                disk[extent.start : position] = content(extent)
    except QcowError:
        assert damage or "amplified" in report.found, "read as damaged, checked as sound"
        return "damaged"
    if disk is None:
        try:
            for _block in islice(guest_blocks([Qcow1Reader(fd, b"fuzz")]), 0 if reader.header.crypt_method else 4):
                pass
        except QcowError:
            assert damage, "read as damaged, checked as sound"
        return "large"
    assert not damage, "read as sound, checked as damaged: %s" % report.findings
    plain = bytearray(-(-len(disk) // BLOCK) * BLOCK)
    for index, block in guest_blocks([Qcow1Reader(fd, b"fuzz", crypt.decryptor(b"pw") if reader.header.crypt_method else None)]):
        plain[index * BLOCK : (index + 1) * BLOCK] = block
    assert plain[: len(disk)] == disk, "the two reading paths disagree"
    return "read"


@pytest.mark.timeout(0)
def test_fuzz(tell):
    outcomes = {}
    slowest = 0.0
    started = time.monotonic()
    fd = os.memfd_create("fuzz")
    before = forget_peak()

    def hang(_number, _frame):
        raise Hang("no answer after %d s" % SLOWEST)

    earlier = signal.signal(signal.SIGVTALRM, hang)
    try:
        for number in range(INPUTS):
            seed = SEED * 10**9 + number
            image = mutant(random.Random(seed))
            os.ftruncate(fd, 0)
            os.pwrite(fd, image, 0)
            begun = time.process_time()
            signal.setitimer(signal.ITIMER_VIRTUAL, SLOWEST)
            try:
                outcome = examine(fd, image)
            except (Exception, Hang) as error:
                name = "/tmp/fuzz-%d.qcow" % seed
                with open(name, "wb") as kept:
                    kept.write(image)
                raise AssertionError("input %d (kept as %s): %r" % (seed, name, error)) from error
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            slowest = max(slowest, time.process_time() - begun)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    finally:
        signal.signal(signal.SIGVTALRM, earlier)
        os.close(fd)
    grown = peak() - before
    figures = "%d inputs in %.0f s: %s; slowest %.3f s of CPU, memory grew by %.1f MiB" % (
        INPUTS,
        time.monotonic() - started,
        outcomes,
        slowest,
        grown / (1 << 20),
    )
    tell(figures, fuzz_inputs=INPUTS)
    assert grown < MOST_MEMORY
    assert len(outcomes) == 4, "the corpus no longer reaches every outcome"
