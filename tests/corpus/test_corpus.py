# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole job on a corpus of images: ``ansible-playbook vmimage.qcow.migrate``, first with --check, then for real, then again."""

import hashlib
import json
import os
import pathlib
import warnings
from typing import Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.corpus.corpus import MTIME_NS, OWNER, Corpus, Image, facts
from ansible_collections.vmimage.qcow.tests.corpus.play import Played, path_of, play
from ansible_collections.vmimage.qcow.tests.support import genuine, oracle
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build

STAND_IN = pathlib.Path(__file__).resolve().parents[1] / "support" / "fake_qemu_img"
RETIRED = b".qcow1.orig"


@pytest.fixture(name="corpus")
def _corpus(tmp_path: pathlib.Path) -> Iterator[Corpus]:
    corpus = Corpus(tmp_path / "corpus")
    yield corpus
    corpus.unlock()


def result_name(path: bytes, suffix: bytes) -> bytes:
    """The name a migrated image takes, by the rule the README states."""
    if path.endswith(suffix):
        return path
    return path[: -len(b".qcow")] + suffix if path.endswith(b".qcow") else path + suffix


def disk_of(path: bytes, wanted: str) -> bytes:
    """The disk in a result."""
    if wanted == "raw":
        with open(path, "rb") as source:
            return source.read()
    return oracle.guest_bytes(oracle.Node(path, "qcow2"))


def assert_migrated(image: Image, wanted: str) -> None:
    dest = result_name(image.path, b"." + os.fsencode(wanted))
    if wanted == "qcow2":
        oracle.assert_clean(dest)
    disk = disk_of(dest, wanted)
    assert (len(disk), hashlib.sha256(disk).hexdigest()) == (image.size, image.sha256), dest


def assert_done(played: Played) -> None:
    assert played.returncode == 0, played.output
    assert played.lines, played.output


@pytest.mark.parametrize("wanted", ["qcow2", "raw"])
def test_corpus_is_migrated(wanted: str, corpus: Corpus, tmp_path: pathlib.Path) -> None:
    oracle.require_v1_driver()
    corpus.add_named_images()
    corpus.add_qemu_img_images()
    if not corpus.add_genuine_images():
        warnings.warn("without the genuine images, which are not in %s" % genuine.directory(), pytest.PytestWarning, stacklevel=1)
    corpus.add_lookalikes()
    lookalikes, originals, files = corpus.lookalike_facts(), {image.path: facts(image.path) for image in corpus.images}, corpus.files()

    planned = play(tmp_path, corpus.root, "--check", "--diff", migrate_format=wanted)
    assert_done(planned)
    assert corpus.files() == files
    assert corpus.lookalike_facts() == lookalikes
    assert {path: facts(path) for path in originals} == originals

    done = play(tmp_path, corpus.root, migrate_format=wanted)
    assert_done(done)
    would = {(path_of(image, "src"), path_of(image, "dest")) for image in planned.converted if image["changed"]}
    did = {(path_of(image, "src"), path_of(image, "dest")) for image in done.converted if image["changed"]}
    suffix = b"." + os.fsencode(wanted)
    assert would == did == {(image.path, result_name(image.path, suffix)) for image in corpus.images}
    assert all(image["verified"] for image in done.converted)
    for image in corpus.images:
        assert_migrated(image, wanted)
        assert facts(image.path + RETIRED) == originals[image.path]
    assert corpus.lookalike_facts() == lookalikes
    expected = (
        (files - {image.path for image in corpus.images}) | {dest for _src, dest in did} | {image.path + RETIRED for image in corpus.images}
    )
    assert corpus.files() == expected
    assert done.report is not None
    assert [row["state"] for row in done.report if row["format"] == "qcow"] == ["migrated"] * len(corpus.images)

    special = os.stat(result_name(corpus.path(b"mail.img"), suffix))
    assert special.st_mode & 0o7777 == 0o640
    assert special.st_mtime_ns == MTIME_NS
    if os.geteuid() == 0:
        assert (special.st_uid, special.st_gid) == OWNER

    again = play(tmp_path, corpus.root, migrate_format=wanted)
    assert_done(again)
    assert again.changed == 0
    assert corpus.files() == expected
    assert corpus.lookalike_facts() == lookalikes


def test_originals_that_are_kept_are_not_migrated_twice(corpus: Corpus, tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    for number in range(3):
        corpus.put(b"disk%d.qcow" % number, corpus.sample(number))
    originals = {image.path: facts(image.path) for image in corpus.images}
    assert_done(play(tmp_path, corpus.root, migrate_original="keep"))
    for image in corpus.images:
        assert_migrated(image, "qcow2")
    files = corpus.files()
    again = play(tmp_path, corpus.root, migrate_original="keep")
    assert_done(again)
    assert again.changed == 0
    assert corpus.files() == files
    assert {path: facts(path) for path in originals} == originals


@pytest.mark.parametrize("workers", [1, 2])
def test_truncated_image_is_refused_and_the_others_are_migrated(workers: int, corpus: Corpus, tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    for number in range(3):
        corpus.put(b"disk%d.qcow" % number, corpus.sample(number))
    whole = build(ImageSpec(size=1 << 20, clusters={index: Plain(b"%d " % index * 1300) for index in range(20)}))
    damaged = corpus.path(b"truncated.qcow")
    with open(damaged, "wb") as target:
        target.write(whole.data[: whole.places[17][0] + 1000])
    before = facts(damaged)

    planned = play(tmp_path, corpus.root, "--check", migrate_workers=workers)
    assert planned.returncode != 0
    done = play(tmp_path, corpus.root, migrate_workers=workers)
    assert done.returncode != 0
    for played in (planned, done):
        (refused,) = [image for image in played.converted if image["failed"]]
        assert path_of(refused, "src") == damaged
        ranges = [(found["start"], found["length"]) for found in refused["details"]["ranges"]]
        first, last = ranges[0][0], sum(ranges[-1])
        assert (first, last) == (17 * 4096 + 1000, 20 * 4096)
        assert str(first) in played.output
        assert "truncated.qcow" in played.output
    for image in corpus.images:
        assert_migrated(image, "qcow2")
    assert facts(damaged) == before
    assert not os.path.lexists(result_name(damaged, b".qcow2"))
    assert not os.path.lexists(damaged + RETIRED)
    assert done.report is not None
    assert {row["path"]: row["reason"] for row in done.report if row["state"] == "failed"} == {os.fsdecode(damaged): "damaged"}


@pytest.mark.parametrize("program", ["without the driver", "absent"])
def test_corpus_is_migrated_without_a_qemu_img_that_knows_version_1(program: str, corpus: Corpus, tmp_path: pathlib.Path) -> None:
    oracle.require_qemu_img()
    corpus.add_named_images()
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    log = tmp_path / "calls"
    # Only what the stand-in and the playbook need of the usual PATH: "absent" really has no qemu-img.
    for name in ("sh", "python3", "env", "id", "cat", "ls", "stat", "chmod", "mkdir", "rm", "sleep", "echo", "uname", "wc"):
        for folder in ("/usr/bin", "/bin"):
            if os.path.exists(os.path.join(folder, name)) and not (bin_directory / name).exists():
                (bin_directory / name).symlink_to(os.path.join(folder, name))
    if program == "without the driver":
        (bin_directory / "qemu-img").symlink_to(STAND_IN)
    done = play(tmp_path, corpus.root, environment={"PATH": str(bin_directory), "FAKE_QEMU_IMG_LOG": str(log)})
    assert_done(done)
    assert len(done.converted) == len(corpus.images)
    for image in corpus.images:
        assert_migrated(image, "qcow2")
    calls = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    assert bool(calls) == (program == "without the driver")
    assert not [call for call in calls if call[0] == "convert"]
