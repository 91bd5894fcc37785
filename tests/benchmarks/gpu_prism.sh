#!/usr/bin/env bash
# A few rounds of PRISM at 32x32 on a GPU: steps per second, what a round costs besides them, memory and bytes. Options
# go to gpu_prism.py (--help lists them); the run folder stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
exec "$python" tests/benchmarks/gpu_prism.py --run-dir "runs/gpu_prism-$(date +%Y%m%d-%H%M%S)" "$@"
