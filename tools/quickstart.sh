#!/usr/bin/env bash
# Builds Octet, makes a corpus of this checkout's own sources and texts, and trains the model of configs/quickstart.yaml
# on it, into runs/quickstart. Run it again to go on where it stopped. Arguments go to octet train:
#   tools/quickstart.sh --set train.steps=50
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh octet
if [ ! -f runs/quickstart/data/dataset.json ]; then
  build/octet prepare --input core kernels parallel optim tools tests docs configs README.md \
    --include '*.h' '*.cpp' '*.inc' '*.md' '*.yaml' '*.txt' '*.sh' --vocab-size 2048 --output runs/quickstart/data
fi
build/octet train configs/quickstart.yaml --out runs/quickstart "$@"
