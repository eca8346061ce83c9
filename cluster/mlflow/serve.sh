#!/usr/bin/env bash
# serve.sh: MLflow for a team: runs in Postgres, artifacts in a bucket, names and passwords asked for.
#
# Each of these comes from the environment, or from the file that NAME_FILE names; a missing one stops it by name:
#   DATABASE_URL            postgresql+psycopg2://USER:...@HOST/DATABASE
#   ARTIFACTS               s3://BUCKET/mlflow or gs://BUCKET/mlflow
#   FLASK_SECRET            signs the web forms: openssl rand -hex 32
#   ADMIN_PASSWORD          of the user `admin`, 12 letters or more; read at the first start only
#   ALLOWED_HOSTS           the names it may be called by: mlflow.internal:5000
# LISTEN is the one address it listens on (127.0.0.1), PORT its port (5000), STATE a private folder ($HOME/.mlflow-server).
set -euo pipefail

given() {  # given NAME: its value, from the environment or from NAME_FILE
  local file="${1}_FILE" value="${!1:-}"
  if [ -z "$value" ] && [ -n "${!file:-}" ]; then
    [ -r "${!file}" ] || { echo "serve.sh: $file=${!file}: cannot be read" >&2; return 1; }
    value="$(cat "${!file}")"
  fi
  [ -n "$value" ] || { echo "serve.sh: $1 is missing: set it, or $file to a file that holds it" >&2; return 1; }
  printf '%s' "$value"
}

database="$(given DATABASE_URL)"  # a line each: of several in one, bash asks the last alone whether it failed
artifacts="$(given ARTIFACTS)"
flask="$(given FLASK_SECRET)"
password="$(given ADMIN_PASSWORD)"
hosts="$(given ALLOWED_HOSTS)"
[ "${#password}" -ge 12 ] || { echo "serve.sh: ADMIN_PASSWORD is too short: 12 letters or more" >&2; exit 1; }
[ "${#flask}" -ge 32 ] || { echo "serve.sh: FLASK_SECRET is too short: openssl rand -hex 32" >&2; exit 1; }
case "$database" in
  postgresql*) ;;
  *) echo "serve.sh: DATABASE_URL must be a postgresql+psycopg2:// address" >&2; exit 1 ;;
esac
listen="${LISTEN:-127.0.0.1}" port="${PORT:-5000}" state="${STATE:-$HOME/.mlflow-server}"

# Secrets travel by environment and by private file, never by a command line, which every user of the machine can read.
umask 077
mkdir -p "$state"
cat > "$state/auth.ini" << END
[mlflow]
default_permission = READ
database_uri = ${database//%/%%}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
export MLFLOW_AUTH_CONFIG_PATH="$state/auth.ini" MLFLOW_AUTH_ADMIN_PASSWORD="$password"
export MLFLOW_BACKEND_STORE_URI="$database" MLFLOW_FLASK_SERVER_SECRET_KEY="$flask"
# Its job runner is eight processes and 1.2 GB that nothing here uses, and an interface less to defend.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
unset DATABASE_URL ADMIN_PASSWORD FLASK_SECRET

mlflow="${MLFLOW:-mlflow}"
exec "$mlflow" server --host "$listen" --port "$port" --workers "${WORKERS:-2}" --app-name basic-auth \
  --serve-artifacts --artifacts-destination "$artifacts" --allowed-hosts "$hosts" --cors-allowed-origins "http://${hosts%%,*}"
