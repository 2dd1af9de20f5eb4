#!/bin/sh
# Exports three plans (one GPU; heterogeneous with TP; PP over two nodes) to every target and asks other people's tools: `sh -n`,
# kubernetes-validate --strict (Kubernetes 1.37), docker compose's own parser, and with --sky SkyPilot's. The first run installs
# them into FOLDER (Python's venv: 110 MB, SkyPilot 460 MB more), later ones use them.
# COMPOSE names docker compose where it is neither `docker compose` nor `docker-compose`; 2.0 or later. `.ci/run` has it from PyPI.
# usage: validation/exports/validate.sh [--sky] [BOUTE [FOLDER]]
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
sky=
if [ "${1:-}" = --sky ]; then sky=1; shift; fi
boute="${1:-$here/../../target/release/boute}"
folder="${2:-$here/../../out/exports}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
python="$folder/venv/bin/python"
[ -e "$python" ] || python3 -m venv "$folder/venv"
"$python" -c 'import kubernetes_validate' 2> /dev/null || "$python" -m pip install -q kubernetes-validate==1.37.0 pyyaml
if [ "$sky" ]; then
  "$python" -c 'import sky' 2> /dev/null || "$python" -m pip install -q skypilot==0.14.1
fi
if [ -z "${COMPOSE:-}" ]; then
  if docker compose version > /dev/null 2>&1; then COMPOSE="docker compose"
  elif docker-compose version --short 2> /dev/null | grep -q '^v\{0,1\}[2-9]'; then COMPOSE=docker-compose
  else COMPOSE=; fi
fi

"$boute" plan "$here/../../examples/llama-8b-70b.yaml" -q -o "$folder/heterogeneous.json" > /dev/null
"$python" "$here/plans.py" "$folder"
rm -rf "$folder/files"
for plan in one-gpu heterogeneous two-nodes; do
  for target in shell compose k8s skypilot helm llm-d kserve kuberay grafana; do
    "$boute" export -q "$target" "$folder/$plan.json" -o "$folder/files/$plan/$target"
  done
  for script in "$folder/files/$plan"/*/*.sh; do sh -n "$script"; done
done
echo "scripts: sh -n takes all"

"$python" "$here/objects.py" "$folder/files"

if [ "$COMPOSE" ]; then
  count=0
  for file in "$folder"/files/*/compose/compose*.yaml; do
    example="$(dirname "$file")/env.example"
    if [ -e "$example" ]; then sed 's/=$/=10.0.0.1/' "$example" > "$(dirname "$file")/.env"; fi
    (cd "$(dirname "$file")" && $COMPOSE -f "$file" config -q)
    sed 's/device_ids:/device_idz:/; s/entrypoint:/entrypoints:/' "$file" > "$(dirname "$file")/broken.yaml"
    if (cd "$(dirname "$file")" && $COMPOSE -f broken.yaml config -q 2> /dev/null); then
      echo "docker compose takes a broken $file"; exit 1
    fi
    count=$((count + 1))
  done
  echo "docker compose: takes $count files, refuses them broken"
else
  echo "docker compose: not here, skipped"
fi

if [ "$sky" ]; then
  # SkyPilot keeps its state in the home folder.
  HOME="$folder" "$python" "$here/tasks.py" "$folder/files"
fi
