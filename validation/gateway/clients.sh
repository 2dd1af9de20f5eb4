#!/bin/sh
# Real clients through the gateway to two real engines: openai-python, LangChain, openai-node and curl, unmodified, against
# llama.cpp's server with two models of random weights and different size. The first run installs the clients into FOLDER
# (Python's venv and npm; 300 MB), later ones use them.
# usage: validation/gateway/clients.sh [BOUTE [FOLDER]]
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
boute="${1:-$here/../../target/release/boute}"
folder="${2:-$here/../../out/clients}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
python="$folder/venv/bin/python"
if [ ! -e "$folder/installed" ]; then
  python3 -m venv "$folder/venv"
  "$python" -m pip install -q xllamacpp gguf numpy openai langchain-openai
  (cd "$folder" && npm install --silent --no-audit --no-fund openai)
  touch "$folder/installed"
fi
cp "$here/clients.mjs" "$folder/"

pids=""
trap 'kill $pids 2> /dev/null || true' EXIT
start() { "$@" & pids="$pids $!"; }
start "$python" "$here/../../examples/llama_cpp_engine.py" "$folder/small" 18291 2 > "$folder/small.log" 2>&1
start "$python" "$here/../../examples/llama_cpp_engine.py" "$folder/large" 18292 8 > "$folder/large.log" 2>&1
for port in 18291 18292; do
  until curl -fs "http://127.0.0.1:$port/health" > /dev/null; do sleep 0.2; done
done
start "$boute" serve --replica small=http://127.0.0.1:18291 --replica large=http://127.0.0.1:18292 \
  --alias gpt-4o=large --listen 127.0.0.1:18280 --decisions "$folder/decisions.jsonl"
url=http://127.0.0.1:18280
until curl -fs "$url/health" > /dev/null; do sleep 0.1; done

"$python" "$here/clients.py" "$url/v1"
(cd "$folder" && node clients.mjs "$url/v1")
stream="$(curl -sN "$url/v1/chat/completions" -H 'content-type: application/json' \
  -d '{"model":"small","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"hello"}]}')"
case "$stream" in
  data:*"data: [DONE]"*) echo "ok    curl -N" ;;
  *) echo "FAIL  curl -N: $stream"; exit 1 ;;
esac
echo "all clients pass"
