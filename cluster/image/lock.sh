#!/usr/bin/env bash
# lock.sh: requirements.in + constraints.txt -> requirements.lock, every file by sha256, for Python 3.11 on x86_64 Linux.
# torch is the registry's default build there, the CUDA one. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")"
{
  echo "# Made by lock.sh. Linux x86_64, Python 3.11. Install with pip install --require-hashes --no-deps -r requirements.lock"
  uv pip compile requirements.in --constraint ../../constraints.txt --generate-hashes \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet
} > requirements.lock.new
mv requirements.lock.new requirements.lock
