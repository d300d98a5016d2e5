#!/usr/bin/env bash
# Everything that a GPU is wanted for, on one machine that has one, in about an hour: tests, rates of this machine, extraction and training
# beside the peers' way. Results in the folder given (default: gpu_results). A part that fails does not stop the next one.
#     bash benchmarks/gpu.sh [FOLDER]
set -u
export OUT=$(realpath -m "${1:-gpu_results}")
mkdir -p "$OUT"
part() { echo "== $*"; "$@" 2>&1 | tee "$OUT/$(basename "$1").$((++number)).txt"; }
number=0
part nvidia-smi
part python -m pytest tests/ghost -m "" -q
part python -m pytest tests/training -m gpu -q
part mil bench --encoder efficientnet_lite0 --encoder resnet50 --encoder phikon --encoder uni --encoder uni2_h --out "$OUT/rates.json"
part python benchmarks/features_gpu.py --minutes 15
part python benchmarks/training_gpu.py --minutes 7 --protocol 1
part python benchmarks/training_gpu.py --minutes 2 --models 100 --protocol 1 --spread 0
