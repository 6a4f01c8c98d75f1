#!/usr/bin/env bash
# Two hosts on one machine: network namespaces joined by a cable (veth), each with a host name of its own. Ranks are
# started on both by `octet launch` with an agent that enters the other; the cable is cut while they train; every rank
# names the failure; plugged in again, the same command goes on, and the run is bit for bit the one that was never cut.
#   tests/launch/hosts.sh OCTET SOURCE_DIRECTORY        exit code 77: skipped
set -euo pipefail
octet=$1 source=$2
skip() { echo "skipped: $*"; exit 77; }
fail() { echo "FAILED: $*"; tail -n 30 "$work"/*.log "$work"/*/logs/* 2>/dev/null || true; exit 1; }
for program in ip unshare mpirun hostname; do command -v $program >/dev/null || skip "there is no $program"; done
unshare -n -u true 2>/dev/null || skip "network namespaces are not permitted here"
[ "$(id -u)" = 0 ] || skip "named network namespaces are for root"

work=$(mktemp -d) a=octet-$$-a b=octet-$$-b
clean_up() {
  for namespace in $a $b; do
    ip netns pids $namespace 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del $namespace 2>/dev/null || true
  done
  rm -rf "$work"
}
trap clean_up EXIT
ip netns add $a || skip "ip cannot add a network namespace here"
ip netns add $b
ip link add veth-a netns $a type veth peer name veth-b netns $b || skip "ip cannot add a veth pair here"
ip -n $a addr add 10.77.0.1/24 dev veth-a
ip -n $b addr add 10.77.0.2/24 dev veth-b
for end in "$a lo" "$b lo" "$a veth-a" "$b veth-b"; do set -- $end; ip -n "$1" link set "$2" up; done

# on NAMESPACE NAME COMMAND: as a shell on that host.
on() { ip netns exec "$1" unshare -u sh -c 'hostname "$0"; exec sh -c "$1"' "$2" "$3"; }
cat >"$work/agent" <<AGENT
#!/bin/sh
[ "\$1" = 10.77.0.2 ] || { echo "no route to \$1"; exit 255; }
shift
exec ip netns exec $b unshare -u sh -c 'hostname node-b; exec sh -c "\$0"' "\$*"
AGENT
chmod +x "$work/agent"

cd "$work"
"$octet" prepare --input "$source/docs" --vocab-size 400 --output data >prepare.log 2>&1 || fail "prepare"
# launch RUN HOSTS [MORE]: the launcher is on host a.
launch() {
  on $a node-a "exec '$octet' launch '$source/configs/test.yaml' --hosts $2 --agent '$work/agent' --interface 10.77.0.0/24 \
    --out $1 --set data.path=data --set train.steps=150 --set train.sample_every_steps=0 --set checkpoint.every_steps=20 \
    --set parallel.dp=2 --set parallel.ep=2 --set parallel.timeout_s=4 ${3:-}" >>"$1.log" 2>&1
}
losses() { grep -o '"loss":[^,]*' "$1/metrics.jsonl"; }
hosts=10.77.0.1:1,10.77.0.2:1

code=0; launch whole $hosts || code=$?
[ $code = 0 ] || fail "the run on two hosts ended with $code"
grep -q "on host node-a" whole/logs/rank-000.log || fail "rank 0 was not on node-a"
grep -q "on host node-b" whole/logs/rank-001.log || fail "rank 1 was not on node-b"
[ "$(losses whole | wc -l)" = 150 ] || fail "not all steps were recorded"
echo "trained on node-a and node-b"

launch cut $hosts & launcher=$!
for i in $(seq 600); do
  [ -e cut/metrics.jsonl ] && [ "$(wc -l <cut/metrics.jsonl)" -ge 30 ] && break
  sleep 0.1
done
[ "$(wc -l <cut/metrics.jsonl)" -lt 150 ] || fail "the run was over before the cable was cut"
ip -n $b link set veth-b down
cut_at=$(date +%s)
code=0; wait $launcher || code=$?
seconds=$(($(date +%s) - cut_at))
[ $code = 7 ] || [ $code = 8 ] || fail "with the cable cut the launch ended with $code"
[ $seconds -le 40 ] || fail "it took $seconds s to notice that the cable was cut"
for i in $(seq 200); do grep -q "octet: error" cut/logs/rank-001.log && break; sleep 0.1; done
grep -A3 "octet: error" cut.log | grep -q "rank 1" || fail "rank 0 did not name rank 1"
grep -A3 "octet: error" cut/logs/rank-001.log | grep -q "rank 0" || fail "rank 1 did not name rank 0"
echo "cut: code $code after $seconds s, named by both ranks"
ip netns pids $b | xargs -r kill -KILL 2>/dev/null || true  # a host that is found cut off is started again

ip -n $b link set veth-b up
code=0; launch cut $hosts || code=$?
[ $code = 0 ] || fail "the run did not go on: $code"
cmp <(losses cut) <(losses whole) || fail "the run that was cut differs from the one that was not"
echo "went on, with the same 150 losses"

code=0; launch nowhere 10.77.0.1:1,10.77.0.9:1 || code=$?
[ $code = 7 ] || fail "a host that is not there gave $code"
grep -q "host 10.77.0.9 cannot be reached" nowhere.log || fail "the host that is not there was not named"
echo "a host that is not there is named"
