#!/bin/sh
# Fails when src/llmos/api is not what scripts/protos.sh makes of proto/.
set -eu
cd "$(dirname "$0")/.."
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
sh scripts/protos.sh "$fresh"
diff -r -q -x __pycache__ "$fresh/llmos/api" src/llmos/api || {
  echo "check-protos: src/llmos/api is not fresh; run make protos and commit" >&2
  exit 1
}
