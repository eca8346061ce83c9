#!/usr/bin/env bash
# local.sh: a head and workers on this machine, each a raylet of its own, on loopback only, with a token: what a cluster does,
# without one.
#
#   local.sh up [WORKERS]           a head that trains nothing and WORKERS (2) workers of CPUS (1) CPUs
#   local.sh submit -- COMMAND...   run COMMAND on it as a job, and wait: local.sh submit -- python -m cromss.sweep ...
#   local.sh status | env | down    who is there; what to export for `ray ...` of your own; end what `up` started
#
# CROMSS_LOCAL is the folder of its token, logs and process ids (~/.cromss-local); PORT (20379) and the 40 after it are its
# ports, RAY and PYTHON its programs. `down` ends only what `up` started: never `ray stop`, which ends every Ray there is.
set -euo pipefail
state="${CROMSS_LOCAL:-$HOME/.cromss-local}" port="${PORT:-20379}" cpus="${CPUS:-1}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="$here/.venv/bin"
ray="${RAY:-$([ -x "$bin/ray" ] && echo "$bin/ray" || echo ray)}"
python="${PYTHON:-$([ -x "$bin/python" ] && echo "$bin/python" || echo python3)}"
dashboard=$((port + 1)) client=$((port + 2))
[ ! -x "$bin/python" ] || export PATH="$bin:$PATH"  # a job's `python` is the project's

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=30  # a stopped job has time for its checkpoint; Ray's own 3 s are too few
export RAY_raylet_start_wait_time_s="${RAY_raylet_start_wait_time_s:-180}"  # a busy machine is no failure
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0  # who joins looks on loopback, not at the machine's own address
unset RAY_AUTH_TOKEN RAY_ADDRESS

complain() { echo "local.sh: $*" >&2; exit 2; }

ours() {  # process ids of everything that carries this cluster's mark, whoever its parent is by now
  [ -f "$state/id" ] || return 0
  grep -lzsx "CROMSS_LOCAL_ID=$(cat "$state/id")" /proc/[0-9]*/environ 2> /dev/null | cut -d/ -f3 || true
}

start() {  # start NAME FLAGS...: a node that ends when the process it is started as does
  local name="$1"
  shift
  CROMSS_LOCAL_ID="$(cat "$state/id")" nohup setsid "$python" "$here/cluster/node/on_loopback.py" start --block --disable-usage-stats --node-ip-address=127.0.0.1 \
    --object-store-memory="${STORE_BYTES:-300000000}" "$@" > "$state/$name.log" 2>&1 < /dev/null &
  echo $! > "$state/$name.pid"
}

alive() {  # how many nodes there are; a driver that finds nobody would wait for minutes
  (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || { echo 0; return; }
  timeout 60 "$python" - "127.0.0.1:$port" 2> /dev/null << 'END' || echo 0
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(sum(node["Alive"] for node in ray.nodes()))
END
}

up() {
  local workers="${1:-2}" number
  case "$workers" in '' | *[!0-9]*) complain "up $workers: must be a number of workers" ;; esac
  [ -z "$(ours)" ] || complain "is up already; local.sh down ends it"
  [ "${#state}" -le 42 ] || complain "CROMSS_LOCAL=$state: too long for the sockets in it: 42 letters at most"
  mkdir -p "$state/ray"
  chmod 700 "$state"
  (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$state/token")
  "$python" -c 'import uuid; print(uuid.uuid4().hex)' > "$state/id"
  rm -f "$state"/*.pid
  start head --head --num-cpus=0 --port="$port" --temp-dir="$state/ray" --dashboard-host=127.0.0.1 \
    --dashboard-port="$dashboard" --ray-client-server-port="$client" --dashboard-agent-listen-port=$((port + 3))
  wait_for 1 head
  for number in $(seq "$workers"); do  # one at a time: two that start together on one address mistake one another
    start "worker$number" --address="127.0.0.1:$port" --num-cpus="$cpus" --dashboard-agent-listen-port=$((port + 3 + number))
    wait_for $((number + 1)) "worker$number"
  done
  echo "$workers workers of $cpus CPUs; dashboard at http://127.0.0.1:$dashboard"
}

wait_for() {  # wait_for NODES NAME
  local end=$((SECONDS + ${PATIENCE:-240}))
  until [ "$(alive)" -ge "$1" ]; do
    kill -0 "$(cat "$state/$2.pid")" 2> /dev/null || { tail -5 "$state/$2.log" >&2; down; complain "$2 did not start"; }
    [ "$SECONDS" -lt "$end" ] || { down; complain "$1 nodes are not there after ${PATIENCE:-240} s; see $state/$2.log"; }
    sleep 1
  done
}

down() {
  local signal turn
  for signal in TERM KILL; do
    for turn in 1 2 3 4 5 6 7 8; do
      [ -n "$(ours)" ] || break 2
      # Another's process may have taken an id since the last look; the mark was read a moment ago.
      [ "$turn" -gt 1 ] || ours | xargs -r kill "-$signal" 2> /dev/null || true
      sleep 0.5
    done
  done
  rm -f "$state"/*.pid "$state/id" "$state/token"
}

case "${1:-}" in
  up) up "${2:-2}" ;;
  down) down ;;
  status) [ -n "$(ours)" ] || complain "is not up"; "$ray" status --address="127.0.0.1:$port" ;;
  env) echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token RAY_ADDRESS=http://127.0.0.1:$dashboard" ;;
  submit)
    if [ "${2:-}" != -- ] || [ $# -lt 3 ]; then complain "submit -- COMMAND..."; fi
    [ -n "$(ours)" ] || complain "is not up; local.sh up"
    shift 2
    exec "$ray" job submit --address="http://127.0.0.1:$dashboard" --log-style=record --log-color=false -- "$@"
    ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
