# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The genuine version 1 images: written by FreeBSD's mkimg, kept beside the repository, not in it.

Where: the directory named by the environment variable VMIMAGE_QCOW_GENUINE_IMAGES, else ``../shared/images`` beside the repository.
It holds ``EXPECTED.txt`` (image, bytes of the disk, SHA-256 of the disk) and the images, each with ``.gz`` appended.
"""

import gzip
import os
import pathlib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMES = ["apm", "bsd", "ebr", "gpt", "mbr", "vtoc8"]
NAMES = ["img-%s-%s-%s.qcow" % (shape, sector, scheme) for shape in ("1x1", "63x255") for sector in (4096, 512) for scheme in SCHEMES]


class Genuine(NamedTuple):
    """An unpacked genuine image: its path, and size in bytes and SHA-256 of the disk it holds."""

    path: pathlib.Path
    size: int
    sha256: str


def directory() -> pathlib.Path:
    """Where the genuine images are, or should be."""
    named = os.environ.get("VMIMAGE_QCOW_GENUINE_IMAGES")
    return pathlib.Path(named) if named else ROOT.parent / "shared" / "images"


def expected() -> dict[str, tuple[str, int, str]]:
    """File name -> (path below the directory, bytes of the disk, SHA-256 of the disk). Empty where the images are not at hand."""
    listing = directory() / "EXPECTED.txt"
    if not listing.is_file():
        return {}
    rows = [line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {os.path.basename(name): (name, int(size), sha256) for name, size, sha256 in rows}


def unpack(name: str, target: pathlib.Path) -> Genuine:
    """Unpack one image into ``target``. Skips the test where the images are not at hand (also in CI: they are not in the repository)."""
    known = expected()
    if name not in known:
        pytest.skip("the genuine images are not in %s (set VMIMAGE_QCOW_GENUINE_IMAGES)" % directory())
    stored, size, sha256 = known[name]
    with gzip.open(directory() / (stored + ".gz")) as source:
        (target / name).write_bytes(source.read())
    return Genuine(target / name, size, sha256)
