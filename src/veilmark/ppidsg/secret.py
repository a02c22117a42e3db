"""Secrets of the cipher: born from the system's randomness, kept in files of mode 0600, expanded by HKDF and ChaCha20.

Nothing here comes from a framework's random generator: the same secret gives the same subkeys on every machine and
in every release (``tests/ppidsg/cipher_vectors.json``).
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher as StreamCipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from veilmark.run.errors import DataError

SECRET_BYTES = 32
_SALT = b"veilmark ppidsg cipher 1"
_HEAD = "veilmark-secret-1 "


class SecretError(DataError):
    """A file of a secret that is missing, readable by others, or not one."""


class Secret:
    """256 bits that every subkey of the cipher is expanded from. It never shows itself in text, logs or pickles.

    Args:
        value: 32 bytes.

    Raises:
        ValueError: If there are more or fewer.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(value)}")
        self._value = bytes(value)

    @classmethod
    def generate(cls) -> Secret:
        """A new secret from the operating system's generator."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def load(cls, path: str | Path) -> Secret:
        """Reads a file that :meth:`save` wrote.

        Raises:
            SecretError: If it is missing, not such a file, or open to other users.
        """
        path = Path(path)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if os.name == "posix" and mode & 0o077:
                raise SecretError(f"{path}: other users may read or write it (mode {mode:04o}); run: chmod 600 {path}")
            text = path.read_text(encoding="ascii")
        except FileNotFoundError:
            raise SecretError(f"{path}: no such file; make one with: veilmark keygen {path}") from None
        except UnicodeDecodeError:
            raise SecretError(f"{path}: not a secret of Veilmark; make one with: veilmark keygen NEWFILE") from None
        except OSError as error:
            raise SecretError(f"{path}: cannot be read ({error.strerror}); check path, owner and mode") from None
        try:
            if not text.startswith(_HEAD):
                raise ValueError
            return cls(bytes.fromhex(text.removeprefix(_HEAD)))
        except ValueError:
            # The text is not quoted: it may be most of a secret.
            raise SecretError(f"{path}: not a secret of Veilmark; make one with: veilmark keygen NEWFILE") from None

    def save(self, path: str | Path) -> None:
        """Writes a new file with mode 0600; never over an older one, whose pictures nobody could read again.

        Raises:
            SecretError: If the file exists or cannot be written.
        """
        path = Path(path)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise SecretError(
                f"{path} exists, and what was scrambled with it needs it; choose another name, or delete it yourself"
            ) from None
        except OSError as error:
            raise SecretError(f"{path}: cannot be written ({error.strerror}); check the folder") from None
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{_HEAD}{self._value.hex()}\n")
            file.flush()
            os.fsync(file.fileno())

    def derive(self, purpose: bytes) -> Secret:
        """Another secret, which says nothing about this one or about those of other purposes (HKDF, RFC 5869)."""
        return Secret(self._expand(b"derive|" + purpose, SECRET_BYTES))

    def stream(self, purpose: bytes) -> KeyStream:
        """Endless key bytes for one purpose."""
        return KeyStream(self._expand(b"stream|" + purpose, SECRET_BYTES))

    def check(self) -> str:
        """Eight hexadecimal digits that tell secrets apart, so that a wrong one is noticed. They open nothing."""
        return self._expand(b"check", 4).hex()

    def _expand(self, info: bytes, length: int) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=length, salt=_SALT, info=info).derive(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((type(self), self.check()))

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled: it must not leave its process in a message; pass its file's path")


class KeyStream:
    """Bytes of ChaCha20 (RFC 8439) under one key, and exactly uniform draws from them by rejection sampling.

    Args:
        key: 32 bytes, used for one stream only: the nonce is zero.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = StreamCipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next bytes."""
        return np.frombuffer(self._cipher.update(bytes(count)), dtype=np.uint8)

    def below(self, bound: int, count: int) -> NDArray[np.uint8]:
        """Uniform whole numbers below ``bound`` (1 to 256), a byte each; bytes that would favour some are refused.

        Returns:
            ``(count,)`` uint8.
        """
        limit = 256 - 256 % bound
        parts: list[NDArray[np.uint8]] = []
        missing = count
        while missing > 0:
            drawn = self.take(missing).astype(np.uint16)
            kept = (drawn[drawn < limit] % bound).astype(np.uint8)
            parts.append(kept)
            missing -= len(kept)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A uniform permutation: the order of ``count`` 64-bit words, refused as a whole where two are equal."""
        while True:
            words = self.take(8 * count).view("<u8")
            order = np.argsort(words, kind="stable")
            if (np.diff(words[order]) > 0).all():
                return order.astype(np.int64)
