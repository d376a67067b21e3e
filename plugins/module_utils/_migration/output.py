# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a result gets its bytes, by the engine of its plan, and how it is read back to be proven.

* ``native``: read and written here.
* ``staged``: read here into a temporary qcow2 without a name, from which qemu-img writes what only it can write (zstd, LUKS). So every source
  comes out right on every host, whatever its qemu-img can read.
* ``qemu-img``: read and written by qemu-img, where the operator wants it so.
"""

import errno
import os
from typing import Callable, Dict, List, Optional, Tuple

from .._copy.copier import copy_extents
from .._copy.transcode import transcode
from .._copy.writers import Qcow2Writer, RawWriter, preallocate
from .._directories import make_directory, real_path
from .._errors import QcowError, ToolFailed, ToolMissing, VerificationFailed, reason_of
from .._host.files import create_nameless, open_source
from .._host.image_options import Node, name_of_descriptor
from .._host.qemu_img import QemuImg
from .._image.extent import filled
from .._image.qcow1 import Qcow1
from .._image.qcow2_header import DEFAULT_CLUSTER_SIZE, Qcow2Options
from .._paths import show
from .._verify.qcow_readers import open_reader
from .._verify.reader import Reader
from .backing import KEEP, qcow2_options
from .plan import NATIVE, STAGED, Plan, way_out_of_size
from .request import Request
from .source import Source

OnProgress = Callable[[int], None]

_LUKS_SECRET = "result"


def write(plan: Plan, source: Source, fd: int, directory: bytes, progress: OnProgress) -> Optional[str]:
    """Write the result into its empty temporary file. Nothing is synced.

    :param fd: the temporary file, open for writing. :param directory: for further ones, without names.
    :return: the fingerprint of what was written, where the copy has made one on its way.
    :raises QcowError: what reading, writing or qemu-img raise.
    """
    source.fetch_foreign(directory, whole=plan.backing is not None)
    if plan.engine == NATIVE:
        return _write_natively(plan, source, fd, progress)
    if plan.engine == STAGED:
        return _write_staged(plan, source, fd, directory, progress)
    _convert(plan, source_node(plan, source), fd)
    return None


def _write_natively(plan: Plan, source: Source, fd: int, progress: OnProgress) -> Optional[str]:
    request = plan.request
    image = source.layers[0]
    if plan.layout == KEEP and isinstance(image, Qcow1):
        transcode(image, fd, options_of(plan), progress)
        return None
    writer = RawWriter(fd, plan.virtual_size) if request.format == "raw" else Qcow2Writer(fd, plan.virtual_size, options_of(plan))
    extents = source.extents() if plan.backing is None else source.thin_extents(writer.unit)
    if request.preallocation != "off" and request.format == "qcow2":
        extents = filled(extents, source.layers[0], plan.virtual_size)
    hashed = request.verify and plan.backing is None
    copied = copy_extents(extents, source.layers, writer, progress, hashed=hashed, uncached=request.page_cache == "spare")
    if request.preallocation in ("falloc", "full"):
        preallocate(fd, full=request.preallocation == "full")
    return copied.fingerprint


def make_destinations(plans: List[Plan]) -> None:
    """The directories for results. Others may pass through them but not list them: results have the rights of their originals."""
    for directory in sorted({plan.request.dest_dir for plan in plans if plan.request.dest_dir is not None}):
        try:
            make_directory(directory, 0o711)
        except OSError as error:
            raise QcowError(
                "the directory for the results cannot be made: {0}".format(error.strerror),
                directory,
                reason=reason_of(error),
                hint="Nothing was changed. Make it, or choose another.",
            ) from error


def options_of(plan: Plan) -> Qcow2Options:
    """What our own writer is asked for."""
    return qcow2_options(plan.request, plan.backing, plan.cluster_size)


def _write_staged(plan: Plan, source: Source, result: int, directory: bytes, progress: OnProgress) -> Optional[str]:
    fd = create_nameless(directory)
    try:
        copied = copy_extents(source.extents(), source.layers, Qcow2Writer(fd, plan.virtual_size), progress, hashed=plan.request.verify)
        _convert(plan, Node(plan.request.src, "qcow2", fd=fd), result)
        return copied.fingerprint
    finally:
        os.close(fd)


def source_node(plan: Plan, source: Source) -> Node:
    """The original and all below it as qemu-img is told them: every driver named."""
    secrets = dict(plan.request.passphrase_files)
    node: Optional[Node] = None
    for layer in reversed(source.layers):
        secret = None
        if isinstance(layer, Qcow1) and layer.header.crypt_method:
            secret = secrets.get(real_path(layer.path), secrets.get(b""))
        node = Node(layer.path, layer.format, node, secret, fd=layer.fd)
    if node is None:
        raise ValueError("a chain has at least one file")
    return node


def _convert(plan: Plan, node: Node, result: int) -> None:
    """Have qemu-img write to ``result``, our descriptor of the temporary file."""
    tool = _tool()
    if node.driver == "qcow" and not tool.reads_v1():
        raise ToolMissing(
            "this host's qemu-img was built without the QCOW v1 driver",
            hint="Nothing was changed. Use engine=native, which needs no qemu-img.",
        )
    request = plan.request
    secrets = {}
    if request.encryption == "luks" and request.luks_passphrase_file is not None:
        secrets[_LUKS_SECRET] = request.luks_passphrase_file
    try:
        tool.convert(
            node,
            result,
            request.format,
            options=qemu_img_options(request),
            secrets=secrets,
            compress=request.compression != "none",
            bandwidth=request.bandwidth,
        )
    except ToolFailed as error:
        error.message = error.message.replace(show(name_of_descriptor(result)), show(plan.dest))
        too_large = os.strerror(errno.EFBIG) in error.message
        way_out = way_out_of_size(request.format) if too_large else "Fix what qemu-img reports, then run again."
        error.hint = "The original was not changed and nothing was published. {0}".format(way_out)
        raise


def _tool() -> QemuImg:
    tool = QemuImg.find()
    if tool is None:
        raise ToolMissing("qemu-img is not installed", hint="Nothing was changed. Install it, or leave out what only qemu-img writes.")
    return tool


def qemu_img_options(request: Request) -> Dict[str, str]:
    """The ``-o`` options that ask qemu-img for the same result."""
    if request.format == "raw":
        return {} if request.preallocation == "off" else {"preallocation": request.preallocation}
    options = {"compat": request.compat, "cluster_size": str(request.cluster_size or DEFAULT_CLUSTER_SIZE)}
    if request.lazy_refcounts:
        options["lazy_refcounts"] = "on"
    if request.extended_l2:
        options["extended_l2"] = "on"
    if request.compression == "zstd":
        options["compression_type"] = "zstd"
    if request.preallocation != "off":
        options["preallocation"] = request.preallocation
    if request.encryption == "luks":
        options["encrypt.format"] = "luks"
        options["encrypt.key-secret"] = _LUKS_SECRET
    return options


def read_back(plan: Plan, source: Source, fd: int, directory: bytes) -> Tuple[List[Reader], List[int]]:
    """The result as the second reading path sees it, with the files below it, and the descriptors to be closed after that.

    :param directory: for a file without a name, into which qemu-img writes what only it can read back.
    """
    if plan.read_back_by_qemu_img:
        proof = create_nameless(directory)
        try:
            _tool().convert(Node(plan.dest, "qcow2", secret_file=plan.request.luks_passphrase_file, fd=fd), proof, "raw")
            return [open_reader("raw", proof, plan.dest)], [proof]
        except BaseException:
            os.close(proof)
            raise
    images = [open_reader(plan.request.format, fd, plan.dest)]
    opened: List[int] = []
    if plan.backing is not None:
        for path, format_name in plan.backing.files:
            opened.append(open_source(path))
            images.append(open_reader(format_name, opened[-1], path))
        if plan.backing.rest is not None:
            images.extend(source.readers_below(first=plan.backing.rest))
    return images, opened


def second_opinion(plan: Plan, fd: int) -> None:
    """Where the host has a qemu-img, it must find our qcow2 clean too, if it is to be asked (:func:`.with_second_opinions`).

    :param fd: the result.

    :raises VerificationFailed: where it does not.
    """
    if not plan.second_opinion or plan.request.format != "qcow2" or plan.request.encryption == "luks":
        return
    tool = QemuImg.find()
    if tool is None:
        return
    answer = tool.check(plan.dest, "qcow2", fd=fd)
    if not answer.ok:
        raise VerificationFailed(
            "qemu-img check does not find the result clean: {0}".format(answer),
            plan.dest,
            hint="Nothing was published. Please report this.",
        )
