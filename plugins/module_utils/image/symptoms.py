# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two known bugs of writers whose victims look sound: every reader reads them, and none reads what the guest once wrote."""

import os
import zlib
from array import array
from typing import List, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.image.findings import WARNING, Finding
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1_header import CRYPT_AES, Header


def virtualbox_overwrite(header: Header, offset: int, entries: array, orphans: List[Finding]) -> Optional[Finding]:
    """VirtualBox rounds an L1 table up to whole clusters when it writes it: over the first entries of an L2 table right behind it.

    :param offset: byte at which the first L2 table lies, and its ``entries``.
    :param orphans: ranges of the file that nothing refers to.
    """
    cluster = header.cluster_size
    overwritten = header.l1_offset + -(-8 * header.l1_entries // cluster) * cluster - offset
    count = overwritten // 8
    if not 0 < count < len(entries) or any(entries[:count]) or not any(entries[count:]):
        return None
    behind = offset + header.l2_size
    if not any(orphan.offset == behind and orphan.length >= cluster for orphan in orphans):
        return None
    text = (
        "VirtualBox has probably overwritten the first {0} entries of this L2 table: they are zero, and clusters that nothing refers to lie "
        "right behind it, at byte {1}; the first {2} bytes of the disk read as zeros"
    ).format(count, behind, count * cluster)
    return Finding("virtualbox-damage", WARNING, 0, count * cluster, offset, text)


def unflagged_compression(image: Qcow1, samples: List[int]) -> Optional[Finding]:
    """QEMU's development trees of 2008-06-05 to 2009-01-08 wrote compressed clusters without saying so in the entry.

    :param samples: bytes in the file at which clusters lie that are said not to be compressed.
    """
    cluster = image.cluster_size
    looked = hits = 0
    for offset in samples if image.header.crypt_method != CRYPT_AES else ():
        data = os.pread(image.fd, cluster, offset)
        if len(data) == cluster and any(data):
            looked += 1
            hits += _is_stream_and_zeros(data)
    if not hits or 2 * hits < looked:
        return None
    text = (
        "{0} of {1} clusters looked at are compressed although their entries do not say so (a bug of QEMU's development trees of 2008); "
        "the guest sees the compressed bytes"
    ).format(hits, looked)
    return Finding("unflagged-compression", WARNING, None, 0, None, text)


def _is_stream_and_zeros(data: bytes) -> bool:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, len(data) + 1)
    except zlib.error:
        return False
    return inflater.eof and len(inflated) == len(data) and not any(inflater.unused_data)
