#!/bin/sh
# Installs the Debian packages that some tests need; says what is missing where it cannot.
set -eu
missing=""
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
if [ -z "$missing" ]; then
  echo "system-deps: everything is there"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $missing
else
  echo "system-deps: please install:$missing (on Debian, as root: apt-get install$missing)" >&2
  exit 1
fi
