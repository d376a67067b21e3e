# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu-img, told everything and allowed to guess nothing.

Every node of a chain gets an explicit driver, so no content is ever probed; locks are respected (``-U`` is never used);
secrets are read by qemu-img from files. Facts about the program were measured on 5.2, 7.2, 10.0 and 11.1.
"""

import json
import os
import re
import struct
import zlib
from array import array
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .._errors import ToolFailed, ToolMissing, UnsupportedImage
from .._paths import show
from .command import Output, command_line, find_program, run
from .image_options import Node, escape, image_options, name_of_descriptor, nodes_of, secret_arguments

# QEMU measures its own processor time to find out how often to hash a LUKS passphrase, and fails where the kernel's clock has counted none
# (crypto/pbkdf.c): on a busy machine up to every second time, before anything is written, after some 30 ms.
_BUSY = b"Unable to get accurate CPU usage"
_ATTEMPTS = 50
_DEPRECATION = re.compile(rb'^.*warning: Use of "backing": "" is deprecated.*\n?', re.MULTILINE)
_PROGRESS = re.compile(rb"\((\d+\.\d+)/100%\)")


class CheckResult(NamedTuple):
    """What ``qemu-img check`` found: numbers of corruptions, leaked clusters and clusters it could not check; clusters counted."""

    ok: bool
    corruptions: int
    leaks: int
    errors: int
    allocated_clusters: int
    total_clusters: int


def _probe_image() -> Tuple[bytes, bytes]:
    """A QCOW v1 image of three 512-byte clusters (plain, absent, compressed) and the guest bytes it stands for."""
    plain, packed = bytes(range(256)) * 2, b"vmimage.qcow knows this sector. " * 16
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    stream = compressor.compress(packed) + compressor.flush()
    header = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, 1536, 9, 6, 0, 0, 48)
    table = struct.pack(">3Q", 1024, 0, 1 << 63 | len(stream) << 54 | 1536).ljust(512, b"\0")
    image = (header + struct.pack(">Q", 512)).ljust(512, b"\0") + table + plain + stream.ljust(512, b"\0")
    return image, plain + bytes(512) + packed


_LOOK_MEMORY = 1 << 30
"""Bytes that a look at somebody's image may take, whatever its header claims; oVirt and OpenStack allow as much."""

_CONVERT_MEMORY = 4 << 30
"""Bytes of address space for converting. Half a GiB to one were measured, most of it stacks of threads."""


_KNOWN: Dict[Tuple[int, ...], Dict[str, Any]] = {}
"""What programs have said of themselves, by the file's identity: a run asks about each image."""


class QemuImg:
    """One qemu-img program; what it can do is asked once in a process and kept.

    :raises ToolMissing: where there is no such program.
    """

    def __init__(self, executable: bytes = b"qemu-img", *, timeout: float = 60.0) -> None:
        """:param executable: name or path. :param timeout: seconds for everything but convert and check, which have none."""
        path = find_program(executable)
        if path is None:
            raise ToolMissing("was not found.", path=executable, hint="Install qemu-img (qemu-utils) or use the native engine.")
        self.path = path
        self._timeout = timeout
        status = os.stat(path)
        self._known = _KNOWN.setdefault((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns), {})

    @classmethod
    def find(cls, executable: bytes = b"qemu-img", *, timeout: float = 60.0) -> Optional["QemuImg"]:
        """The program, or ``None`` where there is none."""
        try:
            return cls(executable, timeout=timeout)
        except ToolMissing:
            return None

    # ---- what it is ----

    @property
    def help(self) -> str:
        """The text of ``--help``."""
        if "help" not in self._known:
            self._known["help"] = self._run([b"--help"], accept=(0, 1)).stdout.decode("utf-8", "replace")
        text: str = self._known["help"]
        return text

    @property
    def version(self) -> Tuple[int, ...]:
        """For instance ``(7, 2, 22)``; empty where it does not say."""
        match = re.search(r"version (\d+(?:\.\d+)*)", self.help)
        return tuple(int(part) for part in match.group(1).split(".")) if match else ()

    @property
    def formats(self) -> FrozenSet[str]:
        """The drivers it was built with (``Supported formats:`` up to 10.0, ``Supported image formats:`` later)."""
        match = re.search(r"^Supported (?:image )?formats:((?:\s+[a-z0-9][\w-]*)+)", self.help, re.MULTILINE)
        return frozenset(match.group(1).split()) if match else frozenset()

    def reads_v1(self) -> bool:
        """Whether it reads QCOW v1: the driver is listed *and* a known image comes out right. Many builds take v1 for raw, with exit code 0."""
        if "reads_v1" not in self._known:
            self._known["reads_v1"] = "qcow" in self.formats and self._probe()
        return bool(self._known["reads_v1"])

    def _probe(self) -> bool:
        import tempfile  # not at the start: it brings shutil and random along, for an engine that is seldom asked

        image, expected = _probe_image()
        try:
            with tempfile.TemporaryDirectory(prefix="vmimage-qcow-") as name:
                folder = os.fsencode(name)
                source, result = os.path.join(folder, b"probe.qcow"), os.path.join(folder, b"probe.raw")
                with open(source, "wb") as stream:
                    stream.write(image)
                self._convert(Node(source, "qcow"), result, "raw", [], {}, timeout=self._timeout)
                with open(result, "rb") as stream:
                    return stream.read(len(expected) + 1) == expected
        except (ToolFailed, OSError):
            return False

    # ---- what it does ----

    def convert(
        self,
        source: Node,
        dest: Union[bytes, int],
        output_format: str,
        *,
        options: Optional[Mapping[str, str]] = None,
        secrets: Optional[Mapping[str, bytes]] = None,
        bandwidth: Optional[int] = None,
        compress: bool = False,
        cache: str = "writeback",
        progress: Optional[Callable[[float], None]] = None,
        tick: Optional[Callable[[], None]] = None,
    ) -> None:
        """Write all the guest sees of ``source`` to ``dest``, whole, without a backing file. No time limit.

        An existing ``dest`` keeps its inode, owner and mode and is overwritten: create it first, closed to others. Where qemu-img cannot create
        the image it removes the name that it was given (``bdrv_create``); a descriptor, open for writing, has none.

        :param options: creation options (``-o``), names and values as qemu-img has them.
        :param secrets: id -> file, for ids that ``options`` refer to (``encrypt.key-secret``, ``key-secret``).
        :param bandwidth: bytes a second. :param cache: ``writeback`` or ``none``: with both, success means flushed to storage.
        :param progress: gets numbers from 0 to 100. :param tick: see :func:`~.process.run`; may raise to end the conversion.
        :raises UnsupportedImage: this qemu-img cannot do that (no v1 driver, no rate limit). :raises ToolFailed: it failed.
        """
        if cache not in ("writeback", "none"):
            raise ValueError("cache must be writeback or none: other modes leave the result unflushed")
        for node in nodes_of(source):
            self._require_driver(node)
        arguments = [b"-t", cache.encode("ascii")]
        if bandwidth is not None:
            if "rate_limit" not in self.help:
                raise UnsupportedImage(
                    "this qemu-img cannot limit its rate (5.2 and later can).", path=self.path, hint="Nothing was written."
                )
            arguments += [b"-r", b"%d" % bandwidth]
        if compress:
            arguments.append(b"-c")
        if options:
            pairs = sorted(options.items())
            arguments += [
                b"-o",
                b",".join(name.encode("ascii") + b"=" + escape(value.encode("utf-8", "surrogateescape")) for name, value in pairs),
            ]
        self._convert(source, dest, output_format, arguments, secrets or {}, progress=progress, tick=tick)

    def _convert(
        self,
        source: Node,
        dest: Union[bytes, int],
        output_format: str,
        arguments: List[bytes],
        secrets: Mapping[str, bytes],
        *,
        timeout: Optional[float] = None,
        progress: Optional[Callable[[float], None]] = None,
        tick: Optional[Callable[[], None]] = None,
    ) -> None:
        needed = [(name.encode("ascii"), path) for name, path in secrets.items()]
        read = self._operand(source, needed)
        watch = None
        if progress is not None:
            arguments = arguments + [b"-p"]
            watch = _progress_parser(progress)
        # An absolute name cannot be taken for a protocol, so the result needs no option string.
        target = name_of_descriptor(dest) if isinstance(dest, int) else os.path.abspath(dest)
        argv = [b"convert"] + secret_arguments(needed) + arguments + [b"-O", output_format.encode("ascii")] + read + [target]
        self._run(argv, nodes_of(source), timeout=timeout, on_stdout=watch, tick=tick, memory=_CONVERT_MEMORY)

    def check(self, path: bytes, image_format: str, *, fd: Optional[int] = None, tick: Optional[Callable[[], None]] = None) -> CheckResult:
        """Check an image's structure, alone: its backing file is not opened. Never repairs. No time limit.

        :param fd: see :class:`Node`.

        :raises UnsupportedImage: QCOW v1 (no version can check it), raw. :raises ToolFailed: it could not be checked.
        """
        self._refuse_v1(path, image_format, "check")
        node = Node(path, image_format, fd=fd)
        argv = [b"check", b"--output=json"] + self._operand(node, [])
        output = self._run(argv, [node], accept=(0, 2, 3, 63), timeout=None, tick=tick)
        if output.rc == 63:
            raise UnsupportedImage("qemu-img cannot check images of format {0}.".format(image_format), path=path)
        answer = self._json(output, [b"check"])
        numbers = [int(answer.get(key, 0)) for key in ("corruptions", "leaks", "check-errors", "allocated-clusters", "total-clusters")]
        return CheckResult(output.rc == 0 and not any(numbers[:3]), *numbers)

    def info(self, path: bytes, image_format: str, *, fd: Optional[int] = None) -> Dict[str, Any]:
        """What ``info --output=json`` says of an image that is not QCOW v1 (read those yourself: not every qemu-img can).

        :param fd: see :class:`Node`.

        :raises UnsupportedImage: QCOW v1. :raises ToolFailed: it cannot be opened as that format.
        """
        self._refuse_v1(path, image_format, "info")
        node = Node(path, image_format, fd=fd)
        argv = [b"info", b"--output=json"] + self._operand(node, [])
        try:
            return self._json(self._run(argv, [node], memory=_LOOK_MEMORY), argv)
        except ToolFailed as error:
            error.hint = "Nothing was changed. For this look qemu-img gets {0} bytes of memory, whatever the image asks for.".format(
                _LOOK_MEMORY
            )
            raise

    def data_ranges(self, path: bytes, image_format: str, *, fd: int, limit: int) -> Iterator[Tuple[int, int]]:
        """``(first, byte after the last)`` of what ``map --output=json`` says holds data in the first ``limit`` guest bytes.

        :param fd: see :class:`Node`.
        :raises ToolFailed: it cannot be opened as that format, or takes too long.
        """
        node = Node(path, image_format, fd=fd)
        found, rest = array("Q"), [b""]

        def parse(piece: bytes) -> None:
            lines = (rest[0] + piece).split(b"\n")  # an object a line
            rest[0] = lines.pop()
            for line in lines:
                entry = json.loads(line.strip(b"[], ").decode("ascii"))
                if entry["data"] and not entry["zero"] and entry["start"] < limit:
                    found.extend((entry["start"], min(entry["start"] + entry["length"], limit)))

        shorter = [b"--max-length=%d" % limit] if "max-length" in self.help and limit else []  # since 5.2
        self._run([b"map", b"--output=json"] + shorter + self._operand(node, []), [node], on_stdout=parse, memory=_LOOK_MEMORY)
        return zip(found[::2], found[1::2])

    # ---- how it is run ----

    @staticmethod
    def _operand(node: Node, secrets: List[Tuple[bytes, bytes]]) -> List[bytes]:
        return [b"--image-opts", image_options(node, secrets)]

    def _require_driver(self, node: Node) -> None:
        if node.driver == "qcow":
            usable = self.reads_v1()
        else:
            usable = node.driver in self.formats
        if not usable:
            raise UnsupportedImage(
                "{0} has no working driver for {1} images.".format(show(self.path), "QCOW v1" if node.driver == "qcow" else node.driver),
                path=node.path,
                hint="Nothing was written. Use the native engine.",
            )

    @staticmethod
    def _refuse_v1(path: bytes, image_format: str, command: str) -> None:
        if image_format == "qcow":
            raise UnsupportedImage("qemu-img {0} is not used on QCOW v1 images.".format(command), path=path)

    def _run(
        self,
        arguments: Sequence[bytes],
        nodes: Sequence[Node] = (),
        *,
        accept: Sequence[int] = (0,),
        timeout: Optional[float] = -1.0,
        **more: Any,
    ) -> Output:
        for _attempt in range(_ATTEMPTS):
            output = run([self.path] + list(arguments), timeout=self._timeout if timeout == -1.0 else timeout, **more)
            if _BUSY not in output.stderr:
                break
        said = _DEPRECATION.sub(b"", output.stderr)
        for node in nodes:
            if node.fd is not None:
                said = re.sub(re.escape(name_of_descriptor(node.fd)) + rb"(?!\d)", node.path.replace(b"\\", rb"\\"), said)
        output = output._replace(stderr=said)
        if output.rc not in accept:
            raise self._failed(arguments, output)
        return output

    def _failed(self, arguments: Sequence[bytes], output: Output) -> ToolFailed:
        lines = show(output.stderr).strip().splitlines()
        message = "qemu-img {0} ended with code {1}: {2}".format(show(arguments[0]), output.rc, lines[-1] if lines else "it said nothing.")
        return ToolFailed(message, cmd=command_line([self.path] + list(arguments)), rc=output.rc, stderr=show(output.stderr))

    def _json(self, output: Output, arguments: Sequence[bytes]) -> Dict[str, Any]:
        try:
            answer = json.loads(output.stdout.decode("utf-8", "replace"))
        except ValueError as error:
            raise self._failed(arguments, output) from error
        return answer if isinstance(answer, dict) else {}


def _progress_parser(progress: Callable[[float], None]) -> Callable[[bytes], None]:
    rest = [b""]

    def parse(piece: bytes) -> None:
        text = rest[0] + piece
        found = _PROGRESS.findall(text)
        rest[0] = text[text.rfind(b"\r") + 1 :][-64:]
        if found:
            progress(float(found[-1]))

    return parse
