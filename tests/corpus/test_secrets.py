# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passphrases stay in their files: searched for in the arguments and environments of processes while a playbook runs, and in all it leaves."""

import base64
import os
import pathlib
import shutil
import threading
from typing import Iterator

import pytest

from ansible_collections.vmimage.qcow.tests.corpus.play import play
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build

MIB = 1 << 20
SECRETS = [b"zebra-lantern-42", b"Violin.Harbour.7", b"quiet-Marble-993", b"wrong-Saddle-551"]


class Watch(threading.Thread):
    """Looks at all processes again and again. What is too short-lived for that, qemu-img, tells of itself (see the script below)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: set[bytes] = set()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            for pid in os.listdir("/proc"):
                if pid.isdigit() and int(pid) != os.getpid():
                    self._look(pid)
            self._end.wait(0.05)

    def _look(self, pid: str) -> None:
        for name in ("cmdline", "environ"):
            try:
                with open("/proc/%s/%s" % (pid, name), "rb") as stream:
                    content = stream.read()
            except OSError:
                continue
            self.found.update(secret for secret in SECRETS if secret in content)

    def end(self) -> None:
        self._end.set()
        self.join()


@pytest.fixture(name="watch")
def _watch() -> Iterator[Watch]:
    watch = Watch()
    watch.start()
    yield watch
    watch.end()


def places_with_secrets(*roots: pathlib.Path) -> list:
    """Files in which a passphrase stands, as it is, in Base64 or in hexadecimal."""
    wanted = [form for secret in SECRETS for form in (secret, base64.b64encode(secret).rstrip(b"=")[:-1], secret.hex().encode())]
    return [path for root in roots for path in root.rglob("*") if path.is_file() and any(word in path.read_bytes() for word in wanted)]


@pytest.mark.parametrize("engine", ["auto", "qemu-img"])
def test_passphrases_are_seen_nowhere(tmp_path: pathlib.Path, watch: Watch, engine: str) -> None:
    oracle.require_v1_driver()
    images, keys = tmp_path / "images", tmp_path / "keys"
    images.mkdir()
    keys.mkdir()
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "qemu-img"
    script.write_text('#!/bin/sh\nprintf "%%s\\n" "$0" "$@" >>%s\nenv >>%s\nexec %s "$@"\n' % (told, told, shutil.which("qemu-img")))
    script.chmod(0o755)
    files = []
    for number, secret in enumerate(SECRETS):
        files.append(keys / ("key%d" % number))
        files[-1].write_bytes(secret)
    base = build(ImageSpec(size=MIB, clusters={1: Plain(b"base " * 100)}, password=SECRETS[0]))
    top = build(
        ImageSpec(size=MIB, cluster_bits=9, l2_bits=12, clusters={5: Plain(b"top")}, password=SECRETS[1], backing=Backing(b"base.qcow"))
    )
    base.write(images / "base.qcow")
    top.write(images / "top.qcow")
    build(ImageSpec(size=MIB, clusters={2: Plain(b"wrong")}, password=SECRETS[2])).write(images / "wrong.qcow")
    played = play(
        tmp_path,
        os.fsencode(images),
        "-vvvv",
        "--diff",
        environment={"PATH": "%s:%s" % (script.parent, os.environ["PATH"])},
        migrate_chains="flatten",
        migrate_engine=engine,
        migrate_passphrase_files={
            str(images / "base.qcow"): str(files[0]),
            str(images / "top.qcow"): str(files[1]),
            str(images / "wrong.qcow"): str(files[3]),
        },
        migrate_encryption="luks",
        migrate_luks_passphrase_file=str(files[2]),
    )
    watch.end()
    results = {os.path.basename(image["src"]): image for image in played.converted}
    assert not results["top.qcow"]["failed"] and not results["base.qcow"]["failed"], played.output
    assert results["wrong.qcow"]["reason"] == "passphrase"
    opened = tmp_path / "opened.raw"
    node = "driver=qcow2,file.filename=%s,encrypt.key-secret=s" % results["top.qcow"]["dest"]
    oracle.run("convert", "--object", "secret,id=s,file=%s" % files[2], "--image-opts", "-O", "raw", node, opened)
    assert opened.read_bytes() == top.guest_bytes(base.guest_bytes())
    assert "convert" in told.read_text() and "secret,id=" in told.read_text()
    assert not watch.found, "in the arguments or the environment of a process"
    for secret in SECRETS:
        assert secret.decode() not in played.output
    assert played.report is not None
    assert sorted(places_with_secrets(tmp_path)) == sorted(files)
