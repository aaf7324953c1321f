#!/usr/bin/env bash
# Transcribes a tree of recordings with a Slurm array, one GPU for each task:
#
#     sbatch --array=1-16 scripts/cluster/slurm-array.sh MODEL_DIR AUDIO_DIR OUTPUT_DIR
#
# Every task takes its share of the files (--shard auto reads SLURM_ARRAY_TASK_ID and its companions). A task that was
# killed or ran out of time does only what is missing when it is submitted again.
#SBATCH --job-name=voxtral
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
set -euo pipefail

(($# == 3)) || { echo "usage: sbatch --array=1-N $0 MODEL_DIR AUDIO_DIR OUTPUT_DIR" >&2 && exit 2; }

exec voxtral -d "$1" -r "$2" -o "$3" -f txt,json --shard auto --threads "${SLURM_CPUS_PER_TASK:-8}"
