#!/bin/sh
# A fleet of two models on several GPU types (fleet.yaml), emulated and simulated on the same minutes of traffic, under each
# way of balancing: P95 of TTFT and E2E. Our own way is to be within 10 % of what the simulator says, and no worse than the
# others. Two and a half minutes per row. Round robin is only simulated: on this fleet it never catches up.
# usage: validation/gateway/fleet.sh [BOUTE [REQUESTS [TIME_SCALE]]]
set -eu
root="$(cd "$(dirname "$0")/../.." && pwd)"
boute="${1:-$root/target/release/boute}"
requests="${2:-3000}"
scale="${3:-1}"
folder="$(mktemp -d)"
gateway=""
trap '[ -z "$gateway" ] || kill "$gateway" 2> /dev/null || true; rm -rf "$folder"' EXIT
report() {
  python3 - "$1" "$folder/simulated.json" "$folder/measured.json" << 'PYTHON' || touch "$folder/missed"
import json
import sys

balance, simulated, measured = sys.argv[1], json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
keys = ("p95_ttft_ms", "p95_e2el_ms")
seconds = lambda outcome: " | ".join(f"{outcome[key] / 1e3:.2f} s" for key in keys)
if measured["source"] == "simulated":
    print(f"| {balance} | {seconds(simulated)} | | | |", flush=True)
    sys.exit()
off = [measured[key] / simulated[key] - 1 for key in keys]
print(f"| {balance} | {seconds(simulated)} | {seconds(measured)} | {off[0]:+.1%}, {off[1]:+.1%} |", flush=True)
if measured["failed"]:
    sys.exit(f"{measured['failed']} requests failed")
if balance == "least-expected-finish" and max(map(abs, off)) > 0.1:
    sys.exit("more than 10 % off")
PYTHON
}

"$boute" plan "$root/validation/gateway/fleet.yaml" -o "$folder/plan.json" -q > "$folder/plan.txt"
data="$root/examples/data"
traffic="--trace $data/azure2023_conv.csv.gz --quality $data/mmlu_pro_llama.jsonl.gz --requests $requests"
rate="$(python3 -c 'import json,sys; print("%g req/s" % json.load(open(sys.argv[1]))["predicted"]["rate"])' "$folder/plan.json")"
echo "| balancing | simulated TTFT p95 | E2E p95 | emulated TTFT p95 | E2E p95 | off by |"
echo "|---|---|---|---|---|---|"
for balance in least-expected-finish least-requests power-of-two round-robin; do
  "$boute" simulate "$folder/plan.json" $traffic --rate "$rate" --balance "$balance" --json -q > "$folder/simulated.json"
  if [ "$balance" = round-robin ]; then
    cp "$folder/simulated.json" "$folder/measured.json"
    report "$balance"
    continue
  fi
  "$boute" serve "$folder/plan.json" --emulate --time-scale "$scale" --balance "$balance" --listen 127.0.0.1:18380 \
    2> "$folder/serve.log" &
  gateway=$!
  until curl -fs http://127.0.0.1:18380/health > /dev/null; do
    kill -0 "$gateway" || { cat "$folder/serve.log" >&2; exit 1; }
    sleep 0.2
  done
  "$boute" bench http://127.0.0.1:18380 $traffic --rate "$rate" --time-scale "$scale" --json -q > "$folder/measured.json" || true
  kill "$gateway"
  wait "$gateway" || true
  gateway=""
  report "$balance"
done
[ ! -e "$folder/missed" ]
