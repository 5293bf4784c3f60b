"""An S3-compatible store, by boto3: `s3://BUCKET/PREFIX[#FILE]`, PREFIX a folder or one object.

Endpoint (AWS_ENDPOINT_URL_S3), region and credentials are boto3's own, from the environment or
~/.aws of the storage server; without any, requests are anonymous.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from llmos.lib.errors import LLMOSError
from llmos.servers.storage import names
from llmos.servers.storage.disk import CHUNK
from llmos.servers.storage.names import short
from llmos.servers.storage.places import transfer
from llmos.servers.storage.places.base import (
    Fetched,
    Meter,
    Place,
    bad_source,
    denied,
    mismatch,
    missing,
    need,
    unreachable,
)
from llmos.servers.storage.places.choose import choose

_SOURCE = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9._-]{1,62})/(?P<prefix>[^#]{1,900})(#(?P<file>[^#]{1,255}))?"
)
_WHERE = "the environment (AWS_ACCESS_KEY_ID, ...) or ~/.aws"
_MAX_LISTED = 10_000


class S3(Place):
    """Fetches the objects of one model below a prefix."""

    def fetch(self, source: str, folder: Path, meter: Meter) -> Fetched:
        """See Place."""
        asked = _SOURCE.fullmatch(source)
        if asked is None:
            raise bad_source(source, "s3://BUCKET/PREFIX or s3://BUCKET/PREFIX#FILE")
        client = _client()
        bucket, prefix = asked["bucket"], asked["prefix"].strip("/")
        meter.say(f"listing {short(source)[1:-1]}")
        with translated(source):
            objects = _listed(client, bucket, prefix, source)
        file = asked["file"] or ""
        if [key for key, _, _ in objects.values()] == [prefix]:  # one object is asked for
            (file,) = wanted = list(objects)
        else:
            wanted = choose(source, objects, file)
        meter.expect(sum(objects[name][1] for name in wanted))
        for name in wanted:
            meter.say(f"downloading {short(name)[1:-1]}")
            key, size, tag = objects[name]
            get = _Ranges(client, bucket, key, tag, source)
            transfer.fetch(folder / "files" / Path(name), size, tag, get, meter, source=source)
        return Fetched(
            folder / "files" / file if file else folder / "files",
            names.from_path(Path(prefix) / (asked["file"] or ""), folder=not file),
            source,
        )


class _Ranges:
    """Opens one object at an offset, as long as it is the same object."""

    def __init__(self, client: Any, bucket: str, key: str, tag: str, source: str) -> None:
        self._client, self._source = client, source
        self._request = {"Bucket": bucket, "Key": key, "IfMatch": tag}

    def __call__(self, offset: int) -> Generator[bytes, None, None]:
        with translated(self._source):
            answer = self._client.get_object(**self._request, Range=f"bytes={offset}-")
            with contextlib.closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK)


def _client() -> Any:
    boto3, config = need("boto3"), need("botocore.config")
    session = boto3.session.Session()
    options: dict[str, Any] = {"retries": {"max_attempts": 3, "mode": "standard"}}
    options |= {"connect_timeout": 10, "read_timeout": 60}
    if session.get_credentials() is None:
        options["signature_version"] = need("botocore").UNSIGNED
    region = session.region_name or "us-east-1"
    return session.client("s3", region_name=region, config=config.Config(**options))


def _listed(client: Any, bucket: str, prefix: str, source: str) -> dict[str, tuple[str, int, str]]:
    """Return {name below the prefix: (key, size, ETag)}; of one object, {prefix: ...}."""
    found: dict[str, tuple[str, int, str]] = {}
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for entry in page.get("Contents", []):
            key = entry["Key"]
            if key == prefix:
                name = Path(key).name
                return {name: (key, entry["Size"], entry["ETag"])}
            if key.startswith(f"{prefix}/") and not key.endswith("/"):
                name = key.removeprefix(f"{prefix}/")
                if ".." not in name.split("/"):
                    found[name] = (key, entry["Size"], entry["ETag"])
        if len(found) > _MAX_LISTED:
            raise missing(source, f"over {_MAX_LISTED:,} objects; give the model's own prefix")
    if not found:
        raise missing(source, "no object there")
    return found


@contextlib.contextmanager
def translated(source: str) -> Iterator[None]:
    """Turn boto3's errors into ours."""
    errors = need("botocore.exceptions")
    transport = need("urllib3.exceptions")
    try:
        yield
    except LLMOSError:
        raise
    except errors.ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        if code in ("NoSuchBucket", "NoSuchKey", "404"):
            raise missing(source, "no such bucket or object") from exc
        if code in ("PreconditionFailed", "412"):
            raise mismatch(source, "an object", "changed while it was read") from exc
        if code in ("InvalidRange", "416"):
            raise mismatch(source, "an object", "is shorter than announced") from exc
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403) or code in ("AccessDenied", "InvalidAccessKeyId"):
            raise denied(source, _WHERE) from exc
        raise unreachable(source, f"the store answers {code or status}") from exc
    except (errors.NoCredentialsError, errors.PartialCredentialsError) as exc:
        raise denied(source, _WHERE) from exc
    except errors.ParamValidationError as exc:
        raise bad_source(source, "s3://BUCKET/PREFIX") from exc
    except (errors.BotoCoreError, transport.HTTPError, OSError) as exc:
        raise unreachable(source, f"no connection ({type(exc).__name__})") from exc
