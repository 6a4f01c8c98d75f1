#!/usr/bin/env bash
# Builds everything and runs all tests. Arguments go to ctest: tools/test.sh -R kernels
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh
ctest --test-dir build --output-on-failure -j "$(nproc)" "$@"
