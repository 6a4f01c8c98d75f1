#!/usr/bin/env bash
# tools/build.sh [target...]: installs what is missing and builds into build/ (all of it, or the targets named).
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
[ -f build/build.ninja ] || cmake --preset "${PRESET:-release}" >/dev/null
cmake --build build --target "${@:-all}"
