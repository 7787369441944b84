# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The back end over the openssl program (1.1.1 or 3.x), for devices without the cryptography library.

Secrets go to the program through anonymous pipes: they are in no argument, no environment and no file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess

from ansible_collections.edgesec.nanomq.plugins.module_utils import _der as der
from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    WrongPassphrase,
    check_passphrase_use,
)

#: PBKDF2 rounds for a new encrypted key: the program's own default of 2048 is low, and a device opens a key rarely.
ITERATIONS = 20000

#: Seconds. An RSA key of 4096 bits on a slow device takes most of a minute.
TIME_LIMIT = 300

#: What every pipe holds without a reader, even when the system is short of pipe memory (pipe(7)).
PIPE_SIZE = 4096


def create() -> OpensslBackend:
    """Return the back end. Raises CryptoError when there is no usable program."""
    program = shutil.which("openssl") or shutil.which("openssl", path="/usr/bin:/usr/local/bin")
    if program is None:
        raise CryptoError("the openssl program is not installed")
    backend = OpensslBackend(program)
    version = backend.run("version").decode("utf-8", "replace").strip()
    found = re.match(r"OpenSSL (\d+)\.(\d+)\.(\d+)", version)
    if not found or tuple(int(number) for number in found.groups()) < (1, 1, 1):
        raise CryptoError(f"the openssl program is {version!r}; 1.1.1 or newer is needed")
    return backend


class OpensslBackend:
    """See _crypto.Backend."""

    name = "openssl"

    def __init__(self, program: str) -> None:
        self._program = program

    def generate_key(self, key_type: str, passphrase: bytes | None = None) -> bytes:
        family, _dash, parameter = key_type.partition("-")
        if family == "rsa":
            options = ["-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{int(parameter)}"]
        else:
            curve = {"p256": "P-256", "p384": "P-384"}[parameter]
            options = ["-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}"]
            options += ["-pkeyopt", "ec_param_enc:named_curve"]
        key = self.run("genpkey", *options)
        if passphrase is None:
            return key
        options = ["-topk8", "-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-iter", str(ITERATIONS)]
        return self.run("pkcs8", *options, "-passout", "fd:{passphrase}", stdin=key, passphrase=passphrase + b"\n")

    def public_key(self, private_key: bytes, passphrase: bytes | None = None) -> bytes:
        return self._open_key(private_key, passphrase, "pkey", "-pubout", "-outform", "DER")

    def sign(self, private_key: bytes, passphrase: bytes | None, data: bytes) -> bytes:
        arguments = ["dgst", "-sha256", "-sign", "/dev/fd/{key}"]
        return self._open_key(private_key, passphrase, *arguments, stdin=data, key=private_key)

    def verify(self, public_key: bytes, signature: bytes, data: bytes, digest: str = "sha256") -> bool:
        arguments = ["dgst", f"-{digest}", "-verify", "/dev/fd/{key}", "-signature", "/dev/fd/{signature}"]
        key = der.to_pem("PUBLIC KEY", public_key)
        try:
            # Its word is asked for as well as its exit status: a signature is a matter to be sure of.
            return self.run(*arguments, stdin=data, key=key, signature=signature).strip() == b"Verified OK"
        except CryptoError:
            return False

    def _open_key(self, private_key: bytes, passphrase: bytes | None, *arguments: str, **inputs: bytes) -> bytes:
        """Run a command that reads the private key, from standard input unless ``inputs`` says otherwise."""
        check_passphrase_use(private_key, passphrase)
        inputs.setdefault("stdin", private_key)
        if passphrase is not None:
            arguments += ("-passin", "fd:{passphrase}")
            inputs["passphrase"] = passphrase + b"\n"
        try:
            return self.run(*arguments, **inputs)
        except CryptoError:
            if passphrase is not None:
                problem = "it cannot be decrypted: the passphrase is wrong, or the file is damaged"
                raise WrongPassphrase(problem) from None
            raise CryptoError("it is damaged, or of a kind that is not supported") from None

    def run(self, *arguments: str, stdin: bytes = b"", **pipes: bytes) -> bytes:
        """Return what a command prints. ``{name}`` in an argument becomes the descriptor of the pipe of that name.

        Raises CryptoError with the program's first line of complaint.
        """
        with contextlib.ExitStack() as stack:
            numbers = {name: _filled_pipe(stack, data) for name, data in pipes.items()}
            command = [self._program, *(argument.format(**numbers) for argument in arguments)]
            try:
                # In a session of its own it has no terminal to ask a passphrase from.
                result = subprocess.run(
                    command,
                    input=stdin,
                    capture_output=True,
                    pass_fds=list(numbers.values()),
                    start_new_session=True,
                    timeout=TIME_LIMIT,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CryptoError(f"openssl {arguments[0]} could not be run: {error}") from None
        if result.returncode != 0:
            complaint = result.stderr.decode("utf-8", "replace").strip().splitlines()
            raise CryptoError(f"openssl {arguments[0]} failed: {complaint[0] if complaint else result.returncode}")
        return result.stdout


def _filled_pipe(stack: contextlib.ExitStack, data: bytes) -> int:
    """Return the reading end of a pipe that already holds ``data``."""
    if len(data) > PIPE_SIZE:
        raise CryptoError(f"a key or signature of more than {PIPE_SIZE} bytes is not supported")
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    try:
        os.write(writer, data)
    finally:
        os.close(writer)
    return reader
