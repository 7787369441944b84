# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The key pair that signs tokens, as two files on the controller."""

from __future__ import annotations

import os
import re

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der, _jwt
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import Backend, CryptoError
from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    check_vault,
    make_directories,
    read_regular,
    write_atomic,
)

#: More would cost each request much time, and gain nothing for tokens that live for minutes.
MAXIMUM_SIZE = 4096


def check_size(size: int) -> int:
    """Return a size in bits that a new key may have. Raises ValueError."""
    if not _jwt.MINIMUM_SIZE <= size <= MAXIMUM_SIZE:
        raise ValueError(f"size must be from {_jwt.MINIMUM_SIZE} to {MAXIMUM_SIZE} bits, not {size}")
    return size


def check_name(name: str) -> str:
    """Return a name that the two files can have. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name, re.ASCII):
        raise ValueError("name must be a plain file name: letters, digits, dots, dashes and underscores")
    return name


class KeyPair:
    """The two files, and what is done with them."""

    def __init__(self, directory: str, name: str, passphrase: bytes | None, backend: Backend) -> None:
        self.private_path = os.path.join(directory, f"{name}.key")
        self.public_path = os.path.join(directory, f"{name}.pub")
        self.record_path = os.path.join(directory, f"{name}.rotation.json")
        self.next_path = os.path.join(directory, f"{name}.next.key")
        self.directory = directory
        self.name = name
        self._passphrase = passphrase
        self._backend = backend

    def load(self) -> bytes | None:
        """Return the public key (DER) of the private key that is there, or None. Raises FileProblem or CryptoError."""
        if not check_vault(self.directory):
            return None
        try:
            return self.public_key_of(self.private_path)
        except FileNotFoundError:
            if os.path.lexists(self.public_path):
                raise FileProblem(
                    f"{self.private_path} is missing, and {self.public_path} is there: restore the private key from a"
                    " backup, or move the public key away"
                ) from None
            return None

    def public_key_of(self, path: str) -> bytes:
        """Return the public key (DER) of a private key's file. Raises FileNotFoundError, FileProblem, CryptoError."""
        private_key = read_regular(path, private=True)
        try:
            public_key = self._backend.public_key(private_key, self._passphrase)
            _jwt.check_key(public_key)
        except CryptoError as error:
            raise type(error)(f"{path}: {error}") from None
        return public_key

    def has_public_file(self, public_key: bytes) -> bool:
        """Say whether the public key's file is there and holds that key."""
        try:
            return read_regular(self.public_path) == _der.to_pem("PUBLIC KEY", public_key)
        except FileNotFoundError:
            return False

    def generate(self, size: int) -> tuple[bytes, bytes]:
        """Return a new private key (PEM) and its public key (DER), without writing anything."""
        private_key = self._backend.generate_key(f"rsa-{size}", self._passphrase)
        return private_key, self._backend.public_key(private_key, self._passphrase)

    def store(self, private_key: bytes, public_key: bytes) -> None:
        """Write a new pair. The private key comes first: the other can be made from it if this is cut."""
        make_directories(self.directory, mode=0o700)
        write_atomic(self.private_path, private_key, mode=0o600)
        self.store_public(public_key)

    def store_public(self, public_key: bytes) -> None:
        """Write the public key's file."""
        write_atomic(self.public_path, _der.to_pem("PUBLIC KEY", public_key), mode=0o644)

    def archived(self, key_id: str) -> tuple[str, str]:
        """The paths at which the pair of another key is kept, private and public."""
        stem = os.path.join(self.directory, f"{self.name}-{key_id}")
        return f"{stem}.key", f"{stem}.pub"

    def archive(self, public_key: bytes) -> None:
        """Keep the pair under the name of its key as well, before it is replaced."""
        private_path, public_path = self.archived(_jwt.key_id(public_key))
        write_atomic(private_path, read_regular(self.private_path, private=True), mode=0o600)
        write_atomic(public_path, _der.to_pem("PUBLIC KEY", public_key), mode=0o644)
