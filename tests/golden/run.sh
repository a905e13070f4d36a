#!/usr/bin/env bash
# Run demo/0123456789: trains, or resumes from the newest checkpoint. Needs no sft-dist command.
# 1 node x 2 processes x 16 micro-batch x 1 accumulation = 32 examples a step
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
PYTHON="${PYTHON:-/venv/bin/python}"
export ACCELERATE_USE_CPU=true
export OMP_NUM_THREADS=1
export TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$here/source${PYTHONPATH:+:$PYTHONPATH}"
rm -f "$here/stop"
cd "$here"
exec "$PYTHON" -m accelerate.commands.launch \
  --multi_gpu \
  --num_processes 2 \
  --gpu_ids all \
  --num_machines 1 \
  --mixed_precision no \
  --dynamo_backend no \
  --machine_rank 0 \
  --main_process_port 0 \
  -m sft_dist.train "$here"
