#!/bin/sh
# Installs the Debian packages that some tests and benchmarks need: only what is missing. Says what
# that is where it cannot.
set -eu
missing=""
need() { # a command, and the packages that bring it
  command -v "$1" >/dev/null || missing="$missing $2"
}
need node nodejs
need npm npm
need curl curl
need gcc "gcc libc6-dev"
need spin spin
need nginx nginx-light
need chromium "chromium fonts-noto-cjk"
need docker-registry docker-registry
need h2load nghttp2-client
need mod2imp "libsword-utils sword-text-web sword-text-sparv"
need promtool prometheus
[ -d /usr/share/datasets/fashion-mnist ] || missing="$missing dataset-fashion-mnist"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null ||
  missing="$missing postgresql"
command -v spin >/dev/null || missing="$missing spin"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
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
