# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of files are bytes. They become text only at the edge: coming from Ansible, or shown to a person."""

import base64
from typing import Optional


def to_path(text: str) -> bytes:
    """The file name that Ansible's text stands for (UTF-8, surrogate escapes become the bytes they came from)."""
    return text.encode("utf-8", "surrogateescape")


def show(path: bytes) -> str:
    """A name as valid UTF-8 for messages and results; bytes that are not UTF-8 appear as ``\\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def encode_exact(path: bytes) -> Optional[str]:
    """Base64 of a name that would not come back unharmed as text; ``None`` where :func:`show` will do.

    It is not valid UTF-8, or it has a ``$``: Ansible expands variables in every option that is a path. (It expands a leading ``~``, too, which no
    absolute path has.)
    """
    try:
        path.decode("utf-8")
        if b"$" not in path:
            return None
    except UnicodeDecodeError:
        pass
    return to_base64(path)


def decode_exact(text: str, exact: Optional[str]) -> bytes:
    """The inverse of :func:`show` with :func:`encode_exact`.

    :raises ValueError: where ``exact`` is not base64.
    """
    return to_path(text) if not exact else from_base64(exact)


def to_base64(data: bytes) -> str:
    """Any bytes as records and results hold them."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    """The inverse of :func:`to_base64`.

    :raises ValueError: where it is not Base64.
    """
    return base64.b64decode(text.encode("ascii"), validate=True)
