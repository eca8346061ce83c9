#!/usr/bin/env bash
# watch.sh CLOUD: the watcher of the cloud's notices beside `ray start`: a notice becomes `ray drain-node`, so that
# training checkpoints and leaves in time. A second call replaces the first's watcher.
set -euo pipefail
home="$HOME/.cromss" venv="${VENV:-$HOME/venv}"
mkdir -p "$home"
if [ -f "$home/watch.pid" ]; then
  old="$(cat "$home/watch.pid")"
  # Only what this script started: a process id may be another's by now.
  grep -qsa cromss.spot_watch "/proc/$old/cmdline" && kill "$old"
fi
export RAY_AUTH_MODE=token
nohup setsid "$venv/bin/python" -m cromss.spot_watch --cloud "${1:-auto}" > "$home/watch.log" 2>&1 < /dev/null &
echo $! > "$home/watch.pid"
