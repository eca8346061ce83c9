#!/usr/bin/env bash
# setup.sh: Python 3.11 and cromss into ~/venv on a node, from what is locked by sha256. Runs again without harm: Ray's
# launcher runs the setup commands of a worker twice.
#
# The project lies in the folder above (the cluster file's file_mounts put it there). UV may name an installer that is
# there already, PYTHON an interpreter.
set -euo pipefail
home="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${VENV:-$HOME/venv}"
done="$venv/.installed"
want="$(cat "$home/cluster/image/requirements.lock" "$home/pyproject.toml" | sha256sum)"

if [ ! -f "$done" ] || [ "$(cat "$done")" != "$want" ]; then
  if [ -z "${UV:-}" ]; then
    if ! python3 -c 'import ensurepip' 2> /dev/null; then
      sudo apt-get update -q
      sudo apt-get install -y -q --no-install-recommends python3-venv
    fi
    python3 -m venv "$HOME/.installer"
    "$HOME/.installer/bin/python" -m pip install --quiet --require-hashes -r "$home/cluster/node/uv.lock"
    UV="$HOME/.installer/bin/uv"
  fi
  # uv knows the sha256 of every interpreter that it fetches.
  "$UV" venv --quiet --clear --python "${PYTHON:-3.11.18}" "$venv"
  "$UV" pip install --quiet --python "$venv" --require-hashes --no-deps -r "$home/cluster/image/requirements.lock"
  "$UV" pip install --quiet --python "$venv" --no-deps --no-build-isolation --editable "$home"
  echo "$want" > "$done"
fi

# `ray exec`, `ray attach` and the launcher's own commands find ray by the login shell's PATH.
line="export PATH=\"$venv/bin:\$PATH\" RAY_AUTH_MODE=token"
touch "$HOME/.bashrc"
if ! grep -qxF "$line" "$HOME/.bashrc"; then  # the first line: the rest returns early where nobody types
  { echo "$line"; cat "$HOME/.bashrc"; } > "$HOME/.bashrc.new"
  mv "$HOME/.bashrc.new" "$HOME/.bashrc"
fi
"$venv/bin/python" -c 'import cromss, ray, torch; print("cromss on ray", ray.__version__, "torch", torch.__version__)'
