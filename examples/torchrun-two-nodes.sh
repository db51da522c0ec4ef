#!/bin/bash
# One training run on two nodes without a scheduler. Start the same command on both:
#   examples/torchrun-two-nodes.sh HEAD:PORT PRESET [TRAINING OPTIONS ...]
#   examples/torchrun-two-nodes.sh node1:29400 celebahq256 --data shards/ --run.dir /shared/runs/a
# HEAD is the name of one of them, PORT any free port there. Each node uses all of its GPUs.
set -euo pipefail

if [[ $# -lt 2 || "$1" != *:* ]]; then
  echo "usage: $0 HEAD:PORT PRESET [TRAINING OPTIONS ...]" >&2
  exit 2
fi
endpoint="$1"
shift

exec torchrun \
  --nnodes=2 \
  --nproc-per-node="${RANKS_PER_NODE:-gpu}" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$endpoint" \
  --rdzv-id="${RUN_ID:-ddgan_fast}" \
  --max-restarts="${MAX_RESTARTS:-3}" \
  -m ddgan_fast train "$@"
