# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QCOW v1's legacy encryption: the key, decryption in bulk, and whether the result can be what the guest wrote.

AES-128-CBC of each 512-byte sector; the key is the passphrase's first 16 bytes, filled up with zero bytes; the initialisation vector is the
sector's number, little-endian. Nothing in the image tells a right passphrase from a wrong one (QEMU: ``block/qcow.c``, ``crypto/``).
"""

# pylint: disable=unused-import # what pylint itself makes of a NamedTuple; ruff looks at the real ones

import os
from array import array
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from .._errors import PassphraseError, ToolMissing
from .detect import looks_random, signatures
from .extent import ENCRYPTED, SECTOR, Extent
from .qcow1 import Qcow1

KEY_SIZE = 16
MAX_PASSPHRASE = 64 << 10
"""Bytes; more is not a passphrase but the wrong file."""

Decrypt = Callable[[int, bytes], bytes]
"""``(first guest byte, whole sectors) -> plain sectors``"""

_BLOCK = 16
_PIECE = 128 << 10  # bytes decrypted at a time; the columns of more do not stay in a processor's cache
_MOST_EXTENTS = 4096
_MOST_SECTORS = 2048
_ENOUGH = 8
_PER_EXTENT = 12

_Cbc = Callable[[bytes, bytes], bytearray]


def key_of(passphrase: bytes) -> bytes:
    """The key a passphrase stands for: its bytes as they are, a newline at the end included."""
    return passphrase[:KEY_SIZE].ljust(KEY_SIZE, b"\0")


def read_passphrase(path: bytes) -> bytes:
    """The passphrase in a file: every byte of it counts, as with QEMU's ``secret`` objects.

    :raises PassphraseError: where the file cannot be read or is larger than any passphrase.
    """
    try:
        with open(path, "rb") as stream:
            passphrase = stream.read(MAX_PASSPHRASE + 1)
    except OSError as error:
        raise PassphraseError(
            "the passphrase file cannot be read: {0}".format(error.strerror), path, hint="Nothing was changed."
        ) from error
    if len(passphrase) > MAX_PASSPHRASE:
        raise PassphraseError("the passphrase file is longer than {0} bytes".format(MAX_PASSPHRASE), path, hint="Is it the right file?")
    return passphrase


def decryptor(passphrase: bytes, path: Optional[bytes] = None) -> Decrypt:
    """Decrypts sectors with a passphrase.

    :param path: the image, for messages.
    :raises ToolMissing: where neither Python's ``cryptography`` nor OpenSSL's library is there.
    """
    cbc = _with_cryptography(key_of(passphrase)) or _with_openssl(key_of(passphrase))
    if cbc is None:
        raise ToolMissing(
            "the image is encrypted, and there is nothing on this host to decrypt it with",
            path,
            hint="Install Python's cryptography (python3-cryptography) on the host. Nothing was changed.",
        )
    return _Sectors(cbc).decrypt


class _Sectors:
    """Many sectors at once: CBC over all of them, then the first block of each put right.

    Chained over the border of a sector, a sector's first block comes out mixed with the block before it instead of with its initialisation
    vector: both are known. That is one thirty-second of the bytes, mixed in columns.
    """

    def __init__(self, cbc: _Cbc) -> None:
        self._cbc = cbc

    def decrypt(self, start: int, data: bytes) -> bytes:
        """See :data:`Decrypt`."""
        if len(data) <= _PIECE:
            return bytes(self._piece(start, data))
        view = memoryview(data)
        return b"".join([self._piece(start + first, bytes(view[first : first + _PIECE])) for first in range(0, len(data), _PIECE)])

    def _piece(self, start: int, data: bytes) -> bytearray:
        count = len(data) // SECTOR
        plain = self._cbc(bytes(_BLOCK), data)
        vectors = array("Q", range(start // SECTOR, start // SECTOR + count))
        if array("H", [1]).tobytes() != b"\1\0":
            vectors.byteswap()
        numbers = vectors.tobytes()
        for column in range(_BLOCK):
            wrong = int.from_bytes(plain[column::SECTOR], "little")
            before = int.from_bytes(b"\0" + data[SECTOR - _BLOCK + column :: SECTOR][: count - 1], "little")
            if column < 8:
                before ^= int.from_bytes(numbers[column::8], "little")
            plain[column::SECTOR] = (wrong ^ before).to_bytes(count, "little")
        return plain


def _with_cryptography(key: bytes) -> Optional[_Cbc]:
    try:
        from cryptography.hazmat.backends import default_backend
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        backend = default_backend()  # asked for by releases before 3.1
        algorithm = algorithms.AES(key)
    except Exception:
        return None  # absent, broken, or for another OpenSSL: all the same to us

    def cbc(vector: bytes, data: bytes) -> bytearray:
        context = Cipher(algorithm, modes.CBC(vector), backend).decryptor()
        plain = bytearray(len(data) + _BLOCK)
        context.update_into(data, plain)  # into memory that is there: ten times as fast as update()
        context.finalize()
        del plain[len(data) :]
        return plain

    return cbc


def _with_openssl(key: bytes) -> Optional[_Cbc]:
    """OpenSSL's library as Python's own ``hashlib`` has loaded it, through ``ctypes``."""
    try:
        import _hashlib
        import ctypes

        library = ctypes.CDLL(_hashlib.__file__)
        new, free, cipher = library.EVP_CIPHER_CTX_new, library.EVP_CIPHER_CTX_free, library.EVP_aes_128_cbc
        init, padding, update = library.EVP_DecryptInit_ex, library.EVP_CIPHER_CTX_set_padding, library.EVP_DecryptUpdate
    except (ImportError, OSError, AttributeError):
        return None
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    new.argtypes, new.restype = [], pointer
    free.argtypes, free.restype = [pointer], None
    cipher.argtypes, cipher.restype = [], pointer
    init.argtypes, init.restype = [pointer, pointer, pointer, text, text], number
    padding.argtypes, padding.restype = [pointer, number], number
    update.argtypes, update.restype = [pointer, text, ctypes.POINTER(number), text, number], number

    def cbc(vector: bytes, data: bytes) -> bytearray:
        plain = ctypes.create_string_buffer(len(data) + _BLOCK)
        written = number(0)
        context = new()
        if not context:
            raise MemoryError("OpenSSL has no memory for a cipher")
        try:
            good = init(context, cipher(), None, key, vector) == 1 and padding(context, 0) == 1
            good = good and update(context, plain, ctypes.byref(written), data, len(data)) == 1
        finally:
            free(context)
        if not good or written.value != len(data):
            raise ToolMissing("OpenSSL on this host does not decrypt AES-128-CBC", hint="Install python3-cryptography.")
        return bytearray(memoryview(plain)[: len(data)])

    return cbc


class Plausibility(NamedTuple):
    """Whether decrypted sectors can be what a guest wrote."""

    ok: bool
    sectors: int  # looked at
    recognised: List[str]  # names of partition tables and filesystems found
    reason: str  # in words


def plausible(image: Qcow1, decrypt: Decrypt) -> Plausibility:
    """Judge a key by what it makes of the image's own encrypted sectors (never by what lies in a base).

    A wrong key turns every sector into noise, without exception. One sector that cannot be noise proves the right one; signatures of two bytes
    prove nothing, and sectors whose stored bytes are no noise themselves (holes in the file) are not asked.
    """
    sectors = evidence = 0
    for start, stored in _samples(image):
        if looks_random(stored) is not True:
            continue
        sectors += 1
        if looks_random(decrypt(start, stored)) is False:
            evidence += 1
            if evidence >= _ENOUGH:
                break
    if evidence:
        names = _recognised(image, decrypt)
        what = "found: " + ", ".join(names) if names else "no known filesystem at its start, but sectors that are not noise"
        return Plausibility(True, sectors, names, what)
    if not sectors:
        if next(_encrypted(image), None) is None:
            return Plausibility(True, 0, [], "nothing in the image is encrypted")
        return Plausibility(False, 0, [], "no sector that could be judged")
    return Plausibility(False, sectors, [], "all of the {0} sectors looked at are noise".format(sectors))


def _encrypted(image: Qcow1) -> Iterator[Extent]:
    return (extent for extent in image.extents() if extent.kind == ENCRYPTED)


def _samples(image: Qcow1) -> Iterator[Tuple[int, bytes]]:
    """``(guest byte, stored sector)``: the beginnings of extents, where filesystems keep their headers, and places spread over them."""
    given = 0
    for number, extent in enumerate(_encrypted(image)):
        sectors = extent.length // SECTOR
        places = sorted(set(range(min(4, sectors))) | {sectors * part // 8 for part in range(8)} if sectors else ())
        for place in places[:_PER_EXTENT]:
            yield extent.start + place * SECTOR, os.pread(image.fd, SECTOR, extent.offset + place * SECTOR)
            given += 1
        if given >= _MOST_SECTORS or number >= _MOST_EXTENTS:
            return


def _recognised(image: Qcow1, decrypt: Decrypt) -> List[str]:
    """Names of what the decrypted disk begins with."""
    reach = 160 << 10
    first = bytearray(reach)
    for extent in _encrypted(image):
        if extent.start >= reach:
            break
        length = min(extent.length, reach - extent.start) // SECTOR * SECTOR
        if length:
            first[extent.start : extent.start + length] = decrypt(extent.start, os.pread(image.fd, length, extent.offset))[:length]
    content = bytes(first)
    return sorted({mark.name for mark in signatures(lambda length, offset: content[offset : offset + length])})


def unlock(image: Qcow1, passphrase: bytes, *, force: bool = False) -> Plausibility:
    """Give an encrypted image its passphrase.

    :param force: take it even where the result looks like noise.
    :raises PassphraseError: where the passphrase is wrong by all appearances.
    :raises ToolMissing: where there is nothing to decrypt with.
    """
    decrypt = decryptor(passphrase, image.path)
    verdict = plausible(image, decrypt)
    if not verdict.ok and not force:
        hint = "Nothing was changed. If the disk really holds nothing but noise, set force_passphrase=true."
        trimmed = passphrase.rstrip(b"\r\n")
        if trimmed != passphrase and plausible(image, decryptor(trimmed, image.path)).ok:
            hint = (
                "The passphrase is right without the newline at its end, which counts as part of it. Remove it from the file "
                "(printf %s instead of echo). Nothing was changed."
            )
        elif trimmed == passphrase and plausible(image, decryptor(passphrase + b"\n", image.path)).ok:
            hint = "The passphrase is right with a newline at its end: the image was created with one. Add it to the file. Nothing was changed."
        raise PassphraseError("the passphrase appears to be wrong: " + verdict.reason, image.path, hint=hint, sectors=verdict.sectors)
    image.unlock(decrypt)
    return verdict
