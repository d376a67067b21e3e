# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edge cases: legacy AES. A wrong password is never noticed by qemu-img; it has to be by us."""

import dataclasses
import struct

import pytest

from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, build

MIB = 1 << 20
CLUSTER = 4096


def boot_cluster() -> bytes:
    """A cluster with a partition table, so that the right password can be told from a wrong one."""
    partition = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\0\0\0", 2048, 100_000)
    return (b"\xfa\x33\xc0\x8e\xd0".ljust(446, b"\x90") + partition + bytes(48) + b"\x55\xaa").ljust(CLUSTER, b"\0")


def spec(password: bytes, **more) -> ImageSpec:
    values = {
        "size": 4 * MIB,
        "password": password,
        "clusters": {0: Plain(boot_cluster()), 9: Plain(b"nine" * 1000), 600: Plain(b"six" * 999)},
    }
    values.update(more)
    return ImageSpec(**values)


@pytest.mark.parametrize(
    "password", [b"secret", b"0123456789abcdef", b"0123456789abcdefXYZ", b"line\n", "pässwörd".encode(), b"", b"x" * 500]
)
def test_right_password(workbench, password: bytes) -> None:
    image = build(spec(password))
    path = workbench.image(image)
    assert workbench.inspect(path)["encrypted"]
    workbench.converts_to(path, image.guest_bytes(), passwords={path: workbench.secret(password)})


@pytest.mark.parametrize(
    ("password", "given"), [(b"secret", b"Secret"), (b"secret", b"secret\n"), (b"zebra17\n", b"zebra17"), (b"secret", b"")]
)
def test_wrong_password_is_refused_unless_forced(workbench, password: bytes, given: bytes) -> None:
    image = build(spec(password))
    path = workbench.image(image)
    passwords = {path: workbench.secret(given)}
    result = workbench.is_refused(path, "passphrase", passwords=passwords)
    for secret in (password, given):
        assert secret.strip() == b"" or secret.decode() not in str(result)
    forced = workbench.convert(path, format="raw", passwords=passwords, force_passphrase=True)
    assert workbench.read(forced["dest"]) != image.guest_bytes()


def test_without_a_password_is_refused(workbench) -> None:
    workbench.is_refused(workbench.image(build(spec(b"secret"))), "passphrase", "encrypted")


def test_encrypted_image_as_qemu_img_writes_it(workbench) -> None:
    oracle.require_v1_driver()
    disk = boot_cluster() + b"some text " * 50_000
    disk = disk.ljust(2 * MIB, b"\0")
    source, secret, path = workbench.file(disk, "source"), workbench.secret(b"from qemu-img"), workbench.directory / "disk.qcow"
    options = "encrypt.format=aes,encrypt.key-secret=s0"
    oracle.run("convert", "--object", "secret,id=s0,file=%s" % secret, "-f", "raw", "-O", "qcow", "-o", options, source, path)
    workbench.converts_to(path, disk, passwords={path: secret})


def test_compressed_cluster_in_an_encrypted_image_is_inflated_and_not_decrypted(workbench) -> None:
    clusters = {0: Plain(boot_cluster()), 3: Packed(b"packed " * 500), 4: Plain(b"four")}
    image = build(spec(b"secret", clusters=clusters))
    path = workbench.image(image)
    workbench.converts_to(path, image.guest_bytes(), passwords={path: workbench.secret(b"secret")})


def test_encrypted_overlay_over_a_base_with_another_password(workbench) -> None:
    base = build(spec(b"base"))
    top = build(spec(b"top", cluster_bits=9, l2_bits=12, clusters={40: Plain(b"x" * 512)}, backing=Backing(b"base.qcow")))
    below, path = workbench.image(base, "base.qcow"), workbench.image(top)
    disk = top.guest_bytes(base.guest_bytes())
    passwords = {path: workbench.secret(b"top"), below: workbench.secret(b"base")}
    workbench.converts_to(path, disk, passwords=passwords, chains="flatten", force_passphrase=True)


def test_encrypted_overlay_over_a_plain_base(workbench) -> None:
    base = build(dataclasses.replace(spec(b""), password=None))
    top = build(spec(b"top", clusters={0: Plain(boot_cluster()), 40: Plain(b"forty" * 99)}, backing=Backing(b"base.qcow")))
    workbench.image(base, "base.qcow")
    path = workbench.image(top)
    workbench.converts_to(path, top.guest_bytes(base.guest_bytes()), passwords={path: workbench.secret(b"top")}, chains="flatten")


def test_fill_of_old_writers_is_converted_as_stored(workbench) -> None:
    first = boot_cluster()[:512] + b"\xaa" * (CLUSTER - 512)
    image = build(spec(b"secret", clusters={0: Plain(first), 7: Plain(b"seven".ljust(512, b"\0") + b"\xaa" * 3584)}))
    path = workbench.image(image)
    workbench.converts_to(path, image.guest_bytes(), passwords={path: workbench.secret(b"secret")})
