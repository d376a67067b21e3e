# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis strategies for sound QCOW version 1 images and chains of them.

A chain is a list of descriptions, top first; each one but the last names the next as its backing file by a relative name
(``layer_name``), and the last one may be an image of another format. Disks are a few MiB at most: what matters is where borders fall, not how
much lies between them.
"""

import dataclasses
import os
import random
from typing import Optional, Union

import hypothesis.strategies as st

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import (
    Backing,
    BuiltImage,
    Cluster,
    ImageSpec,
    Packed,
    Plain,
    Shared,
    Xen,
    build,
)

SECTOR = 512
LARGEST_DISK = 3 << 20
MOST_CLUSTERS = 24
TEXT = b"the quick brown fox jumps over the lazy dog, again and again; "


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A base that qemu-img writes: its driver, virtual size in bytes (rounded up as the format wants it), and the pieces that hold data."""

    driver: str
    size: int
    pieces: tuple[tuple[int, int], ...]  # first byte and length, in sectors
    seed: int
    password: None = None

    def disk(self) -> bytes:
        """What it holds, before rounding."""
        disk = bytearray(self.size)
        for start, length in self.pieces:
            first, last = min(start * SECTOR, self.size), min((start + length) * SECTOR, self.size)
            disk[first:last] = random.Random(self.seed + start).randbytes(last - first)
        return bytes(disk)


Layer = Union[ImageSpec, Foreign]
Chain = list[Layer]


def layer_name(depth: int) -> str:
    """The file name of the layer ``depth`` files below the top (0: the top itself)."""
    return "layer%d.qcow" % depth


def write_chain(directory: Union[str, os.PathLike], chain: Chain) -> tuple[list[BuiltImage], bytes]:
    """Write a chain into ``directory``; return its QCOW images, top first, and what the guest reads from the top."""
    images = []
    disk = b""
    for depth in reversed(range(len(chain))):
        layer = chain[depth]
        if isinstance(layer, Foreign):
            raw, path = os.path.join(directory, "disk.raw"), os.path.join(directory, layer_name(depth))
            with open(raw, "wb") as stream:
                stream.write(layer.disk())
            oracle.run("convert", "-f", "raw", "-O", layer.driver, raw, path)
            os.unlink(raw)
            disk = oracle.guest_bytes(oracle.Node(path, layer.driver))
            continue
        image = build(layer)
        image.write(os.path.join(directory, layer_name(depth)))
        disk = image.guest_bytes(disk)
        images.append(image)
    return images[::-1], disk


def nodes_of(directory: Union[str, os.PathLike], chain: Chain) -> list[oracle.Node]:
    """A chain as qemu-img is told it, with files that hold the passwords."""
    nodes = []
    for depth, layer in enumerate(chain):
        secret = None
        if layer.password is not None:
            secret = os.path.join(directory, "secret%d" % depth)
            with open(secret, "wb") as stream:
                stream.write(layer.password)
        driver = layer.driver if isinstance(layer, Foreign) else "qcow"
        nodes.append(oracle.Node(os.path.join(directory, layer_name(depth)), driver, secret))
    return nodes


def comparable(disk: bytes, chain: Chain) -> bytes:
    """A disk as far as QEMU and the format agree: whole sectors only, and zeros where a base ends inside a sector, as QEMU may show them."""
    seen = bytearray(disk[: chain[0].size // SECTOR * SECTOR])
    for layer in chain[1:]:
        first, last = layer.size // SECTOR * SECTOR, min(layer.size, len(seen))
        seen[first:last] = bytes(max(0, last - first))
    return bytes(seen)


def content(kind: str, seed: int, size: int) -> bytes:
    """``size`` bytes of cluster content: zero, fill, text, random, part (only the beginning is not zero) or late (only the end)."""
    source = random.Random(seed)
    if kind == "zero":
        return bytes(size)
    if kind == "fill":
        return bytes([source.randrange(1, 256)]) * size
    if kind == "text":
        start = source.randrange(len(TEXT))
        return (b"%d:" % seed + TEXT[start:] + TEXT * (size // len(TEXT) + 1))[:size]
    if kind == "part":
        return source.randbytes(source.randrange(1, size)).ljust(size, b"\0")
    if kind == "late":
        return source.randbytes(source.randrange(1, size)).rjust(size, b"\0")
    return source.randbytes(size)


CONTENT_KINDS = ["text", "random", "part", "late", "fill", "zero"]


@st.composite
def sizes(draw: st.DrawFn, cluster_bits: int, l2_bits: int, *, odd: bool) -> int:
    """A virtual size: any, near a cluster's border or near the border of an L2 table's range."""
    cluster, span = 1 << cluster_bits, 1 << (cluster_bits + l2_bits)
    sectors = LARGEST_DISK // SECTOR
    choices = [st.integers(1, sectors).map(lambda count: count * SECTOR)]
    near = st.sampled_from([-SECTOR, 0, SECTOR])
    choices.append(st.builds(lambda count, off: max(count * cluster + off, SECTOR), st.integers(1, LARGEST_DISK // cluster), near))
    if span < LARGEST_DISK:
        choices.append(st.builds(lambda count, off: max(count * span + off, SECTOR), st.integers(1, LARGEST_DISK // span), near))
    size = draw(st.one_of(choices))
    return max(size - draw(st.integers(1, SECTOR - 1)), SECTOR + 1) if odd else size


@st.composite
def images(
    draw: st.DrawFn,
    *,
    compressed: bool = False,
    odd: bool = False,
    unaligned: bool = False,
    order: Optional[str] = None,
    layouts: tuple = ("qemu", "qemu-0.9", "mkimg", "virtualbox"),
    overlay: bool = False,
    password: Optional[bytes] = None,
    shared: bool = False,
    xen: bool = False,
) -> ImageSpec:
    """One sound image without a backing name."""
    overlay_shape = overlay and draw(st.booleans())
    cluster_bits = 9 if overlay_shape else draw(st.integers(9, 16))
    l2_bits = 12 if overlay_shape else draw(st.integers(6, 13))
    size = draw(sizes(cluster_bits, l2_bits, odd=odd))
    count = -(-size // (1 << cluster_bits))
    position = st.one_of(st.integers(0, count - 1), st.just(count - 1), st.just(0))
    start = draw(position)
    # A run of neighbours and some loners: both coalescing and its absence are exercised.
    indexes = set(range(start, min(start + draw(st.integers(0, 8)), count))) | set(
        draw(st.lists(position, min_size=0, max_size=MOST_CLUSTERS - 8))
    )
    seed = draw(st.integers(0, 2**32 - 1))
    source = random.Random(seed)
    clusters = {index: _cluster(source, index, cluster_bits, compressed, unaligned) for index in sorted(indexes)}
    if shared and len(clusters) > 1:
        first, *rest = sorted(clusters)
        clusters[source.choice(rest)] = Shared(first)
    layout = draw(st.sampled_from(layouts))
    return ImageSpec(
        size=size,
        cluster_bits=cluster_bits,
        l2_bits=l2_bits,
        clusters=clusters,
        layout=layout,
        password=password,
        order=order or draw(st.sampled_from(["guest", "guest", "shuffled", "reversed"])),
        seed=seed,
        stream_align=draw(st.sampled_from([1, SECTOR])) if compressed else None,
        l1_at=draw(st.sampled_from([None, 48 + 5, 64, 4096 + 3, 8192])) if unaligned else None,
        l2_skew=draw(st.sampled_from([0, 8, 13, SECTOR])) if unaligned else 0,
        xen=Xen(size=draw(st.sampled_from([12, 16]))) if xen else None,
    )


def _cluster(source: random.Random, index: int, cluster_bits: int, compressed: bool, unaligned: bool) -> Cluster:
    data = content(source.choice(CONTENT_KINDS), source.randrange(2**32) + index, 1 << cluster_bits)
    if compressed and source.random() < 0.7:
        return Packed(
            data,
            wbits=source.choice([-12, -12, -12, -15]),
            level=source.choice([-1, 1, 9]),
            trailing=source.randbytes(source.choice([0, 0, 0, 1, 40])),
            short=0,
        )
    skew = source.randrange(0, 1 << cluster_bits, SECTOR) if unaligned else 0
    return Plain(data, skew=skew)


PASSWORDS = st.one_of(
    st.sampled_from([b"", b"a", b"0123456789abcdef", b"0123456789abcdefXYZ", b"line\n", "pässwörd".encode()]),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), min_size=1, max_size=20).map(str.encode),
)


@st.composite
def chains(draw: st.DrawFn, *, encrypted: bool = False, odd: bool = False, fewest: int = 2, largest: int = 5) -> list[ImageSpec]:
    """Images over one another; sizes, shapes and passwords of the layers are independent."""
    layers = []
    for depth in range(draw(st.integers(fewest, largest))):
        password = draw(PASSWORDS) if encrypted and draw(st.booleans()) else None
        compressed = password is None and draw(st.booleans())
        layers.append(draw(images(overlay=True, compressed=compressed, password=password, odd=odd and draw(st.booleans()))))
        if depth:
            layers[-2] = _over(layers[-2], depth)
    return layers


def _over(image: ImageSpec, depth: int) -> ImageSpec:
    return dataclasses.replace(image, backing=Backing(layer_name(depth).encode()))


@st.composite
def chains_over_foreign(draw: st.DrawFn) -> Chain:
    """One to three images over a base in a format that only qemu-img reads."""
    layers = draw(chains(odd=True, fewest=1, largest=3))
    sectors = LARGEST_DISK // SECTOR
    piece = st.tuples(st.integers(0, sectors), st.integers(1, 300))
    base = Foreign(
        draw(st.sampled_from(FOREIGN)),
        draw(st.integers(1, sectors)) * SECTOR,
        tuple(draw(st.lists(piece, max_size=6))),
        draw(st.integers(0, 2**32 - 1)),
    )
    return [*layers[:-1], _over(layers[-1], len(layers)), base]


FOREIGN = ["vmdk", "vdi", "vpc", "vhdx", "qed", "parallels"]


def _single(strategy: st.SearchStrategy[ImageSpec]) -> st.SearchStrategy[Chain]:
    return strategy.map(lambda spec: [spec])


FAMILIES: dict[str, st.SearchStrategy[Chain]] = {
    "plain": _single(images()),
    "compressed": _single(images(compressed=True, layouts=("qemu",))),
    "packed": _single(images(compressed=True, layouts=("qemu-0.9",))),
    "odd-size": _single(images(odd=True)),
    "odd-size-compressed": _single(images(odd=True, compressed=True)),
    "unaligned": _single(images(unaligned=True, compressed=True)),
    "shuffled": _single(images(order="shuffled", compressed=True)),
    "shared": _single(images(shared=True, compressed=True)),
    "xen": _single(images(xen=True, layouts=("xen",))),
    "chain": chains(),
    "encrypted": _single(PASSWORDS.flatmap(lambda password: images(password=password))),
    "encrypted-chain": chains(encrypted=True, largest=3),
    "odd-size-chain": chains(odd=True, encrypted=True, largest=4),
    "foreign-base": chains_over_foreign(),
}
