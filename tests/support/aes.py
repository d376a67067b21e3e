# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypting guest sectors the way QCOW version 1 does, for the image builder.

QEMU, block/qcow.c and crypto/block-qcow.c: AES-128-CBC for each 512-byte sector; the key is the first 16 bytes of the password, padded
with zero bytes; the initialisation vector is the guest sector number as 64-bit little-endian followed by eight zero bytes.
``cryptography`` is used when it is there; without it a pure Python AES (FIPS 197) does the same, about 0.1 MB/s.
"""

import struct
from typing import Callable

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ImportError:
    Cipher = None

SECTOR = 512
BLOCK = 16
Encrypt = Callable[[bytes, bytes], bytes]


def key_of(password: bytes) -> bytes:
    """The 16-byte key of a password given as the bytes of the secret (a trailing newline counts)."""
    return password[:BLOCK].ljust(BLOCK, b"\0")


def encrypt_sectors(password: bytes, offset: int, data: bytes, *, pure: bool = False) -> bytes:
    """Encrypt guest bytes that begin at guest ``offset`` (a multiple of 512); ``data`` is a whole number of sectors."""
    if offset % SECTOR or len(data) % SECTOR:
        raise ValueError("encryption works on whole sectors, not on %d bytes at %d" % (len(data), offset))
    key = key_of(password)
    encrypt = _pure_encrypt(key) if pure or Cipher is None else _library_encrypt(key)
    first = offset // SECTOR
    return b"".join(
        encrypt(struct.pack("<QQ", first + number, 0), data[number * SECTOR : (number + 1) * SECTOR])
        for number in range(len(data) // SECTOR)
    )


def _library_encrypt(key: bytes) -> Encrypt:
    algorithm = algorithms.AES(key)

    def encrypt(vector: bytes, sector: bytes) -> bytes:
        cipher = Cipher(algorithm, modes.CBC(vector)).encryptor()
        return cipher.update(sector) + cipher.finalize()

    return encrypt


def _pure_encrypt(key: bytes) -> Encrypt:
    schedule = _expand(key)

    def encrypt(vector: bytes, sector: bytes) -> bytes:
        result = bytearray()
        for start in range(0, len(sector), BLOCK):
            mixed = bytes(left ^ right for left, right in zip(sector[start : start + BLOCK], vector))
            vector = _encrypt_block(schedule, mixed)
            result += vector
        return bytes(result)

    return encrypt


def _times_two(value: int) -> int:
    return ((value << 1) ^ 0x1B) & 0xFF if value & 0x80 else value << 1


def _make_sbox() -> bytes:
    # Walks the field by the generator 3 and by its inverse at the same time, so each pair is (x, 1/x).
    box = bytearray(256)
    forward = backward = 1
    while True:
        forward ^= _times_two(forward)
        backward ^= backward << 1
        backward ^= backward << 2
        backward ^= backward << 4
        backward &= 0xFF
        if backward & 0x80:
            backward ^= 0x09
        value = backward
        for turn in range(1, 5):
            value ^= ((backward << turn) | (backward >> (8 - turn))) & 0xFF
        box[forward] = value ^ 0x63
        if forward == 1:
            break
    box[0] = 0x63
    return bytes(box)


_SBOX = _make_sbox()
_DOUBLE = bytes(_times_two(value) for value in range(256))
_ROWS = [0, 5, 10, 15, 4, 9, 14, 3, 8, 13, 2, 7, 12, 1, 6, 11]


def _expand(key: bytes) -> list[bytes]:
    words = [key[index : index + 4] for index in range(0, BLOCK, 4)]
    constant = 1
    for index in range(4, 44):
        word = words[-1]
        if index % 4 == 0:
            word = bytes(_SBOX[value] for value in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = _DOUBLE[constant]
        words.append(bytes(left ^ right for left, right in zip(words[-4], word)))
    return [b"".join(words[index : index + 4]) for index in range(0, 44, 4)]


def _encrypt_block(schedule: list[bytes], block: bytes) -> bytes:
    state = bytes(left ^ right for left, right in zip(block, schedule[0]))
    for number, round_key in enumerate(schedule[1:], 1):
        state = bytes(_SBOX[state[index]] for index in _ROWS)
        if number < 10:
            state = _mix_columns(state)
        state = bytes(left ^ right for left, right in zip(state, round_key))
    return state


def _mix_columns(state: bytes) -> bytes:
    mixed = bytearray()
    for start in range(0, BLOCK, 4):
        a, b, c, d = state[start : start + 4]
        every = a ^ b ^ c ^ d
        mixed += bytes((a ^ every ^ _DOUBLE[a ^ b], b ^ every ^ _DOUBLE[b ^ c], c ^ every ^ _DOUBLE[c ^ d], d ^ every ^ _DOUBLE[d ^ a]))
    return bytes(mixed)
