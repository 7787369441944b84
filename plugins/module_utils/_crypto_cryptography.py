# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The back end over the cryptography library (3.1 or newer)."""

from __future__ import annotations

import functools

from ansible_collections.edgesec.nanomq.plugins.module_utils._crypto import (
    CryptoError,
    WrongPassphrase,
    check_passphrase_use,
)

try:
    import cryptography
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    _VERSION = tuple(int(part) for part in cryptography.__version__.split(".")[:2])
except Exception as error:  # pylint: disable=broad-exception-caught
    # A half-installed library fails in many ways, and then the openssl program does the work.
    IMPORT_PROBLEM = f"the cryptography library cannot be imported ({type(error).__name__}: {error})"
else:
    IMPORT_PROBLEM = "" if _VERSION >= (3, 1) else f"the cryptography library {cryptography.__version__} is too old"


def create() -> CryptographyBackend:
    """Return the back end. Raises CryptoError when the library is not usable."""
    if IMPORT_PROBLEM:
        raise CryptoError(IMPORT_PROBLEM)
    return CryptographyBackend()


class CryptographyBackend:
    """See _crypto.Backend."""

    name = "cryptography"

    def generate_key(self, key_type: str, passphrase: bytes | None = None) -> bytes:
        family, _dash, parameter = key_type.partition("-")
        if family == "rsa":
            key = rsa.generate_private_key(public_exponent=65537, key_size=int(parameter))
        else:
            key = ec.generate_private_key({"p256": ec.SECP256R1, "p384": ec.SECP384R1}[parameter]())
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    def public_key(self, private_key: bytes, passphrase: bytes | None = None) -> bytes:
        return (
            load_private_key(private_key, passphrase)
            .public_key()
            .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def sign(self, private_key: bytes, passphrase: bytes | None, data: bytes) -> bytes:
        key = load_private_key(private_key, passphrase)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        raise CryptoError("it is neither an RSA nor an EC key")

    def verify(self, public_key: bytes, signature: bytes, data: bytes, digest: str = "sha256") -> bool:
        algorithm = {"sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512}[digest]()
        try:
            key = serialization.load_der_public_key(public_key)
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), algorithm)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(algorithm))
            else:
                return False
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True


def _load_options() -> dict[str, bool]:
    """What the library is told: not to test whether the primes of an RSA key are prime, a tenth of a second.

    `_check_parts` finds damage without. Older versions cannot leave the test out.
    """
    return {"unsafe_skip_rsa_key_validation": True} if _VERSION >= (39, 0) else {}


def _check_parts(key: rsa.RSAPrivateKey) -> None:
    """Raise CryptoError unless the parts of an RSA key belong together (RFC 8017, 3.2)."""
    parts = key.private_numbers()
    p, q, e = parts.p, parts.q, parts.public_numbers.e
    if not (
        p * q == parts.public_numbers.n
        and e * parts.d % (p - 1) == e * parts.d % (q - 1) == 1
        and e * parts.dmp1 % (p - 1) == 1
        and e * parts.dmq1 % (q - 1) == 1
        and q * parts.iqmp % p == 1
    ):
        raise CryptoError("it is damaged: its parts do not belong together")


# Opening a key costs more than a signature, and a token takes the same key twice.
@functools.lru_cache(maxsize=1)
def load_private_key(private_key: bytes, passphrase: bytes | None):
    """Return the library's key object of a PEM private key. Raises CryptoError or WrongPassphrase."""
    check_passphrase_use(private_key, passphrase)
    try:
        key = serialization.load_pem_private_key(private_key, passphrase, **_load_options())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own text is left out: it says no more, and differs from version to version.
        if passphrase is not None:
            raise WrongPassphrase("it cannot be decrypted: the passphrase is wrong, or the file is damaged") from None
        raise CryptoError("it is damaged, or of a kind that is not supported") from None
    if isinstance(key, rsa.RSAPrivateKey):
        _check_parts(key)
    return key
