"""How a place in an OCI registry is written, and the credentials for it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmos.servers.storage.places.base import bad_source

FORM = "oci:HOST/REPOSITORY:TAG or oci:HOST/REPOSITORY@sha256:DIGEST"
WHERE = "~/.docker/config.json (`docker login`), $DOCKER_CONFIG or $REGISTRY_AUTH_FILE"
_REFERENCE = re.compile(
    r"oci:(//)?(?P<host>[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9a-f:]+\](:\d{1,5})?)/"
    r"(?P<repo>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_LOCAL = re.compile(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?")
_HELPER_S = 20.0


@dataclass(frozen=True)
class Reference:
    """A manifest in a registry. target: its tag or `sha256:` digest."""

    host: str
    repo: str
    tag: str
    digest: str

    @property
    def target(self) -> str:
        """Return what names the manifest."""
        return self.digest or self.tag

    @property
    def url(self) -> str:
        """Return the base URL of the repository.

        Plain HTTP on this host and for the hosts in LLMOS_OCI_PLAIN_HTTP (comma-separated).
        """
        plain = os.environ.get("LLMOS_OCI_PLAIN_HTTP", "").split(",")
        local = _LOCAL.fullmatch(self.host) or self.host in plain
        return f"{'http' if local else 'https'}://{self.host}/v2/{self.repo}"

    def at(self, digest: str) -> str:
        """Return the reference of one manifest, for lineage."""
        return f"oci:{self.host}/{self.repo}@{digest}"


def parse(source: str) -> Reference:
    """Return what `oci:...` means; without tag and digest, `latest`. Raises BAD_SOURCE."""
    found = _REFERENCE.fullmatch(source)
    if found is None or len(found["repo"]) > 255:
        raise bad_source(source, FORM)
    digest = found["digest"] or ""
    return Reference(found["host"], found["repo"], found["tag"] or "latest", digest)


def credentials(host: str) -> tuple[str, str] | None:
    """Return (user, password) for a registry, as docker and podman keep them; None = anonymous."""
    for path in _files():
        try:
            config = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        helper = (config.get("credHelpers") or {}).get(host) or config.get("credsStore")
        entry = (config.get("auths") or {}).get(host) or {}
        if entry.get("auth"):
            try:
                user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                continue
            return user, password
        if helper and (found := _helper(str(helper), host)):
            return found
    return None


def _files() -> list[Path]:
    env = os.environ
    paths = [env.get("REGISTRY_AUTH_FILE", "")]
    if env.get("DOCKER_CONFIG"):
        paths.append(f"{env['DOCKER_CONFIG']}/config.json")
    else:
        paths.append(f"{Path.home()}/.docker/config.json")
    if env.get("XDG_RUNTIME_DIR"):
        paths.append(f"{env['XDG_RUNTIME_DIR']}/containers/auth.json")
    return [Path(path) for path in paths if path]


def _helper(name: str, host: str) -> tuple[str, str] | None:
    """Ask docker's credential helper, as docker does."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=host.encode(),
            capture_output=True,
            timeout=_HELPER_S,
            check=True,
        )
        said = json.loads(done.stdout)
        return str(said["Username"]), str(said["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
