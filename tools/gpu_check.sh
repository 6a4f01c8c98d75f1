#!/usr/bin/env bash
# Proves Octet on a machine with an NVIDIA Hopper GPU, in one call of less than 9 minutes, and writes one report:
#   tools/gpu_check.sh [--stages LIST] [--build DIR] [--report FILE] [--text DIR] [--emulated]
# Stages, all of them but loss where --stages is left out, in this order:
#   build      configure and compile, warnings as errors; needs no GPU. Libraries come from .deps where
#              tools/bundle_deps.sh packed them and that directory is here
#   doctor     the driver, the GPU, NCCL
#   test       every test program that runs something on a GPU
#   memcheck   compute-sanitizer over a small training step
#   racecheck  the same, for shared memory
#   bench      the table of kernels and steps
#   loss       configs/gpu_1.yaml for 500 steps in bf16 and in fp8_block, of the text under --text, or of this checkout
#              and the toolkit's headers: the mean losses of the last 50 steps are within 0.25 %. Takes as long as it does
# --emulated: the same on a machine without a GPU, with the emulated one (docs/cuda_emulation.md) and without its limits
# of time: a rehearsal of this script, whose figures say nothing. memcheck and racecheck run a step without their tool.
# A stage that fails does not stop those after it, but for build. Exit code 0: every stage passed; 2: one did not.
set -uo pipefail
cd "$(dirname "$0")/.."

stages=build,doctor,test,memcheck,racecheck,bench
build=
report=
text=
slower=1
cuda=(-DOCTET_CUDA=ON)
while [ $# -gt 0 ]; do
  case $1 in
    --stages | --build | --report | --text)
      if [ $# -lt 2 ]; then
        echo "gpu_check: $1 wants a value" >&2
        exit 2
      fi
      declare "${1#--}=$2"
      shift 2
      ;;
    --emulated)
      slower=20 cuda=(-DOCTET_CUDA=OFF -DOCTET_EMULATE_CUDA=ON)
      shift
      ;;
    *)
      echo "gpu_check: \"$1\" came; wanted --stages LIST, --build DIR, --report FILE, --text DIR or --emulated" >&2
      exit 2
      ;;
  esac
done
for stage in ${stages//,/ }; do
  case $stage in
    doctor | build | test | memcheck | racecheck | bench | loss) ;;
    *)
      echo "gpu_check: there is no stage \"$stage\"; there are build, doctor, test, memcheck, racecheck, bench, loss" >&2
      exit 2
      ;;
  esac
done
build=${build:-$([ $slower -eq 1 ] && echo build-gpu || echo build-gpu-emulated)}
report=${report:-$build/gpu_report.md}
mkdir -p "$build" "$(dirname "$report")"
wants() { [[ ,$stages, == *,$1,* ]]; }

readonly tests=(tensor kernels autograd nn optim train_gpu nccl)
# Three steps: one of kernels, one that is captured, one that is a launch of the graph.
readonly small=(configs/bench_tiny.yaml device=cuda model.layers=1 train.batch_size=1 warmup=0 steps=3)
rows=() bodies=() failed=0

# stage NAME SECONDS COMMAND...: runs it under a limit; a row of the table and its last lines go into the report.
stage() {
  local name=$1 limit=$(($2 * slower)) began=$SECONDS log code result
  shift 2
  log=$build/$name.log
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
  code=$?
  case $code in
    0) result=passed ;;
    124 | 137) result="over its limit of $limit s" ;;
    *) result="failed, code $code" ;;
  esac
  [ $code -eq 0 ] || failed=1
  tail -n 3 "$log"
  rows+=("| $name | $result | $((SECONDS - began)) |")
  bodies+=("## $name"$'\n\n```\n'"$(tail -n 400 "$log")"$'\n```\n')
  return $code
}

configure_and_build() {
  local options=(-DCMAKE_BUILD_TYPE=Release -DOCTET_WARNINGS_AS_ERRORS=ON "${cuda[@]}") targets=(octet)
  if [ -d .deps ]; then options+=(-DOCTET_BUNDLED_DEPS=ON); fi
  for test in "${tests[@]}"; do targets+=("test_$test"); done
  cmake -G Ninja -S . -B "$build" "${options[@]}" || return
  # NCCL may be missing: its test is then no target.
  if ! ninja -C "$build" -t query test_nccl >/dev/null 2>&1; then targets=("${targets[@]/test_nccl/}"); fi
  ninja -C "$build" -j "$(nproc)" $(printf '%s ' "${targets[@]}")
}
run_tests() {
  local code=0
  for test in "${tests[@]}"; do
    [ -x "$build/test_$test" ] || continue
    echo "-- test_$test"
    "$build/test_$test" || code=1
  done
  return $code
}
# $1: the tool. The first error ends it: a report of thousands helps nobody.
sanitized_step() {
  local tool=(compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20)
  [ "$slower" -eq 1 ] || tool=()
  "${tool[@]}" "$build/octet" bench step "${small[@]}"
}
bench_all() {
  local config=configs/bench_small.yaml sizes=() fused=() products=() steps=()
  local experts=(4x8192x4096x7168 4x8192x7168x2048)
  local layers=("tokens=32768 hidden=4096 expert_hidden=1024 experts=64 top_k=4"
    "tokens=40960 hidden=768 expert_hidden=256 experts=128 top_k=8")
  [ "$slower" -eq 1 ] || {
    config=configs/bench_tiny.yaml experts=(2x70x256x128 peak=128)
    sizes=(tokens=128 hidden=256 experts=4 top_k=2 expert_hidden=128 vocab=512 repeats=1)
    fused=(tokens=128 hidden=256 experts=4 top_k=2 expert_hidden=128)
    layers=("tokens=128 hidden=256 expert_hidden=128 experts=4 top_k=2")
    products=(repeats=1 train.batch_size=1)
    steps=(model.layers=1 train.batch_size=1 warmup=0 steps=3)
  }
  "$build/octet" bench kernels device=cuda "${sizes[@]}" || return
  "$build/octet" bench quantise device=cuda "${fused[@]}" repeats=5 || return
  "$build/octet" bench grouped-gemm device=cuda "${experts[@]}" repeats=5 || return
  for layer in "${layers[@]}"; do
    "$build/octet" bench moe-layer device=cuda repeats=5 $layer || return
  done
  "$build/octet" bench products "$config" device=cuda "${products[@]}" || return
  for recipe in bf16 fp8_block; do
    "$build/octet" bench step "$config" device=cuda "precision.recipe=$recipe" "${steps[@]}" || return
  done
}
# The mean of "loss" over the last 50 lines of a run's metrics.
mean_loss() {
  tail -n 50 "$1/metrics.jsonl" | sed 's/.*"loss": *\([^,}]*\).*/\1/' | awk '{ sum += $1 } END { print sum / NR }'
}
compare_losses() {
  local dir=$build/loss texts=(core kernels parallel optim tools tests docs README.md) vocab=32768 sets=()
  local headers=/usr/local/cuda/include
  if command -v nvcc >/dev/null; then headers=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")/include; fi
  if [ -d "$headers" ] && [ "$slower" -eq 1 ]; then texts+=("$headers"); fi
  if [ -n "$text" ]; then texts=("$text"); fi
  [ "$slower" -eq 1 ] || {
    vocab=300
    sets=(model.layers=2 model.hidden=128 model.heads=2 model.ffn_hidden=256 "model.vocab_size=$vocab"
      model.moe.num_experts=4 model.moe.top_k=2 model.moe.expert_hidden=128 data.seq_len=64
      train.batch_size=2 train.micro_batch=1 train.steps=3 train.eval_every_steps=0 optim.warmup_steps=1)
  }
  rm -rf "$dir"
  "$build/octet" prepare --input "${texts[@]}" --include '*.h' '*.hpp' '*.cuh' '*.inl' '*.cpp' '*.inc' '*.cu' '*.md' \
    '*.txt' '*.sh' --vocab-size "$vocab" --output "$dir/data" || return
  for recipe in bf16 fp8_block; do
    local set=("precision.recipe=$recipe" "data.path=$dir/data" checkpoint.every_steps=0 "${sets[@]}")
    # What would be faster in bf16 is FP8 too: it is the loss that is compared.
    for kind in attention dense experts; do set+=("precision.products.$kind=fp8"); done
    "$build/octet" train configs/gpu_1.yaml --out "$dir/$recipe" "${set[@]/#/--set=}" || return
    rm -rf "$dir/$recipe/checkpoints"
  done
  awk -v bf16="$(mean_loss "$dir/bf16")" -v fp8="$(mean_loss "$dir/fp8_block")" 'BEGIN {
    percent = 100 * (fp8 - bf16) / bf16
    printf "mean loss of the last 50 steps: bf16 %.4f, fp8_block %.4f, %+.3f %%; wanted within 0.25 %%\n", bf16, fp8, percent
    exit !(percent <= 0.25 && percent >= -0.25)
  }'
}
export -f configure_and_build run_tests sanitized_step bench_all mean_loss compare_losses
export build slower text

began=$SECONDS
if wants build; then stage build 205 bash -c "$(declare -p tests cuda); configure_and_build" || stages=none; fi
if wants doctor; then stage doctor 15 "$build/octet" doctor || true; fi
if wants test; then stage test 110 bash -c "$(declare -p tests); run_tests" || true; fi
if wants memcheck; then stage memcheck 55 bash -c "$(declare -p small); sanitized_step memcheck" || true; fi
if wants racecheck; then stage racecheck 55 bash -c "$(declare -p small); sanitized_step racecheck" || true; fi
if wants bench; then stage bench 95 bash -c bench_all || true; fi
if wants loss; then stage loss 1800 bash -c compare_losses || true; fi

{
  echo "# GPU check"
  echo
  echo "- when: $(date -u '+%Y-%m-%d %H:%M:%S') UTC, $((SECONDS - began)) s"
  echo "- commit: $(git rev-parse HEAD 2>/dev/null || echo unknown)"
  echo "- GPU: $(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader 2>/dev/null || echo none)"
  echo "- compiler: $(nvcc --version 2>/dev/null | tail -n 1), $(c++ --version 2>/dev/null | head -n 1)"
  echo
  echo "| stage | result | s |"
  echo "| --- | --- | --- |"
  printf '%s\n' "${rows[@]}"
  echo
  printf '%s\n' "${bodies[@]}"
} >"$report"
echo "gpu_check: $([ $failed -eq 0 ] && echo "every stage passed" || echo "a stage failed"); the report is $report"
exit $((failed * 2))
