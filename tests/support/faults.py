# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults at chosen system calls, and what must hold after each: shared by the tests in tests/faults."""

import collections
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from typing import Any, Iterator, NamedTuple, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Packed, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

ALL_POINTS = os.environ.get("VMIMAGE_QCOW_FAULTS", "") == "all"
"""Whether every single call is a point; otherwise writes of data, and calls that only ask or lock, are sampled."""

CHANGING = (
    "write pwrite64 pwritev writev fsync fdatasync rename renameat renameat2 link linkat unlink unlinkat ftruncate openat mkdir mkdirat "
    "fallocate copy_file_range sendfile fchmod fchown fsetxattr utimensat"
).split()
"""The calls at which a fault can matter; those that this kernel's strace does not know are left out."""

ASKING = ["ioctl", "flock", "fcntl"]
FAILING = [name for name in CHANGING if name not in ("fchmod", "fchown", "fsetxattr", "utimensat")]


class Point(NamedTuple):
    """The ``number``-th call of a kind; ``text`` is the call as strace shows it.

    ``helper``: in a thread that the job starts, whichever comes there first; otherwise in the job's first thread.
    """

    call: str
    number: int
    text: str
    helper: bool = False

    def __str__(self) -> str:
        return "%s #%d%s: %s" % (self.call, self.number, " of a helper" if self.helper else "", self.text[:160])


class Server:
    """A fault_server.py, in a PID namespace of its own unless ``isolated`` is False (it then sees later mounts). Context manager.

    ``variables``: more of its environment.
    """

    def __init__(self, *, isolated: bool = True, variables: Optional[dict[str, str]] = None) -> None:
        require_tool("strace")
        command = [os.path.realpath(sys.executable), "-m", "ansible_collections.vmimage.qcow.tests.support.fault_server"]
        if isolated:
            require(os.geteuid() == 0, "needs root for a PID namespace")
            command = [require_tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        # The interpreter itself, with the environment's packages: a shim would fork and spoil the counts.
        paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *[path for path in sys.path if path]])
        environment = dict(os.environ, PYTHONPATH=paths, PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1", **(variables or {}))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *dummy: Any) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def ask(self, job: str, *, strace: Optional[list[str]] = None, **args: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "args": args, "strace": strace}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        require("error" not in answer, "strace cannot attach here: %s" % answer.get("error"))
        assert (answer["result"] or {}).get("raised") != "bug", answer["result"]["msg"] if isinstance(answer["result"], dict) else answer
        return answer

    def call(self, job: str, **args: Any) -> Any:
        """Do a job undisturbed and return what it returned."""
        answer = self.ask(job, **args)
        assert answer["status"] == 0, answer
        return answer["result"]

    def trace(self, log: str, calls: list[str], job: str, **args: Any) -> list[str]:
        """Do a job and return its calls, in order, with paths of descriptors and long strings."""
        answer = self.ask(
            job, strace=["-f", "-o", log, "-y", "-s", "2000", "-e", "trace=" + ",".join("?" + name for name in calls)], **args
        )
        assert answer["status"] == 0, answer
        self.last = answer["result"]
        with open(log, errors="replace") as stream:
            return [line.rstrip("\n") for line in stream]

    def killed_at(self, point: Point, job: str, **args: Any) -> bool:
        """Do a job until SIGKILL meets it at its entry to a call; False where it never came there."""
        status = self.ask(job, strace=_injection(point, "signal=SIGKILL"), **args)["status"]
        assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9), status
        return status != 0

    def failed_at(self, point: Point, error: str, job: str, *, from_there_on: bool = False, **args: Any) -> Any:
        """Do a job of which one call (or every call of that kind from there on) fails; returns what it returned."""
        answer = self.ask(job, strace=_injection(point, "error=" + error, "+" if from_there_on else ""), **args)
        assert answer["status"] == 0, answer
        return answer["result"]


def _injection(point: Point, what: str, more: str = "") -> list[str]:
    return [
        *(["-f"] if point.helper else []),
        "-o",
        "/dev/null",
        "-e",
        "trace=" + point.call,
        "-e",
        "inject=%s:%s:when=%d%s" % (point.call, what, point.number, more),
    ]


def points(lines: list[str], calls: list[str]) -> list[Point]:
    """Every call of a trace as a point; what only reads the kernel's own files or loads code is left out, data writes are sampled."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    found, data, asking, walking = [], [], [], []
    helpers: dict[tuple[str, int], Point] = {}
    first = lines[0].split()[0]
    for line in lines:
        match = re.match(r"(\d+) +(\w+)\(", line)
        if not match or match.group(2) not in calls:
            continue
        thread, call = match.groups()
        counts[thread, call] += 1
        point = Point(call, counts[thread, call], line, thread != first)
        if point.helper:
            helpers[call, point.number] = point
            continue
        if re.search(r'"/(proc|sys|usr|dev|etc)/|\.(py|pyc|so)"|/\.pyenv/', line):
            continue
        if call in ("pwrite64", "copy_file_range", "write") and ".tmp" in line.split(",")[0]:
            data.append(point)
        elif call in ASKING:
            asking.append(point)
        elif call == "openat" and "O_PATH" in line:
            walking.append(point)
        else:
            found.append(point)
    data += helpers.values()
    if ALL_POINTS:
        return found + data + asking + walking
    if len(data) > 16:
        data = data[:5] + data[5 : -5 : max(1, (len(data) - 10) // 6)] + data[-5:]
    return found + data + asking[::4] + walking[::16]


SPEC = ImageSpec(
    size=(3 << 20) + 512,
    clusters={
        **{index: Plain(bytes([index % 251 + 1]) * 4096) for index in (0, 1, 2, 3, 200, 201, 640)},
        **{index: Packed(b"%08d" % index * 512) for index in (17, 18, 400)},
    },
)


DENSE = ImageSpec(size=8 << 20, clusters={index: Plain(bytes([index % 251 + 1]) * 4096) for index in range(2000) if index % 700 < 690})
"""Long runs, which helpers copy."""


class Scene:
    """One directory with one image in it, and a state directory: what a fault is tried on."""

    def __init__(
        self, directory: str, *, name: str = "disk.qcow", spec: ImageSpec = SPEC, state: Optional[str] = None, **options: Any
    ) -> None:
        self.images = os.path.join(directory, "images")
        self.state = state or os.path.join(directory, "state")
        for path in (self.images, self.state):
            shutil.rmtree(path, ignore_errors=True)
        os.makedirs(self.images)
        self.built = build(spec)
        self.src = os.path.join(self.images, name)
        self.options = dict({"retire": True}, **options)
        self.in_place = bool(options.get("keep_name"))
        suffix = "raw" if self.options.get("format") == "raw" else "qcow2"
        self.dest = self.src if self.in_place else os.path.join(self.images, os.path.splitext(name)[0] + "." + suffix)
        self.retired = self.src + ".qcow1.orig"
        self.built.write(self.src)
        self.original = self.built.data
        self.guest = self.built.guest_bytes()

    @property
    def job(self) -> dict[str, Any]:
        return dict(self.options, job="migrate", state=self.state, images=[{"src": self.src}])

    def listing(self) -> list[str]:
        return sorted(os.listdir(self.images))

    def states(self) -> list[str]:
        return [record.state for record in Records(os.fsencode(self.state)).all()]

    def migrated(self) -> list[str]:
        names = [self.dest] + ([self.retired] if self.options["retire"] else [self.src])
        return sorted(os.path.basename(name) for name in names)

    def assert_whole(self) -> None:
        """At any instant: the original's bytes are there, and whatever has the original's or the result's name shows the guest its disk."""
        originals = [name for name in self._files() if _content(name) == self.original]
        assert originals, "the original is gone: %s" % self.listing()
        named = [name for name in (self.src, self.dest) if os.path.exists(name)]
        assert named, "neither the old nor the new name is there: %s" % self.listing()
        for name in named:
            assert self.seen_by_guest(name) == self.guest, "%s does not show the guest its disk" % name

    def _files(self) -> Iterator[str]:
        for name in os.listdir(self.images):
            yield os.path.join(self.images, name)

    def seen_by_guest(self, path: str) -> bytes:
        return guest_bytes(path, "raw" if path.endswith(".raw") else "")

    def assert_migrated(self) -> None:
        """The end: these files and no others, records that are done, and nothing half written among the records."""
        assert self.listing() == self.migrated()
        self.assert_whole()
        if not self.in_place or self.options["retire"]:
            assert self.seen_by_guest(self.dest) == self.guest
        assert self.states()[-1] == "done"
        self.assert_settled()

    def assert_settled(self) -> None:
        assert set(self.states()) <= {"done", "failed", "rolled-back", "cleaned"}, self.states()
        assert not [name for name in os.listdir(os.path.join(self.state, "records")) if not name.endswith(".jsonl")]

    def assert_as_before(self) -> None:
        """The old state: the original under its name and nothing else."""
        assert self.listing() == [os.path.basename(self.src)]
        assert _content(self.src) == self.original


def guest_bytes(path: str, format_name: str = "") -> bytes:
    """What the guest sees of an image without backing file, all of it; shares nothing with the collection's readers."""
    data = _content(path)
    if format_name == "raw":
        return data
    version = int.from_bytes(data[4:8], "big")
    if version == 1:
        size, cluster_bits, l2_bits = struct.unpack_from(">QBB", data, 24)
        l1_offset, l1_size = struct.unpack_from(">Q", data, 40)[0], -(-size // (1 << (cluster_bits + l2_bits)))
        mask, compressed = (1 << 63) - 1, 1 << 63
    else:
        cluster_bits, size = struct.unpack_from(">IQ", data, 20)
        l2_bits = cluster_bits - 3
        l1_size, l1_offset = struct.unpack_from(">IQ", data, 36)
        mask, compressed = (1 << 56) - 512, 1 << 62
    width = 1 << cluster_bits
    disk = bytearray(size)
    for first, table in enumerate(struct.unpack_from(">%dQ" % l1_size, data, l1_offset)):
        for index, entry in enumerate(_table(data, table & mask, 1 << l2_bits)):
            at = ((first << l2_bits) + index) << cluster_bits
            if entry & compressed and version == 1:
                content = _inflate(data[entry & ((1 << (63 - cluster_bits)) - 1) :], width)
            elif entry & compressed:
                content = _inflate(data[entry & ((1 << (70 - cluster_bits)) - 1) :], width)
            elif entry & mask and not (version > 1 and entry & 1):
                content = data[entry & mask : (entry & mask) + width]
            else:
                continue
            disk[at : at + width] = content[: max(size - at, 0)].ljust(min(width, max(size - at, 0)), b"\0")
    return bytes(disk).ljust(-(-size // 512) * 512, b"\0")


def _table(data: bytes, offset: int, entries: int) -> tuple[int, ...]:
    return struct.unpack(">%dQ" % entries, data[offset : offset + 8 * entries].ljust(8 * entries, b"\0")) if offset else ()


def _inflate(data: bytes, width: int) -> bytes:
    return zlib.decompressobj(-12).decompress(data, width)


def _content(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def sha256(path: str) -> str:
    return hashlib.sha256(_content(path)).hexdigest()
