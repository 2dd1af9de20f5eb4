#!/bin/sh
# Profiles llama.cpp's server on the CPU. Needs Python with `pip install xllamacpp gguf numpy`.
# usage: examples/profile-llama-cpp.sh [BOUTE [PYTHON]]
set -eu
cd "$(dirname "$0")"
boute="${1:-../target/release/boute}"
python="${2:-python3}"
port=18180
folder="$(mktemp -d)"
"$python" llama_cpp_engine.py "$folder" "$port" > "$folder/log" 2>&1 &
engine=$!
trap 'kill "$engine" 2> /dev/null || true; rm -rf "$folder"' EXIT
until grep -q listening "$folder/log"; do
  kill -0 "$engine" 2> /dev/null || { cat "$folder/log" >&2; exit 1; }
  sleep 0.2
done
"$boute" profile "http://127.0.0.1:$port" --model random-llama --config "$folder/config.json" --gpu L4 \
  --prompt-tokens 128,512,1024 --answer-tokens 32,96 --clients 1,2,4 -q
