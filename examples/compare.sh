#!/bin/sh
# The example at three floors and two rates, planned by each strategy; one line each: rent, held-out quality, fleet.
# usage: examples/compare.sh [BOUTE]
set -eu
cd "$(dirname "$0")"
boute="${1:-../target/release/boute}"
spec=".compare-$$.yaml"
trap 'rm -f "$spec"' EXIT
for rate in 10 20; do
  for floor in 80 85 90; do
    sed "s|rate: 20 req/s|rate: $rate req/s|; s|floor: 85% of|floor: $floor% of|" llama-8b-70b.yaml > "$spec"
    echo "== $rate req/s, floor $floor% of llama-3.1-70b"
    for strategy in default routing-proportional routing-uniform homogeneous; do
      printf '%-22s' "$strategy"
      "$boute" plan -q "$spec" --strategy "$strategy" --json | tr -d ' \n' |
        sed -E 's/.*"groups":\[(.*)\]\},"routing".*"cost_usd_per_hour":([0-9.]+),"rate".*"passed":([a-z]+).*"quality":([0-9.]+),"queries".*/$\2\/h  met: \3  quality \4/; s/.*"infeasible":"([^\\"]*).*/no plan/'
      echo
    done
  done
done
