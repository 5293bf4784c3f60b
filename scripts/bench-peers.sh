#!/bin/sh
# Makes an environment bench/.peers/NAME for every bench/peers/NAME.txt (pip requirements), or for
# the names given: what benchmarks and tests compare with never lives in .venv.
set -eu
cd "$(dirname "$0")/.."
for list in bench/peers/*.txt; do
  [ -e "$list" ] || { echo "bench-peers: no benchmark needs one (bench/peers/*.txt)"; break; }
  name="$(basename "$list" .txt)"
  case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
  peer="bench/.peers/$name"
  if [ "$peer/.ready" -nt "$list" ]; then continue; fi
  echo "==> $peer"
  "${PYTHON:-python3}" -m venv "$peer"
  "$peer/bin/python" -m pip install --disable-pip-version-check -r "$list"
  touch "$peer/.ready"
done
