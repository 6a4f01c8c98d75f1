#!/usr/bin/env bash
# `octet launch` of `octet train` on two ranks: stopped by each signal, with a rank killed, and with the launcher killed;
# each time the same command goes on, and the run is bit for bit the one that was never stopped.
#   tests/launch/train.sh OCTET SOURCE_DIRECTORY        exit code 77: skipped
set -euo pipefail
octet=$1 source=$2
command -v mpirun >/dev/null || { echo "skipped: there is no mpirun"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; tail -n 30 "$work"/*.log "$work"/*/logs/* 2>/dev/null || true; exit 1; }
cd "$work"
"$octet" prepare --input "$source/docs" --vocab-size 400 --output data >prepare.log 2>&1 || fail "prepare"
set -m  # or the shell would start what is in the background with SIGINT ignored
steps=300
arguments() {
  echo "$source/configs/test.yaml" --out "$1" --set data.path=data --set train.steps=$steps --set parallel.dp=2 \
    --set train.sample_every_steps=0 --set train.eval_every_steps=0 --set checkpoint.every_steps=${2:-0} --set parallel.ep=2
}
losses() { grep -o '"loss":[^,]*' "$1/metrics.jsonl"; }
recorded() { if [ -e "$1/metrics.jsonl" ]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }
wait_for_steps() { for _ in $(seq 600); do [ "$(recorded "$1")" -ge "$2" ] && return; sleep 0.05; done; fail "$1 does not train"; }
ranks_of() { sed -n 's/^==== .*process //p' "$1"/logs/rank-00?.log; }
# RUN is stopped by now, and none of its ranks lives ten seconds later; the same command makes it the unbroken run.
goes_on() {
  for pid in $(ranks_of "$1"); do
    for _ in $(seq 200); do grep -q '^State:[[:space:]]*[^Z]' "/proc/$pid/status" 2>/dev/null || continue 2; sleep 0.05; done
    fail "a rank of $1 outlives it"
  done
  "$octet" launch $(arguments "$1" "${2:-0}") >>"$1.log" 2>&1 || fail "$1 does not go on"
  cmp <(losses "$1") <(losses whole) || fail "$1 differs from the run that was never stopped"
}

"$octet" launch $(arguments whole) >whole.log 2>&1 || fail "the unbroken run"
[ "$(losses whole | wc -l)" = $steps ] || fail "not all steps were recorded"

for signal in TERM INT HUP USR1; do
  "$octet" launch $(arguments $signal) >$signal.log 2>&1 & launcher=$!
  wait_for_steps $signal 3
  kill -$signal $launcher
  code=0; wait $launcher || code=$?
  [ $code = 75 ] || fail "SIG$signal ended the launch with $code"
  [ "$(ls $signal/checkpoints)" != "" ] || fail "SIG$signal saved nothing"
  [ "$(recorded $signal)" -lt $steps ] || fail "SIG$signal came too late to show anything"
  goes_on $signal
  echo "SIG$signal: saved, 75, and the same $steps losses"
done

"$octet" launch $(arguments killed 20) >killed.log 2>&1 & launcher=$!
wait_for_steps killed 30
kill -KILL "$(sed -n 's/^==== .*process //p' killed/logs/rank-001.log)"
code=0; wait $launcher || code=$?
[ $code = 7 ] || fail "with a rank killed the launch ended with $code"
grep -q "rank 1" killed.log || fail "the rank that was killed is not named"
! grep -q -- "-----" killed.log || fail "the launch shows what mpirun says"
goes_on killed 20
echo "a rank killed: named, 7, and the same $steps losses"

"$octet" launch $(arguments orphaned 20) >orphaned.log 2>&1 & launcher=$!
wait_for_steps orphaned 30
kill -STOP "$(sed -n 's/^==== .*process //p' orphaned/logs/rank-001.log)"
kill -KILL $launcher
wait $launcher 2>/dev/null || true
goes_on orphaned 20
echo "the launcher killed: no rank is left, and the same $steps losses"
