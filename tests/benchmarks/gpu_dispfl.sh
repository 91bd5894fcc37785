#!/usr/bin/env bash
# A few rounds of DisPFL with ResNet-18 on a GPU: time, memory, megabytes and accuracy of each. Options go to
# gpu_dispfl.py (--help lists them); the run folder stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
exec "$python" tests/benchmarks/gpu_dispfl.py --run-dir "runs/gpu_dispfl-$(date +%Y%m%d-%H%M%S)" "$@"
