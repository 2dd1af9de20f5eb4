#!/bin/sh
# Real clients through the gateway to two real engines: openai-python, LangChain, openai-node and curl, unmodified, against
# llama.cpp's server with two models of random weights and different size; and the conformance suite llm-comply, against an
# engine that conforms (llama.cpp leaves out required keys). Two models are ones that their engines know by other names.
# Needs python3 with venv, and curl; openai-node is left out with a word where node is absent or npm cannot install it.
# Clients and engines come from PyPI (clients.txt) and npm into a folder that goes afterwards (300 MB); a FOLDER that is named is
# kept and used again, as is FOLDER/venv if that has them already.
# usage: validation/gateway/clients.sh [BOUTE [FOLDER]]
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
boute="${1:-$here/../../target/release/boute}"

needs() { command -v "$1" > /dev/null || { echo "clients.sh needs $1: $2" >&2; exit 2; }; }
needs curl "apt-get install curl"
needs python3 "apt-get install python3 python3-venv"
[ -x "$boute" ] || { echo "no program at $boute: cargo build --release, or name another" >&2; exit 2; }

pids=""
temporary=""
leave() {
  # shellcheck disable=SC2086
  kill $pids 2> /dev/null || true
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap leave EXIT
trap 'exit 1' INT TERM
if [ $# -ge 2 ]; then mkdir -p "$2"; folder="$(cd "$2" && pwd)"; else temporary="$(mktemp -d)"; folder="$temporary"; fi
python="$folder/venv/bin/python"

if [ ! -x "$folder/venv/bin/llm-comply" ]; then
  python3 -c 'import ensurepip, venv' 2> /dev/null || { echo "clients.sh needs venv: apt-get install python3-venv" >&2; exit 2; }
  python3 -m venv "$folder/venv"
  "$python" -m pip install --quiet --disable-pip-version-check --retries 5 -r "$here/clients.txt"
fi
node=""
if command -v node > /dev/null && { [ -d "$folder/node_modules/openai" ] ||
  (cd "$folder" && npm install --silent --no-audit --no-fund openai@7.57.0); }; then
  node=yes
  cp "$here/clients.mjs" "$folder/"
fi

# Runs a server and waits until it answers; its words are shown if it does not.
serve() {
  log="$folder/$1.log"; url="$2"; shift 2
  "$@" > "$log" 2>&1 &
  pids="$pids $!"
  for _ in $(seq 300); do
    curl -fs "$url/health" > /dev/null && return
    kill -0 $! 2> /dev/null || break
    sleep 0.2
  done
  echo "FAIL  $1 did not start:"; cat "$log"; exit 1
}
ports="$("$python" -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
print(*(socket.getsockname()[1] for socket in sockets))')"
# shellcheck disable=SC2086
set -- $ports
engine="$here/../../examples/llama_cpp_engine.py"
serve small "http://127.0.0.1:$1" "$python" "$engine" "$folder/small" "$1" 2
serve large "http://127.0.0.1:$2" "$python" "$engine" "$folder/large" "$2" 8
serve exact "http://127.0.0.1:$5" "$python" "$here/conforming_engine.py" "$5"
serve own-name "http://127.0.0.1:$6" "$python" "$here/conforming_engine.py" "$6" 'vendor/"8b"'
url="http://127.0.0.1:$3"
serve boute "$url" "$boute" serve --replica "small=http://127.0.0.1:$1" --replica "large=http://127.0.0.1:$2" \
  --replica "exact=http://127.0.0.1:$5" \
  --replica "renamed=http://127.0.0.1:$6#vendor/\"8b\"" --replica "renamed-llama=http://127.0.0.1:$1#$folder/small/model.gguf" \
  --alias gpt-4o=large --listen "127.0.0.1:$3" --admin "127.0.0.1:$4" --decisions "$folder/decisions.jsonl"

"$python" "$here/clients.py" "$url/v1"
"$python" "$here/renamed.py" "$url/v1"
if [ -n "$node" ]; then (cd "$folder" && node clients.mjs "$url/v1"); else echo "SKIPPED: openai-node cannot be installed here"; fi
stream="$(curl -sN "$url/v1/chat/completions" -H 'content-type: application/json' \
  -d '{"model":"small","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"hello"}]}')"
case "$stream" in
  data:*"data: [DONE]"*) echo "ok    curl -N" ;;
  *) echo "FAIL  curl -N: $stream"; exit 1 ;;
esac
"$folder/venv/bin/llm-comply" -u "$url/v1" -k x -m exact --format openai-chat
echo "all clients pass"
