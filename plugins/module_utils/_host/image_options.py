# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a chain of images is told to QEMU: a driver for every node, so that no content is ever probed and no header followed."""

import os
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from .._errors import QcowError

# Drivers that would open what the image's own header names, unless told otherwise.
_WITH_BACKING = ("qcow", "qcow2", "qed", "vmdk", "parallels", "vhdx", "vpc")


class Node(NamedTuple):
    """An image and all below it. ``driver`` is our decision; ``backing`` ``None`` means it has no backing file, whatever its header says.

    ``secret_file`` holds the passphrase of this node, byte for byte (a newline at its end counts).
    ``protocol`` is ``file``, or ``host_device`` for a block device.
    ``fd`` is the file, open for reading: qemu-img is given that, and ``path`` is for messages only. Nobody can exchange an open file.
    """

    path: bytes
    driver: str
    backing: Optional[Any] = None  # a Node; a NamedTuple cannot name itself in Python 3.6
    secret_file: Optional[bytes] = None
    protocol: str = "file"
    fd: Optional[int] = None


def name_of_descriptor(fd: int) -> bytes:
    """What a program that we start can open one of our descriptors by: the very file, whatever has become of its names."""
    return b"/proc/%d/fd/%d" % (os.getpid(), fd)


def escape(value: bytes) -> bytes:
    """A value inside an option string of QEMU: only the comma means something there."""
    return value.replace(b",", b",,")


def _options(node: Node, prefix: bytes, secrets: List[Tuple[bytes, bytes]]) -> List[bytes]:
    if b"\0" in node.path:
        raise QcowError("is not a usable file name.", path=node.path, reason="bad-name")
    parts = [
        prefix + b"driver=" + escape(node.driver.encode("ascii")),
        prefix + b"file.driver=" + node.protocol.encode("ascii"),
        prefix + b"file.filename=" + escape(os.path.abspath(node.path) if node.fd is None else name_of_descriptor(node.fd)),
    ]
    if node.secret_file is not None:
        name = b"node%d" % len(secrets)
        secrets.append((name, node.secret_file))
        parts.append(prefix + (b"key-secret=" if node.driver == "luks" else b"encrypt.key-secret=") + name)
    if node.backing is not None:
        parts.extend(_options(node.backing, prefix + b"backing.", secrets))
    elif node.driver in _WITH_BACKING:
        parts.append(prefix + b"backing=")
    return parts


def image_options(node: Node, secrets: List[Tuple[bytes, bytes]]) -> bytes:
    """The ``--image-opts`` string of a chain. Bytes, because names are (a ``json:{}`` name could not carry a name that is not UTF-8).

    :param secrets: (id, file) of the secrets the string refers to are appended.
    """
    return b",".join(_options(node, b"", secrets))


def secret_arguments(secrets: Sequence[Tuple[bytes, bytes]]) -> List[bytes]:
    """The arguments that define secrets: (id, file)."""
    arguments = []
    for name, path in secrets:
        arguments += [b"--object", b"secret,id=" + escape(name) + b",file=" + escape(os.path.abspath(path))]
    return arguments


def nodes_of(node: Optional[Node]) -> List[Node]:
    """A chain as a list, the image itself first."""
    nodes = []
    while node is not None:
        nodes.append(node)
        node = node.backing
    return nodes
