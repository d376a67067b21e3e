# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole chains on real files: what is kept thin, what follows, what is refused together. qemu-img is the judge of what a guest sees."""

import json
import os
import pathlib
import random
import subprocess
import time
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils._host.qemu_img import QemuImg
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, execute, record_batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.image_spec import Backing, ImageSpec, Plain
from ansible_collections.vmimage.qcow.tests.support.require import require_tool

MIB = 1 << 20


def forget_format(path: pathlib.Path) -> None:
    """Take the backing format out of a qcow2 header, as QEMU before 6.1 wrote them without ``-F``."""
    with open(path, "r+b") as stream:
        head = stream.read(512)
        head += stream.read(min(4096, 1 << head[23]) - 512)
        at = head.index(b"\xe2\x79\x2a\xca")
        length = 8 + -(-int.from_bytes(head[at + 4 : at + 8], "big") // 8) * 8
        name_at = int.from_bytes(head[8:16], "big") - length
        stream.seek(at)
        stream.write(head[at + length :] + bytes(length))
        stream.seek(8)
        stream.write(name_at.to_bytes(8, "big"))
    assert "backing-filename-format" not in oracle.info(path, "qcow2")


class Host:
    """A directory with images and what happens to them."""

    def __init__(self, root: pathlib.Path) -> None:
        self.images = root / "images"
        self.images.mkdir()
        self.state = os.fsencode(root / "state")

    def v1(
        self, name: str, base: Optional[str] = None, *, seed: int = 0, size: int = 8 * MIB, cluster_bits: int = 0, **more: Any
    ) -> pathlib.Path:
        cluster_bits = cluster_bits or (9 if base else 12)
        cluster = 1 << cluster_bits
        source = random.Random(seed)
        clusters = {index: Plain(source.randbytes(cluster)) for index in source.sample(range(size // cluster), 60)}
        backing = None if base is None else Backing(os.fsencode(base))
        spec = ImageSpec(
            size=size, cluster_bits=cluster_bits, l2_bits=12 if cluster_bits == 9 else 9, clusters=clusters, backing=backing, **more
        )
        build(spec).write(self.images / name)
        return self.images / name

    def foreign(self, name: str, base: str, *, recorded: Optional[str] = None, compat: str = "1.1", **options: str) -> pathlib.Path:
        """A qcow2 overlay by qemu-img with some data of its own; without ``recorded`` its header says no backing format."""
        path = self.images / name
        given = ",".join(["compat=%s" % compat] + ["%s=%s" % item for item in options.items()])
        oracle.run("create", "-f", "qcow2", "-o", given, "-b", self.images / base, "-F", recorded or "qcow", path)
        oracle.run("rebase", "-u", "-f", "qcow2", "-b", base, "-F", recorded or "qcow", path)
        if recorded is None:
            forget_format(path)
        write = ["-c", "write -P 77 1M 64k", "-c", "write -P 78 3000000 512"]
        node = "driver=qcow2,file.filename=%s,backing.driver=%s,backing.file.filename=%s" % (path, recorded or "qcow", self.images / base)
        subprocess.run([require_tool("qemu-io"), "--image-opts", node, *write], check=True, capture_output=True)
        return path

    def requests(self, *names: str, **options: Any) -> list:
        return [Request(src=os.fsencode(self.images / name), state_dir=self.state, **{"retire": True, **options}) for name in names]

    def migrate(self, *names: str, check_mode: bool = False, workers: int = 1, **options: Any) -> list:
        return batch.run(self.requests(*names, **options), Settings(self.state, workers=workers, check_mode=check_mode))

    def guest(self, name: str, *drivers: str) -> bytes:
        """What qemu-img reads through a chain with the drivers named from the top down, no probing anywhere."""
        nodes = []
        path = self.images / name
        for driver in drivers:
            nodes.append(oracle.Node(path, driver))
            if len(nodes) < len(drivers):
                below = oracle.info(path, driver)["backing-filename"]
                path = path.parent / below
        return oracle.guest_bytes(*nodes)

    def snapshot(self) -> dict:
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in self.images.iterdir()}

    def used(self, *names: str) -> int:
        return sum((self.images / name).stat().st_blocks * 512 for name in names)


@pytest.fixture(name="host")
def _host(tmp_path: pathlib.Path) -> Host:
    oracle.require_v1_driver()
    return Host(tmp_path)


def ok(results: list) -> list:
    assert not [result["msg"] for result in results if result["failed"]]
    return results


@pytest.mark.parametrize("workers", [1, 2])
def test_base_with_three_overlays_stays_a_chain(host: Host, workers: int, tell: Any) -> None:
    """A base, two version 1 overlays, and a qcow2 overlay whose header records no format: all four show the same as before, thin."""
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.v1("two.qcow", "base.qcow", seed=3)
    host.foreign("three.qcow2", "base.qcow")
    assert "backing-filename-format" not in oracle.info(host.images / "three.qcow2", "qcow2")
    before = [host.guest("base.qcow", "qcow"), *(host.guest(name, "qcow", "qcow") for name in ("one.qcow", "two.qcow"))]
    before.append(host.guest("three.qcow2", "qcow2", "qcow"))
    names = ["base.qcow", "one.qcow", "two.qcow"]
    used = host.used(*names, "three.qcow2")
    results = ok(host.migrate(*reversed(names), workers=workers))
    assert [result["backing"] and result["backing"]["path"] for result in results] == ["base.qcow2", "base.qcow2", None]
    after = [host.guest("base.qcow2", "qcow2"), *(host.guest(name, "qcow2", "qcow2") for name in ("one.qcow2", "two.qcow2", "three.qcow2"))]
    assert after == before
    for name in ("one.qcow2", "two.qcow2", "three.qcow2"):
        info = oracle.info(host.images / name, "qcow2")
        assert info["backing-filename-format"] == "qcow2", "qemu would have to probe"
        assert info["backing-filename"] == "base.qcow2"
        oracle.assert_clean(host.images / name)
        # Without a driver for the base: the header alone must do.
        assert (
            oracle.guest_bytes(oracle.Node(host.images / name, "qcow2"))
            == after[["base.qcow2", "one.qcow2", "two.qcow2", "three.qcow2"].index(name)]
        )
    assert sorted(path.name for path in host.images.iterdir()) == sorted(
        [name + ".qcow1.orig" for name in names] + ["base.qcow2", "one.qcow2", "two.qcow2", "three.qcow2"]
    )
    now = host.used("base.qcow2", "one.qcow2", "two.qcow2", "three.qcow2")
    tell("a chain of %d bytes takes %d bytes migrated" % (used, now))
    assert now < 3 * used, (used, now)
    assert all(not result["changed"] for result in host.migrate(*names)), "a second run changed something"


def test_flatten_makes_each_result_stand_alone(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.foreign("three.qcow2", "base.qcow", recorded="qcow")
    before = host.guest("one.qcow", "qcow", "qcow"), host.guest("three.qcow2", "qcow2", "qcow")
    ok(host.migrate("base.qcow", "one.qcow", chains="flatten"))
    assert "backing-filename" not in oracle.info(host.images / "one.qcow2", "qcow2")
    assert (host.guest("one.qcow2", "qcow2"), host.guest("three.qcow2", "qcow2", "qcow2")) == before


def test_raw_results_are_flattened_and_foreign_overlays_rest_on_raw(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.foreign("three.qcow2", "base.qcow", recorded="qcow")
    before = host.guest("one.qcow", "qcow", "qcow"), host.guest("three.qcow2", "qcow2", "qcow")
    ok(host.migrate("base.qcow", "one.qcow", format="raw"))
    assert ((host.images / "one.raw").read_bytes(), host.guest("three.qcow2", "qcow2", "raw")) == before
    assert oracle.info(host.images / "three.qcow2", "qcow2")["backing-filename-format"] == "raw"


def test_keeping_names_keeps_the_chain(host: Host) -> None:
    host.v1("base.img", seed=1)
    host.v1("one.img", "base.img", seed=2)
    host.foreign("three.qcow2", "base.img", recorded="qcow")
    before = host.guest("one.img", "qcow", "qcow"), host.guest("three.qcow2", "qcow2", "qcow")
    ok(host.migrate("one.img", "base.img", keep_name=True))
    assert (host.guest("one.img", "qcow2", "qcow2"), host.guest("three.qcow2", "qcow2", "qcow2")) == before


def test_deep_chain_stays_deep(host: Host) -> None:
    host.v1("0.qcow", seed=0)
    for number in range(1, 12):
        host.v1("%d.qcow" % number, "%d.qcow" % (number - 1), seed=number, size=(8 - number // 3) * MIB)
    before = host.guest("11.qcow", *["qcow"] * 12)
    ok(host.migrate(*("%d.qcow" % number for number in (5, 11, 0, 3, 4, 10, 9, 1, 2, 8, 7, 6))))
    assert host.guest("11.qcow2", *["qcow2"] * 12) == before


def test_overlay_between_stays_and_follows(host: Host) -> None:
    """A qcow2 image between two of version 1: re-pointed below, rested upon above."""
    host.v1("base.qcow", seed=1)
    host.foreign("middle.qcow2", "base.qcow", recorded="qcow")
    host.v1("top.qcow", "middle.qcow2", seed=3)
    before = host.guest("top.qcow", "qcow", "qcow2", "qcow")
    started = time.monotonic()
    ok(host.migrate("top.qcow", "base.qcow"))
    # The kernel lets an open for writing wait that long for a lease: not for one of our own.
    assert time.monotonic() - started < int(pathlib.Path("/proc/sys/fs/lease-break-time").read_text())
    assert host.guest("top.qcow2", "qcow2", "qcow2", "qcow2") == before


@pytest.mark.parametrize("base_format", ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_bases_of_other_formats_stay(host: Host, base_format: str) -> None:
    disk = random.Random(5).randbytes(3 * MIB).ljust(8 * MIB, b"\0")
    (host.images / "disk").write_bytes(disk)
    oracle.run("convert", "-f", "raw", "-O", base_format, host.images / "disk", host.images / "base.img")
    host.v1("top.qcow", "base.img", seed=3)
    before = host.guest("top.qcow", "qcow", base_format)
    ok(host.migrate("top.qcow"))
    assert oracle.info(host.images / "top.qcow2", "qcow2")["backing-filename-format"] == base_format
    assert host.guest("top.qcow2", "qcow2", base_format)[: len(before)] == before
    os.rename(host.images / "top.qcow.qcow1.orig", host.images / "flat.qcow")
    ok(host.migrate("flat.qcow", chains="flatten"))
    assert host.guest("flat.qcow2", "qcow2") == before
    assert not [path for path in host.images.iterdir() if path.name.startswith(".")]


def test_base_of_another_format_needs_qemu_img(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.images / "disk").write_bytes(bytes(MIB))
    oracle.run("convert", "-f", "raw", "-O", "vmdk", host.images / "disk", host.images / "base.vmdk")
    host.v1("top.qcow", "base.vmdk", seed=3)
    monkeypatch.setattr(QemuImg, "find", lambda: None)  # a host without it
    (result,) = host.migrate("top.qcow", chains="flatten")
    assert result["reason"] == "tool-missing" and "qemu-img" in result["msg"]


def test_vmdk_that_names_other_files_is_refused(host: Host) -> None:
    (host.images / "disk").write_bytes(bytes(MIB))
    oracle.run(
        "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", host.images / "disk", host.images / "base.vmdk"
    )
    host.v1("top.qcow", "base.vmdk", seed=3)
    (result,) = host.migrate("top.qcow", chains="flatten")
    assert result["failed"] and "stand alone" in result["msg"]


def test_base_is_not_retired_while_an_overlay_is_left_out(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    before = host.snapshot()
    (result,) = host.migrate("base.qcow")
    assert result["reason"] == "needed" and "one.qcow" in result["msg"]
    assert host.snapshot() == before
    ok(host.migrate("base.qcow", retire=False))
    # And now the overlay alone: its base has been converted before.
    ok(host.migrate("one.qcow"))
    assert oracle.info(host.images / "one.qcow2", "qcow2")["backing-filename"] == "base.qcow2"
    ok(host.migrate("base.qcow"))
    assert not (host.images / "base.qcow").exists()


def test_overlay_alone_is_refused_where_its_base_is_left_out(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    (result,) = host.migrate("one.qcow")
    assert result["reason"] == "chain" and "base.qcow" in result["msg"] and "flatten" in result["msg"]


@pytest.mark.parametrize("bad", ["base.qcow", "one.qcow", "two.qcow"])
@pytest.mark.parametrize("chains", ["preserve", "flatten"])
def test_chain_with_one_bad_image_is_refused_whole(host: Host, bad: str, chains: str) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.v1("two.qcow", "one.qcow", seed=3)
    host.v1("other.qcow", seed=4)
    with open(host.images / bad, "r+b") as stream:
        stream.truncate(stream.seek(0, 2) // 2)
    before = host.snapshot()
    results = host.migrate("base.qcow", "one.qcow", "two.qcow", chains=chains)
    assert all(result["failed"] for result in results)
    assert host.snapshot() == before
    assert not list(Records(host.state).all())
    assert [result["changed"] for result in host.migrate("two.qcow", "other.qcow", chains=chains)] == [False, True]


def test_foreign_overlay_in_use_keeps_its_base_from_moving(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    path = host.foreign("three.qcow2", "base.qcow")
    with open(path, "r+b") as stream:
        holder = subprocess.Popen(["sleep", "60"], stdin=stream)
    try:
        before = host.snapshot()
        (result,) = host.migrate("base.qcow")
        assert result["reason"] == "in-use" and "three.qcow2" in result["msg"]
        assert host.snapshot() == before
    finally:
        holder.kill()
        holder.wait()
    ok(host.migrate("base.qcow"))


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster_size", ["512", "65536", "2M"])
@pytest.mark.parametrize("recorded", [None, "qcow"])
def test_header_is_pointed_and_pointed_back(host: Host, compat: str, cluster_size: str, recorded: Optional[str]) -> None:
    host.v1("base.qcow", seed=1)
    path = host.foreign("three.qcow2", "base.qcow", recorded=recorded, compat=compat, cluster_size=cluster_size)
    content = path.read_bytes()
    before = host.guest("three.qcow2", "qcow2", "qcow")
    ok(host.migrate("base.qcow"))
    assert host.guest("three.qcow2", "qcow2", "qcow2") == before
    oracle.assert_clean(path)
    (record,) = Records(host.state).all()
    references = Session(host.state).references
    assert not references.obstacles(record)
    references.restore(record)
    assert path.read_bytes() == content
    assert not record.facts["repointed_headers"]


def test_name_that_does_not_fit_is_refused_before_anything_is_written(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    path = host.foreign("three.qcow2", "base.qcow", cluster_size="512")
    results = host.images / ("r" * 200)
    (results / ("s" * 200)).mkdir(parents=True)
    before = path.read_bytes()
    (result,) = host.migrate("base.qcow", dest_dir=os.fsencode(results / ("s" * 200)))
    assert result["failed"] and "does not fit" in result["msg"] and "512" in result["msg"]
    assert path.read_bytes() == before
    assert not list(Records(host.state).all())


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 40))
def test_crash_anywhere_is_finished_by_the_next_run(host: Host, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process dies at the nth line of the records, before or after it: the next run ends where an undisturbed one would have."""
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.foreign("three.qcow2", "base.qcow")
    before = [host.guest("base.qcow", "qcow"), host.guest("one.qcow", "qcow", "qcow"), host.guest("three.qcow2", "qcow2", "qcow")]
    pid = os.fork()
    if pid == 0:
        from ansible_collections.vmimage.qcow.plugins.module_utils._migration import record

        count = [0]
        append = record._append

        def dying(fd: int, line: Any) -> None:
            count[0] += 1
            if count[0] == (step + 1) // 2 and step % 2:
                os._exit(7)
            append(fd, line)
            if count[0] == (step + 1) // 2:
                os._exit(7)

        record._append = dying
        try:
            host.migrate("base.qcow", "one.qcow")
        finally:
            os._exit(0)
    _pid, status = os.waitpid(pid, 0)
    for _run in range(2):
        results = host.migrate("base.qcow", "one.qcow")
        if not any(result["failed"] for result in results):
            break
    ok(results)
    after = [host.guest("base.qcow2", "qcow2"), host.guest("one.qcow2", "qcow2", "qcow2"), host.guest("three.qcow2", "qcow2", "qcow2")]
    assert after == before
    assert sorted(path.name for path in host.images.iterdir()) == [
        "base.qcow.qcow1.orig",
        "base.qcow2",
        "one.qcow.qcow1.orig",
        "one.qcow2",
        "three.qcow2",
    ]
    assert not [record.id for record in Records(host.state).all() if record.unfinished]


def test_failure_in_the_middle_takes_back_what_was_published(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    before = host.snapshot()

    def prove(*arguments: Any) -> str:
        if len(list(Records(host.state).all())) == 2:
            raise QcowError("made to fail", reason="verification-failed")
        return real(*arguments)

    real = execute._prove
    monkeypatch.setattr(execute, "_prove", prove)
    results = host.migrate("base.qcow", "one.qcow")
    assert [result["reason"] for result in results] == ["chain", "verification-failed"]
    assert host.snapshot() == before
    monkeypatch.undo()
    ok(host.migrate("base.qcow", "one.qcow"))


@pytest.mark.parametrize(
    ("options", "cluster_size"),
    [({}, None), ({"cluster_size": 65536}, 65536), ({"extended_l2": True}, None), ({"cluster_size": 4096}, 4096)],
)
def test_sizes_of_thin_overlays(host: Host, options: dict, cluster_size: Optional[int]) -> None:
    host.v1("base.qcow", seed=1, size=64 * MIB)
    host.v1("one.qcow", "base.qcow", seed=2, size=64 * MIB)
    _base, one = ok(host.migrate("base.qcow", "one.qcow", **options))
    assert cluster_size in (None, one["after"]["cluster_size"])
    assert one["after"]["file_size"] <= (5 * MIB if cluster_size == 65536 else 2 * MIB), json.dumps(one["after"])


def test_check_mode_shows_the_chain_and_changes_nothing(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.foreign("three.qcow2", "base.qcow")
    before = host.snapshot()
    base, one = ok(host.migrate("base.qcow", "one.qcow", check_mode=True))
    assert base["repointed"] == [os.fspath(host.images / "three.qcow2")]
    assert one["backing"]["path"] == "base.qcow2" and "thin" in one["msg"]
    assert host.snapshot() == before


def test_chain_is_rolled_back_overlays_first(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    host.foreign("three.qcow2", "base.qcow")
    before = host.snapshot()
    ok(host.migrate("base.qcow", "one.qcow"))
    base = os.fsencode(host.images / "base.qcow")
    (refused,) = record_batch.roll_back_all(record_batch.Choice(host.state, paths=(base,)), discard_changes=False)
    assert refused["failed"] and "one.qcow2" in refused["msg"]
    whole = record_batch.Choice(host.state, paths=(os.fsencode(host.images),))
    shown = record_batch.roll_back_all(whole._replace(check_mode=True), discard_changes=False)
    assert [(result["changed"], result["failed"]) for result in shown] == [(True, False)] * 2
    results = record_batch.roll_back_all(whole, discard_changes=False)
    assert not [result["msg"] for result in results if result["failed"]]
    assert host.snapshot() == before


def test_overlay_whose_base_was_cleaned_up_stays(host: Host) -> None:
    host.v1("base.qcow", seed=1)
    host.v1("one.qcow", "base.qcow", seed=2)
    ok(host.migrate("base.qcow", "one.qcow"))
    base = record_batch.Choice(host.state, paths=(os.fsencode(host.images / "base.qcow"),))
    (gone,) = record_batch.clean_all(base, min_age=0)
    assert gone["changed"], gone["msg"]
    (refused,) = record_batch.roll_back_all(
        record_batch.Choice(host.state, paths=(os.fsencode(host.images / "one.qcow"),)), discard_changes=False
    )
    assert refused["failed"] and "base.qcow" in refused["msg"]
