"""Cipher: what is kept of a stream, encrypted so that only its visitor's key opens it; the server never writes that.

AES-256-GCM (NIST SP 800-38D) by a random key of the stream's own. It lies in the stream's folder, encrypted in turn by
what HKDF-SHA256 (RFC 5869) makes of the visitor's key; twice, so that a flipped bit does not cost the stream. Whatever
is encrypted is bound to its place: at another one it does not open. The `cryptography` library is optional
(requirements-encryption.txt).

Not encrypted: the folder's name (a hash of the visitor's key), how many records of which kind there are, the second of
a picture of the film, sizes, when a file was written.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from pipeline.keeping.taking import place_of
from pipeline.stream import UserError

KEY = "key"  # the file of the stream's own key
MAGIC = b"vamba-1\n"
SALT, NONCE, TAG, BYTES = 16, 12, 16, 32
COPY = len(MAGIC) + SALT + NONCE + BYTES + TAG
PIECE = 1 << 20  # bytes of a file that are encrypted at once
LOCKED = (
    "This stream is encrypted with the key of the page that it was watched on, so it cannot be opened here; open it on "
    "that page, or take it along from there."
)
WITHOUT = (
    "This stream is encrypted, and the cryptography library is not installed here, so it cannot be opened; install "
    "requirements-encryption.txt."
)


def can_encrypt() -> bool:
    """Whether the library that encrypts kept streams is installed here."""
    return find_spec("cryptography") is not None


def is_encrypted(folder: Path) -> bool:
    """Whether what lies in a kept stream's folder is encrypted."""
    return (place_of(folder) / KEY).is_file()


class Cipher:
    """Any thread may encrypt and decrypt."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._key, self._aes = key, AESGCM(key)

    @classmethod
    def create(cls, folder: Path, secret: str) -> Cipher:
        """A new one, for a folder without a stream. secret: the visitor's key. Raises OSError."""
        cipher = cls(os.urandom(BYTES))
        cipher.lock(folder, secret)
        return cipher

    @classmethod
    def of(cls, folder: Path, secret: str) -> Cipher | None:
        """A folder's, None where nothing is encrypted. Raises UserError where this is not its visitor's key."""
        try:
            copies = (place_of(folder) / KEY).read_bytes()
        except FileNotFoundError:
            return None
        if not can_encrypt():
            raise UserError(WITHOUT)
        for copy in (copies[:COPY], copies[COPY:]):
            try:
                return cls(_unlocked(copy, secret))
            except ValueError:
                continue
        raise UserError(LOCKED)

    def lock(self, folder: Path, secret: str) -> None:
        """Lets somebody open what this encrypts who has that key. Raises OSError."""
        salt, magic = os.urandom(SALT), MAGIC
        locked = magic + salt + Cipher(_derived(secret, salt)).encrypt(self._key, KEY)
        new = folder / f"{KEY}.new"
        with new.open("wb") as file:
            file.write(2 * locked)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / KEY)

    def encrypt(self, data: bytes, place: str) -> bytes:
        """place: what they are; they open as nothing else."""
        nonce = os.urandom(NONCE)
        return nonce + self._aes.encrypt(nonce, data, place.encode())

    def decrypt(self, data: bytes, place: str) -> bytes:
        """Raises ValueError for what was not encrypted by this, or changed, or belongs to another place."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aes.decrypt(data[:NONCE], data[NONCE:], place.encode())
        except InvalidTag:
            raise ValueError(f"{place} does not open") from None

    def encrypt_file(self, path: Path, there: Path) -> None:
        """Piece by piece, each bound to its number and to being the last or not. Raises OSError."""
        with path.open("rb") as source, there.open("wb") as target:
            number, piece = 0, source.read(PIECE)
            while piece or not number:
                following = source.read(PIECE)
                target.write(self.encrypt(piece, _piece(there.name, number, not following)))
                number, piece = number + 1, following

    def decrypt_file(self, path: Path, there: Path) -> None:
        """Raises OSError, and ValueError for what is not whole; `there` is then whatever came before."""
        with path.open("rb") as source, there.open("wb") as target:
            number, piece = 0, _read(source)
            while piece or not number:
                following = _read(source)
                target.write(self.decrypt(piece, _piece(path.name, number, not following)))
                number, piece = number + 1, following


def _unlocked(copy: bytes, secret: str) -> bytes:
    """Raises ValueError."""
    start = len(MAGIC) + SALT
    if len(copy) != COPY or not copy.startswith(MAGIC):
        raise ValueError("no key")
    return Cipher(_derived(secret, copy[len(MAGIC) : start])).decrypt(copy[start:], KEY)


def _derived(secret: str, salt: bytes) -> bytes:
    """The visitor's key is random already (128 bits), so nothing slow is needed against guessing."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), BYTES, salt, b"vamba-live kept stream").derive(secret.encode())


def _read(source: IO[bytes]) -> bytes:
    return source.read(NONCE + PIECE + TAG)


def _piece(name: str, number: int, last: bool) -> str:
    return f"{name} {number} {'last' if last else 'more'}"
