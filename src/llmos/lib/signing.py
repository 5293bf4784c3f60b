"""Signatures of models in the format of OpenSSF model signing, by keys, without network.

A signature is a Sigstore bundle over the names and sha256 of all files, so it is made and checked
from a list of digests: the private key stays with its owner, and nobody copies weights to sign.
`model_signing verify key` checks the same bundle against a folder. Needs llmos[signing].
"""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from llmos.lib.errors import FailedPrecondition, InvalidArgument

MAX_BUNDLE = 4 << 20
_WRONG_KEY = "it was not made with this key"


class _Digests:
    """Stands where model-signing has its hashing of a folder: the digests are known already."""

    def __init__(self, name: str, files: Mapping[str, str]) -> None:
        self._name, self._files = name, files

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        manifest = _need("model_signing.manifest")
        form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
        return manifest.Manifest(
            self._name,
            [
                manifest.FileManifestItem(
                    path=PurePosixPath(name),
                    digest=manifest.hashing.Digest("sha256", bytes.fromhex(sha256)),
                )
                for name, sha256 in sorted(self._files.items())
            ],
            manifest.SerializationType.from_args(form),
        )

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """Do nothing: there are no files but those listed."""


def sign(name: str, files: Mapping[str, str], key: Path, password: str = "") -> bytes:
    """Return a bundle for {file name: sha256}. key: elliptic curve private key, PEM.

    Raises InvalidArgument BAD_KEY, FailedPrecondition MISSING_EXTRA.
    """
    signing = _need("model_signing.signing")
    try:
        key.read_bytes()
        config = signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() or None
        )
    except OSError as exc:
        raise _bad_key(f"cannot read {key} ({exc.strerror})") from exc
    except (ValueError, TypeError, AttributeError) as exc:
        raise _bad_key(f"{key} is no such private key, or its password is wrong") from exc
    with tempfile.TemporaryDirectory(prefix="llmos-sign-") as folder:
        path = Path(folder) / "model.sig"
        config.set_hashing_config(_Digests(name, files)).sign(folder, path)
        return path.read_bytes()


def verify(bundle: bytes, public_key: bytes, files: Mapping[str, str]) -> None:
    """Return when the bundle is of exactly these {file name: sha256}, by this key (PEM).

    Raises InvalidArgument BAD_KEY, BAD_SIGNATURE (no bundle, or not by this key), and
    FailedPrecondition SIGNATURE_MISMATCH (of other files), MISSING_EXTRA.
    """
    verifying = _need("model_signing.verifying")
    key_sha256(public_key)
    signed = _signed(bundle)
    with tempfile.TemporaryDirectory(prefix="llmos-verify-") as folder:
        key, path = Path(folder) / "key.pem", Path(folder) / "model.sig"
        key.write_bytes(public_key)
        path.write_bytes(bundle)
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        invalid = _need("cryptography.exceptions").InvalidSignature
        try:
            # With what it says itself first, to tell a wrong key from wrong files.
            config.set_hashing_config(_Digests("", signed)).verify(folder, path)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, invalid) as exc:
            raise _bad_signature(_WRONG_KEY) from exc
    if signed != dict(files):
        wrong = sorted({n for n, _ in signed.items() ^ files.items()})
        raise FailedPrecondition(
            "SIGNATURE_MISMATCH",
            f"The signature is of other files: {', '.join(n[:80] for n in wrong[:3])} differ.",
        )


def key_sha256(public_key: bytes) -> str:
    """Return the sha256 (hex) of a public key's DER form. Raises InvalidArgument BAD_KEY."""
    serialization = _need("cryptography.hazmat.primitives.serialization")
    ec = _need("cryptography.hazmat.primitives.asymmetric.ec")
    try:
        key = serialization.load_pem_public_key(public_key)
    except (ValueError, TypeError, _need("cryptography.exceptions").UnsupportedAlgorithm) as exc:
        raise _bad_key("it is no public key in PEM form") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in (
        "secp256r1",
        "secp384r1",
        "secp521r1",
    ):
        raise _bad_key("it is no key of the curves P-256, P-384 or P-521")
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def public_half(key: Path, password: str = "") -> bytes:
    """Return the public key (PEM) of a private key file. Raises InvalidArgument BAD_KEY."""
    serialization = _need("cryptography.hazmat.primitives.serialization")
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password.encode() or None)
    except OSError as exc:
        raise _bad_key(f"cannot read {key} ({exc.strerror})") from exc
    except (ValueError, TypeError) as exc:
        raise _bad_key(f"{key} is no private key, or its password is wrong") from exc
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))


def _signed(bundle: bytes) -> dict[str, str]:
    """Return {file name: sha256} that a bundle speaks of. Raises BAD_SIGNATURE."""
    import base64

    if len(bundle) > MAX_BUNDLE:
        raise _bad_signature(f"it has over {MAX_BUNDLE:,} bytes")
    try:
        payload = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
        predicate = payload["predicate"]
        form = predicate["serialization"]
        if form["method"] != "files" or form["hash_type"] != "sha256":
            raise _bad_signature("it is not over whole files by sha256; sign it that way")
        found = {str(r["name"]): str(r["digest"]) for r in predicate["resources"]}
        if not found or any(len(bytes.fromhex(digest)) != 32 for digest in found.values()):
            raise ValueError("digests")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _bad_signature("it is no bundle of model-signing") from exc
    return found


def _bad_signature(why: str) -> InvalidArgument:
    return InvalidArgument("BAD_SIGNATURE", f"This is no signature of the model: {why}.")


def _bad_key(why: str) -> InvalidArgument:
    return InvalidArgument(
        "BAD_KEY",
        f"Not a key to sign models with: {why}; make one by `openssl ecparam -name prime256v1 "
        "-genkey -noout -out KEY` and `openssl ec -in KEY -pubout -out KEY.pub`.",
    )


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"The Python package {exc.name or module} is not installed; run: "
            "pip install 'llmos[signing]'",
        ) from exc
