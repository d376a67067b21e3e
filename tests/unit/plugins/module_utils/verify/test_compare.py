# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verification sees every byte, whatever is read ahead by whom; and the fingerprint is what its description says."""

import os
import pathlib
import random
import threading
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy.copier import copy_extents
from ansible_collections.vmimage.qcow.plugins.module_utils._copy.writers import Qcow2Options, Qcow2Writer
from ansible_collections.vmimage.qcow.plugins.module_utils._errors import DamagedImage, VerificationFailed
from ansible_collections.vmimage.qcow.plugins.module_utils._image.extent import COMPRESSED
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import fingerprint, verify
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader, Qcow2Reader
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.reader import RawReader
from ansible_collections.vmimage.qcow.tests.support.big_image import dense_guest, write_dense
from ansible_collections.vmimage.qcow.tests.support.fingerprint import described

MIB = 1 << 20
SIZE = 12 * MIB

pytestmark = pytest.mark.usefixtures("hands")


@pytest.fixture(name="pair", params=["ordered", "shuffled", "compressed"])
def _pair(request: Any, tmp_path: pathlib.Path) -> Any:
    kind = request.param
    write_dense(tmp_path / "old", SIZE, **({} if kind == "ordered" else {kind: True}))
    with open(tmp_path / "old", "r+b") as old, open(tmp_path / "new", "w+b") as new:
        image = Qcow1(old.fileno(), b"old")
        options = Qcow2Options(4096, compressed=True) if kind == "compressed" else None
        copy_extents(image.extents(), [image], Qcow2Writer(new.fileno(), SIZE, options))
        yield kind, old.fileno(), new.fileno()
    assert threading.active_count() == 1


def proven(old: int, new: int, copied: Optional[str] = None) -> str:
    return verify([Qcow1Reader(old, b"old")], [Qcow2Reader(new, b"new")], b"new", copied=copied)


def test_the_fingerprint_is_what_its_description_says(pair: Any) -> None:
    kind, old, new = pair
    guest = b"".join(dense_guest(SIZE, compressed=kind == "compressed"))
    assert proven(old, new) == described(guest, SIZE) == fingerprint([Qcow1Reader(old, b"old")])


@pytest.mark.parametrize("copied", [None, "made by the copy"])
@pytest.mark.parametrize("seed", range(3))
def test_one_changed_byte_is_found(pair: Any, seed: int, copied: Optional[str]) -> None:
    kind, old, new = pair
    if kind == "compressed":
        pytest.skip("a byte of a stream may be padding")
    size = os.fstat(new).st_size
    place = random.Random(seed).randrange(65536, 65536 + SIZE // 2)
    assert place < size
    (byte,) = os.pread(new, 1, place)
    assert proven(old, new, copied) == (copied or proven(old, new))
    os.pwrite(new, bytes([byte ^ 0x40]), place)
    with pytest.raises((VerificationFailed, DamagedImage)):
        proven(old, new, copied)


def test_a_stream_that_cannot_be_inflated_is_found(pair: Any) -> None:
    kind, old, new = pair
    if kind != "compressed":
        pytest.skip("has no streams")
    extents = [extent for extent in Qcow1(old, b"old").extents() if extent.kind == COMPRESSED]
    os.pwrite(old, b"\xff" * 64, extents[len(extents) // 2].offset)
    with pytest.raises(DamagedImage):
        proven(old, new)


def test_what_only_one_side_holds_must_be_zeros(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one").write_bytes(bytes(10 * MIB) + b"x" + bytes(MIB))
    with open(tmp_path / "one", "r+b") as one, open(tmp_path / "two", "w+b") as two:
        two.truncate(os.fstat(one.fileno()).st_size + 511 & ~511)
        sides = [RawReader(one.fileno(), b"one")], [RawReader(two.fileno(), b"two")]
        with pytest.raises(VerificationFailed, match="guest bytes 10485760.."):
            verify(*sides, path=b"two")
        os.pwrite(one.fileno(), b"\0", 10 * MIB)
        assert verify(*sides, path=b"two") == described(b"", 11 * MIB + 1)
        os.pwrite(two.fileno(), b"x", 9 * MIB)
        with pytest.raises(VerificationFailed, match="guest bytes 9437184.."):
            verify(*sides, path=b"two")
