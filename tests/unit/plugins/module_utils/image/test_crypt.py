# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Legacy encryption: decryption in bulk is right, and a wrong passphrase is seen every time."""

import os
import random
import struct
import subprocess
import sys

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._copy import copier, writers
from ansible_collections.vmimage.qcow.plugins.module_utils._errors import PassphraseError, ToolMissing
from ansible_collections.vmimage.qcow.plugins.module_utils._image import crypt
from ansible_collections.vmimage.qcow.plugins.module_utils._image.detect import looks_random, signatures
from ansible_collections.vmimage.qcow.plugins.module_utils._image.qcow1 import Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.compare import guest_blocks
from ansible_collections.vmimage.qcow.plugins.module_utils._verify.qcow_readers import Qcow1Reader
from ansible_collections.vmimage.qcow.tests.support import genuine
from ansible_collections.vmimage.qcow.tests.support.aes import encrypt_sectors
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

CLUSTER = 4096
NOISE = random.Random(5).randbytes(CLUSTER)
WAYS = {"cryptography": crypt._with_cryptography, "openssl": crypt._with_openssl}


@pytest.fixture
def opened(tmp_path):
    descriptors = []

    def opener(spec):
        path = tmp_path / ("image%d.qcow" % len(descriptors))
        build(spec).write(path)
        descriptors.append(os.open(path, os.O_RDONLY))
        return Qcow1(descriptors[-1], os.fsencode(path))

    yield opener
    for fd in descriptors:
        os.close(fd)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "openssl":
        monkeypatch.setattr(crypt, "_with_cryptography", lambda key: None)
    else:
        monkeypatch.setattr(crypt, "_with_openssl", lambda key: None)
    require(WAYS[request.param](bytes(16)), "needs " + request.param)
    return request.param


def disk(**marks):
    """Clusters of a disk: ``at_N=bytes`` lies at byte N, everything else in those clusters is noise."""
    clusters = {}
    for name, mark in marks.items():
        at = int(name[3:])
        content = bytearray(clusters.get(at // CLUSTER, Plain(NOISE)).data)
        content[at % CLUSTER : at % CLUSTER + len(mark)] = mark
        clusters[at // CLUSTER] = Plain(bytes(content))
    return clusters


# ---- decryption ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sectors", [1, 2, 255, 256, 257, 1024])
@pytest.mark.parametrize("start", [0, 512, 7 << 30, (1 << 63) - (1 << 20)])
def test_decryption_is_the_inverse_of_encryption(way, sectors, start):
    plain = random.Random(sectors).randbytes(512 * sectors)
    assert crypt.decryptor(b"geheim")(start, encrypt_sectors(b"geheim", start, plain)) == plain


def test_nothing_is_nothing(way):
    assert crypt.decryptor(b"x")(0, b"") == b""


@pytest.mark.parametrize(
    ("passphrase", "key"),
    [
        (b"", bytes(16)),
        (b"a", b"a" + bytes(15)),
        (b"line\n", b"line\n" + bytes(11)),
        (b"0123456789abcdef", b"0123456789abcdef"),
        (b"0123456789abcdefXYZ", b"0123456789abcdef"),
    ],
)
def test_key(passphrase, key):
    assert crypt.key_of(passphrase) == key


def test_right_passphrase_by_both_paths(way, opened, tmp_path):
    spec = ImageSpec(
        size=1 << 20, clusters={**disk(at_510=b"\x55\xaa", at_0=bytes(440)), 9: Plain(NOISE), 17: Plain(b"z" * CLUSTER)}, password=b"pw"
    )
    image = opened(spec)
    assert crypt.unlock(image, b"pw").ok
    with open(tmp_path / "out", "w+b") as out:
        copier.copy_extents(image.extents(), [image], writers.RawWriter(out.fileno(), 1 << 20))
        assert os.pread(out.fileno(), 1 << 20, 0) == build(spec).guest_bytes()
    plain = bytearray(1 << 20)
    for index, block in guest_blocks([Qcow1Reader(image.fd, image.path, crypt.decryptor(b"pw"))]):
        plain[index << 16 : (index + 1) << 16] = block
    assert bytes(plain) == build(spec).guest_bytes()


def test_what_qemu_encrypts_we_decrypt(way, tmp_path):
    qemu_img = require_tool("qemu-img")
    guest = (b"boot sector".ljust(512, b"\0") + NOISE[:512] + b"text " * 100).ljust(1 << 20, b"\0")
    (tmp_path / "in.raw").write_bytes(guest)
    (tmp_path / "pw").write_bytes(b"geheimnis mit mehr als 16 Bytes\n")
    path = tmp_path / "e.qcow"
    command = [
        "convert",
        "--object",
        "secret,id=s0,file=%s" % (tmp_path / "pw"),
        "-f",
        "raw",
        "-O",
        "qcow",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s0",
    ]
    subprocess.run([qemu_img, *command, tmp_path / "in.raw", path], check=True)
    with open(path, "rb") as stream, open(tmp_path / "out", "w+b") as out:
        image = Qcow1(stream.fileno(), os.fsencode(path))
        assert crypt.unlock(image, crypt.read_passphrase(os.fsencode(tmp_path / "pw"))).ok
        copier.copy_extents(image.extents(), [image], writers.RawWriter(out.fileno(), 1 << 20))
        assert os.pread(out.fileno(), 1 << 20, 0) == guest


def test_nothing_to_decrypt_with(monkeypatch, opened):
    monkeypatch.setattr(crypt, "_with_cryptography", lambda key: None)
    monkeypatch.setattr(crypt, "_with_openssl", lambda key: None)
    with pytest.raises(ToolMissing, match="python3-cryptography"):
        crypt.unlock(opened(ImageSpec(size=1 << 20, clusters={0: Plain(b"x")}, password=b"x")), b"x")


# ---- plausibility ----------------------------------------------------------------------------------------------------------------

SUPERBLOCK = struct.pack("<IIIIIII", 65536, 262144, 13107, 249156, 65525, 0, 2)
DISKS = {
    "mbr": (disk(at_0=bytes.fromhex("eb63908ed0bc00b0b80000") + bytes(400), at_510=b"\x55\xaa"), ["mbr"]),
    "gpt": (disk(at_0=bytes(446), at_510=b"\x55\xaa", at_512=b"EFI PART" + bytes(400)), ["gpt", "mbr"]),
    "ext": (disk(at_0=bytes(1024), at_1024=SUPERBLOCK.ljust(56, b"\0") + b"\x53\xef" + bytes(900)), ["ext"]),
    "xfs": (disk(at_0=b"XFSB" + bytes(300)), ["xfs"]),
    "btrfs": (disk(at_65536=bytes(64) + b"_BHRfS_M" + bytes(300)), ["btrfs"]),
    "ntfs": (disk(at_0=b"\xebR\x90NTFS    " + bytes(60), at_510=b"\x55\xaa"), ["mbr", "ntfs"]),
    "fat": (disk(at_0=b"\xeb<\x90mkfs.fat" + bytes(43) + b"FAT16   " + bytes(30), at_510=b"\x55\xaa"), ["fat", "mbr"]),
    "lvm": (disk(at_512=b"LABELONE" + bytes(16) + b"LVM2 001" + bytes(400)), ["lvm"]),
    "luks": (disk(at_0=b"LUKS\xba\xbe\x00\x01aes" + bytes(29) + b"xts-plain64" + bytes(200)), ["luks"]),
    "swap": (disk(at_0=bytes(1024), at_4086=b"SWAPSPACE2"), ["swap"]),
    "iso": (disk(at_32768=b"\x01CD001\x01" + bytes(300)), ["iso9660"]),
    "text somewhere": ({77: Plain(b"nothing but words in the middle of a disk, " * 90)}, []),
    "code somewhere": ({5: Plain(NOISE), 77: Plain(NOISE[:2048] + bytes(60) + NOISE[:1988])}, []),
    "filled with 0xAA": ({3: Plain(NOISE[:512] + b"\xaa" * 3584)}, []),
    "zeros": ({3: Plain(bytes(CLUSTER))}, []),
}


@pytest.mark.parametrize("name", DISKS)
def test_the_right_passphrase_is_plausible(opened, name):
    clusters, recognised = DISKS[name]
    verdict = crypt.unlock(opened(ImageSpec(size=1 << 20, clusters=clusters, password=b"right")), b"right")
    assert (verdict.ok, verdict.recognised) == (True, recognised)


@pytest.mark.parametrize("name", DISKS)
def test_a_wrong_passphrase_is_seen(opened, name):
    image = opened(ImageSpec(size=1 << 20, clusters=DISKS[name][0], password=b"right"))
    for wrong in (b"", b"Right", b"right ", b"righ", b"a much longer one than the right"):
        with pytest.raises(PassphraseError) as caught:
            crypt.unlock(image, wrong)
        assert wrong == b"" or wrong.decode() not in str(caught.value).split(": ", 1)[1]


def test_a_wrong_passphrase_is_seen_every_time(opened):
    """500 keys over 100 sectors each."""
    image = opened(ImageSpec(size=1 << 20, clusters={number: Plain(b"text" * 1024) for number in range(13)}, password=b"right"))
    for number in range(500):
        assert not crypt.plausible(image, crypt.decryptor(b"wrong %d" % number)).ok


def test_a_guest_of_pure_noise_is_refused_unless_forced(opened):
    image = opened(ImageSpec(size=1 << 20, clusters={number: Plain(NOISE) for number in range(9)}, password=b"right"))
    with pytest.raises(PassphraseError, match="all of the .* sectors looked at are noise"):
        crypt.unlock(image, b"right")
    assert not crypt.unlock(image, b"right", force=True).ok
    assert image.decrypt(0, os.pread(image.fd, 512, next(image.extents()).offset)) == NOISE[:512]


def test_holes_in_the_file_prove_nothing(opened):
    """Stored zeros decrypt to one block again and again, under any key."""
    image = opened(ImageSpec(size=1 << 20, clusters={1: Plain(b"x", stored=False), 2: Plain(NOISE)}, password=b"right"))
    assert not crypt.plausible(image, crypt.decryptor(b"wrong")).ok


def test_an_empty_image_needs_no_proof(opened):
    assert crypt.unlock(opened(ImageSpec(size=1 << 20, password=b"right")), b"wrong").ok
    only_streams = ImageSpec(size=1 << 20, clusters={0: Packed(b"text" * 500)}, password=b"right")
    assert crypt.unlock(opened(only_streams), b"wrong").ok


def test_a_plain_base_does_not_vouch_for_an_overlay(opened):
    overlay = ImageSpec(
        size=1 << 20, cluster_bits=9, l2_bits=12, clusters={9: Plain(b"log " * 128)}, backing=Backing(b"base"), password=b"right"
    )
    with pytest.raises(PassphraseError):
        crypt.unlock(opened(overlay), b"wrong")
    assert crypt.unlock(opened(overlay), b"right").ok


@pytest.mark.parametrize(
    ("made_with", "given", "word"),
    [
        (b"pw", b"pw\n", "is right without the newline"),
        (b"pw", b"pw\r\n", "without the newline"),
        (b"pw\n", b"pw", "is right with a newline"),
    ],
)
def test_the_newline_at_the_end_is_explained(opened, made_with, given, word):
    image = opened(ImageSpec(size=1 << 20, clusters={0: Plain(b"text" * 500)}, password=made_with))
    with pytest.raises(PassphraseError, match=word):
        crypt.unlock(image, given)


def test_passphrase_files_are_read_to_the_byte(tmp_path):
    path = tmp_path / "pw"
    path.write_bytes(b"\xff two lines\n\r\n")
    assert crypt.read_passphrase(os.fsencode(path)) == b"\xff two lines\n\r\n"
    path.write_bytes(bytes(crypt.MAX_PASSPHRASE + 1))
    with pytest.raises(PassphraseError):
        crypt.read_passphrase(os.fsencode(path))
    with pytest.raises(PassphraseError, match="No such file"):
        crypt.read_passphrase(os.fsencode(tmp_path / "missing"))


# ---- signatures and noise --------------------------------------------------------------------------------------------------------


def test_noise_is_never_taken_for_content():
    source = random.Random(6)
    assert all(looks_random(source.randbytes(512)) for _number in range(4000))


def test_what_is_no_sector_is_not_judged():
    assert looks_random(b"x" * 511) is None


def test_signatures_say_where():
    content = bytes(510) + b"\x55\xaa" + b"EFI PART"
    marks = signatures(lambda length, offset: content[offset : offset + length])
    assert [(mark.name, mark.offset, mark.strong) for mark in marks] == [("mbr", 510, False), ("gpt", 512, True)]


def test_the_library_path_needs_no_search():
    """``ctypes.util.find_library`` starts programs; we do not."""
    program = "import sys; from ansible_collections.vmimage.qcow.plugins.module_utils._image import crypt; crypt._with_openssl(bytes(16)); "
    program += "print('ctypes.util' in sys.modules, 'subprocess' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(genuine.ROOT / "build")},
    )
    assert done.stdout.split() == ["False", "False"]
