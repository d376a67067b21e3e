# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image opened for migration: once, by descriptor, so that nobody can swap the file between looking and reading."""

import os
from typing import Any, List, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import ImageChanged, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import FileIdentity, identity, open_source
from ansible_collections.vmimage.qcow.plugins.module_utils.image.detect import HEAD, Identity, identify
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import Extent, Layer, chain_extents
from ansible_collections.vmimage.qcow.plugins.module_utils.image.plain import PlainImage, PlainQcow1, PlainQcow2, PlainRaw
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import OnDamage, Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow2 import Qcow2
from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import Raw


class Source:
    """An open image. Use as a context manager; ``fd`` is closed at its end.

    :param path: symbolic links are not followed as last component.
    :param expected: the identity the file had when it was planned for.
    :raises ImageChanged: where it is another one now.
    :raises QcowError: where it cannot be opened.
    """

    def __init__(self, path: bytes, expected: Optional[FileIdentity] = None) -> None:
        self.path = path
        self.fd = open_source(path)
        self.identity = identity(self.fd)
        self.layers = []  # type: List[Layer]
        if expected is not None and not self.identity.same_content(expected):
            os.close(self.fd)
            raise ImageChanged("the file is not the one that was planned for", path, hint="Nothing was changed. Run again.")

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *dummy: Any) -> None:
        os.close(self.fd)

    def identify(self) -> Identity:
        """What the file is, by content."""
        return identify(os.pread(self.fd, HEAD, 0), self.identity.size, lambda length, offset: os.pread(self.fd, length, offset))

    def open_qcow1(self, on_damage: Optional[OnDamage] = None) -> Qcow1:
        """The image as QCOW v1.

        :raises DamagedImage: see :class:`Qcow1`.
        :raises UnsupportedImage: backing files and encryption.
        """
        image = Qcow1(self.fd, self.path, on_damage)
        if image.backing_name is not None:
            raise UnsupportedImage("the image has a backing file", self.path, hint="Nothing was changed.")
        if image.header.crypt_method:
            raise UnsupportedImage("the image is encrypted", self.path, hint="Nothing was changed.")
        self.layers = [image]
        return image

    def extents(self) -> Any:
        """What the guest sees, as a stream of :class:`Extent`."""
        return chain_extents(self.layers)

    def plain(self) -> List[PlainImage]:
        """The same image for verification, read by the second path."""
        return [open_plain(layer.format, layer.fd, layer.path) for layer in self.layers]


def open_plain(format_name: str, fd: int, path: bytes) -> PlainImage:
    """One file read by the second path; ``format_name`` is qcow, qcow2 or raw."""
    readers = {"qcow": PlainQcow1, "qcow2": PlainQcow2, "raw": PlainRaw}
    return readers[format_name](fd, path)


def open_layer(format_name: str, fd: int, path: bytes) -> Layer:
    """One file as a layer of extents; ``format_name`` is qcow, qcow2 or raw."""
    layers = {"qcow": Qcow1, "qcow2": Qcow2, "raw": Raw}
    return layers[format_name](fd, path)


__all__ = ["Extent", "Source", "open_layer", "open_plain"]
