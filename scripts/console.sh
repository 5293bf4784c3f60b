#!/bin/sh
# Builds the web console into servers/gateway/console/dist. With --if-possible, a machine without
# Node.js or a network goes on without it: the gateway then says how to get it.
set -u
cd "$(dirname "$0")/../servers/gateway/console"
give_up() {
  echo "console: $1" >&2
  if [ "${2:-}" = --if-possible ]; then exit 0; fi
  exit 1
}
command -v npm >/dev/null || give_up \
  "not built: it needs Node.js 20.19 or newer with npm (on Debian: make system-deps)" "${1:-}"
echo "==> Building the web console"
npm ci --silent --no-audit --no-fund || give_up "not built: npm ci failed (see above)" "${1:-}"
npm run --silent build -- --logLevel warn || give_up "not built (see above)" "${1:-}"
