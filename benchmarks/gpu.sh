#!/usr/bin/env bash
# On a GPU: the contracts of the catalogue, the op table and the training steps in float32, TF32 and bfloat16 against
# Flax and PyTorch (eager and compiled). Writes benchmarks/results/*.csv and the tables of the documents.
#
#     benchmarks/gpu.sh [PYTHON]        PYTHON has jax[cuda12] (or a newer CUDA's), torch for CUDA and '.[train,test,peers]'
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

if ! nvidia-smi -L 2>/dev/null; then
  echo "gpu.sh: nvidia-smi finds no GPU here; nothing was measured" >&2
  exit 3
fi
if ! "$python" -c 'import jax; raise SystemExit(jax.default_backend() != "gpu")' 2>/dev/null; then
  echo "gpu.sh: there is a GPU, but jax in $python does not use it: pip install 'jax[cuda12]'" >&2
  exit 3
fi

export JAX_PLATFORMS=cuda,cpu
export XLA_PYTHON_CLIENT_PREALLOCATE=false # every contender has a process of its own, all on one GPU

# The tests' tolerances are those of full float32 products; TF32 has 10 bits.
JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS='' "$python" -m pytest -q -n auto -p no:benchmark tests/test_contracts.py

for precision in float32 tf32 bfloat16; do
  "$python" -m benchmarks ops --precision "$precision" --allocator default --options default --rounding --save
  "$python" -m benchmarks steps --precision "$precision" --allocator default --compilations 1 --save --contenders \
    jnet jnet:scan flax flax:reduce flax:scan flax:scan:reduce torch torch:channels_last torch:compile torch:compile:channels_last
done
"$python" -m benchmarks report --readme
