# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one thing ever edited in place: the backing file in the header of somebody else's qcow2 overlay. Bytes in, bytes out.

By the specification (``docs/interop/qcow2.txt``) everything concerned lies in the first cluster: header, extensions, and the name behind them.
"""

import struct
from typing import List, NamedTuple, Optional, Tuple

from .._copy.qcow2_writer import MAX_BACKING_NAME
from .._errors import DamagedImage, UnsupportedImage
from .qcow2 import EXTENSION_BACKING_FORMAT, parse_header


class Backing(NamedTuple):
    """What a header says about the backing file."""

    name: bytes
    format: Optional[str]


def backing_of(cluster: bytes, path: Optional[bytes] = None) -> Backing:
    """The backing file stated in an image's first cluster.

    :raises UnsupportedImage: where there is none, or its name lies elsewhere.
    """
    header = parse_header(cluster, path)
    end = header.backing_offset + header.backing_length
    if not header.backing_offset or not header.backing_length:
        raise UnsupportedImage("the image has no backing file", path)
    if end > 1 << header.cluster_bits or end > len(cluster):
        raise UnsupportedImage("the backing file name lies outside the first cluster", path, hint="It was left as it is.")
    return Backing(cluster[header.backing_offset : end], header.backing_format)


def rebased(cluster: bytes, backing: Backing, path: Optional[bytes] = None) -> bytes:
    """An image's first cluster with another backing file in it, and nothing else changed that means anything.

    :param cluster: the whole first cluster.
    :raises UnsupportedImage: where it does not fit, or where something lies in the cluster that we do not know.
    :raises DamagedImage: where the extensions cannot be true.
    """
    header = parse_header(cluster, path)
    size = 1 << header.cluster_bits
    if len(cluster) != size:
        raise DamagedImage("the first cluster is cut off", path)
    old = backing_of(cluster, path)
    extensions, end = _extensions(cluster, header.header_length, path)
    used = [(0, end), (header.backing_offset, header.backing_offset + len(old.name))]
    rest = bytearray(cluster)
    for start, stop in used:
        rest[start:stop] = bytes(stop - start)
    if any(rest):
        raise UnsupportedImage(
            "there is something in the header cluster behind the header's extensions (byte {0})".format(
                next(place for place, byte in enumerate(rest) if byte)
            ),
            path,
            hint="It was left as it is. Change its backing file with qemu-img rebase -u.",
        )
    kept = [(kind, data) for kind, data in extensions if kind != EXTENSION_BACKING_FORMAT]
    if backing.format is not None:
        kept.insert(0, (EXTENSION_BACKING_FORMAT, backing.format.encode("ascii")))
    body = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in kept) + bytes(8)
    name_at = header.header_length + len(body)
    if len(backing.name) > MAX_BACKING_NAME or name_at + len(backing.name) > size:
        raise UnsupportedImage(
            "the new backing file name ({0} bytes) does not fit into the header cluster of {1} bytes".format(len(backing.name), size),
            path,
            hint="It was left as it is. Give the base a shorter name.",
        )
    result = bytearray(cluster[: header.header_length]) + body + backing.name
    result += bytes(size - len(result))
    struct.pack_into(">QI", result, 8, name_at, len(backing.name))
    return bytes(result)


def _extensions(cluster: bytes, position: int, path: Optional[bytes]) -> Tuple[List[Tuple[int, bytes]], int]:
    found: List[Tuple[int, bytes]] = []
    while position + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, position)
        position += 8
        if kind == 0:
            return found, position
        if position + length > len(cluster):
            break
        found.append((kind, cluster[position : position + length]))
        position += -(-length // 8) * 8
    raise DamagedImage("the header's extensions have no end", path, hint="It was left as it is.")
