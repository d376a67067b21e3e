# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fingerprint, by its description in words."""

import hashlib


def described(guest: bytes, size: int) -> str:
    """The fingerprint of a disk of ``size`` bytes; ``guest``: its first bytes, behind which all are zeros."""
    rounded = -(-size // 512) * 512
    digest = hashlib.sha256(b"vmimage.qcow fingerprint 1\0" + rounded.to_bytes(8, "big"))
    for index in range(-(-len(guest) // 65536)):
        block = guest[index * 65536 : (index + 1) * 65536].ljust(65536, b"\0")
        if any(block):
            digest.update(index.to_bytes(8, "big") + hashlib.sha256(block).digest())
    return "sha256-64k:" + digest.hexdigest()
