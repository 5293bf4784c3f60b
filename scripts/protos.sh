#!/bin/sh
# Generates src/llmos/api from proto/. Output directory may be given (default: src).
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
target="${1:-src}"
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
out="$(mktemp -d)" # generated aside and then moved, so that running processes miss no module
trap 'rm -rf "$out"' EXIT
mkdir -p "$out/llmos/api" "$target/llmos"
gen() {
  "$python" -m grpc_tools.protoc "$@" --python_out="$out" --grpc_python_out="$out" \
    --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out"
}
gen -Iproto $(cd proto && find llmos -name '*.proto' | sort)
if ls proto/inference/*.proto >/dev/null 2>&1; then
  # The Open Inference Protocol's package is `inference`; its Python modules live with ours.
  gen -Iproto -Illmos/api/inference=proto/inference \
    $(cd proto/inference && ls *.proto | sed 's#^#llmos/api/inference/#')
fi
find "$out/llmos/api" -type d -exec touch {}/__init__.py \;
touch "$out/llmos/api/py.typed"
rm -rf "$target/llmos/api.old"
if [ -d "$target/llmos/api" ]; then mv "$target/llmos/api" "$target/llmos/api.old"; fi
mv "$out/llmos/api" "$target/llmos/api"
rm -rf "$target/llmos/api.old"
