# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a qcow2 result can keep the layout of its original, so that only metadata has to be written."""

from typing import List, Optional, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.image.measure import Need
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow2_writer import Qcow2Options
from ansible_collections.vmimage.qcow.plugins.module_utils.image.transcode import why_not
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.overlay import Backing
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.source import Source

RECLUSTER = "recluster"
KEEP = "keep"


def kept_layout(
    request: Request, source: Source, backing: Optional[Backing], cluster_size: int, need: Need, reasons: List[str], *, native: bool
) -> Tuple[str, int, Need]:
    """Layout, cluster size and need of a result whose layout is to be kept; where that cannot be, those that were meant without it.

    :param cluster_size: in bytes, of a result with a new layout, and ``need`` what that takes.
    :param reasons: gets what was decided, in words.
    :param native: whether our own engine writes the result, and all of it.
    :raises UnsupportedImage: where options contradict it.
    """
    asked = [
        name
        for name, given in (
            ("cluster_size", request.cluster_size),
            ("extended_l2", request.extended_l2),
            ("compression", request.compression != "none"),
            ("encryption", request.encryption != "none"),
            ("preallocation", request.preallocation != "off"),
        )
        if given
    ]
    if asked:
        raise UnsupportedImage(
            "layout=keep leaves every cluster as it is, and {0} asks for something else".format(", ".join(asked)),
            request.src,
            hint="Nothing was changed. Leave one of them out.",
        )
    image = source.layers[0]
    if not isinstance(image, Qcow1):
        raise UnsupportedImage("only a QCOW v1 image can keep its layout", request.src)
    options = Qcow2Options(
        image.cluster_size,
        lazy_refcounts=request.lazy_refcounts,
        backing_name=None if backing is None else backing.name,
        backing_format=None if backing is None else backing.format,
        version=2 if request.compat == "0.10" else 3,
    )
    against = why_not(image, options)
    if not native:
        against = "our own engine does not write it all"
    elif source.members and backing is None:
        against = "it is flattened with the files below it"
    if against is not None:
        reasons.append("the layout cannot be kept: " + against)
        return RECLUSTER, cluster_size, need
    reasons.append("the layout is kept, clusters of {0} bytes".format(image.cluster_size))
    # The copy of the file, and tables for it: two bytes of refcount and eight of L2 for a cluster, and what may have to move.
    tables = (image.file_size // image.cluster_size + 1) * 16 + 8 * (
        image.virtual_size // (image.cluster_size // 8 * image.cluster_size) + 64
    )
    return KEEP, image.cluster_size, Need(need.guest, image.file_size + tables + 16 * image.cluster_size)
