#!/bin/sh
# Installs nvcc 13.0 from PyPI into .cuda/, where the build looks for it: some 270 MB, no root needed.
# The five packages must be of one release, hence the exact versions and --no-deps.
set -eu
cd "$(dirname "$0")/.."
python3 -m pip install --upgrade --no-deps --only-binary :all: --target .cuda \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
.cuda/nvidia/cu13/bin/nvcc --version
