"""Tunes the flags of a real llama.cpp server by live measurement, through `boute optimize`.

    pip install xllamacpp gguf numpy
    python3 examples/tune_llama_server.py --boute target/release/boute --evaluations 30

Every evaluation starts a server with the flags to be tried, sends it concurrent requests and measures the 95th percentile of their
latency and the tokens per second; a server that does not start is told as failed. Without --model a small model with random weights is
made: its answers are noise, its speed is real.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONCURRENCY, REQUESTS, PROMPT_BYTES, ANSWER_TOKENS = 8, 16, 200, 12
MOST_RSS_MIB = 160

SPACE = {
    "space": [
        {"name": "threads", "type": "int", "low": 1, "high": 4},
        {"name": "parallel", "type": "ordered", "values": [1, 2, 4, 8]},
        {"name": "batch", "type": "ordered", "values": [32, 64, 128, 256, 512, 1024, 2048]},
        {"name": "ubatch", "type": "ordered", "values": [16, 32, 64, 128, 256, 512]},
        {"name": "context", "type": "ordered", "values": [2048, 4096, 8192, 16384, 32768]},
        {"name": "cache_prompt", "type": "cat", "values": [False, True]},
    ],
    "objectives": ["p95_latency_s", "minus_tokens_per_s"],
    "constraints": ["spare_rss_mib"],
    "initial": 10,
    "seed": 1,
}


def serve(model, port, flags):
    """One llama.cpp server; returns when it is told to end."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = port
    params.n_parallel = flags["parallel"]
    params.n_batch = flags["batch"]
    params.n_ubatch = flags["ubatch"]
    params.n_ctx = flags["context"]
    params.cache_prompt = flags["cache_prompt"]
    params.cpuparams.n_threads = flags["threads"]
    params.cpuparams_batch.n_threads = flags["threads"]
    server = xllamacpp.Server(params)
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    while server and not done.wait(0.2):
        pass


def make_model(path):
    """A llama model of random weights whose words are single bytes."""
    import gguf
    import numpy

    width, layers, heads, inner = 256, 4, 8, 704
    random = numpy.random.default_rng(1)
    matrix = lambda rows, columns: (random.standard_normal((rows, columns)) * 0.05).astype(numpy.float16)
    kind = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581"]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256 + [kind.NORMAL]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    ones = numpy.ones(width, numpy.float32)
    shapes = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width), "attn_output": (width, width),
              "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    writer.add_tensor("token_embd.weight", matrix(len(tokens), width))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", matrix(len(tokens), width))
    for layer in range(layers):
        for norm in ["attn_norm", "ffn_norm"]:
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def request(port, number):
    """Seconds and tokens of one answer."""
    prompt = f"{number} " + "word " * PROMPT_BYTES
    body = {"prompt": prompt[:PROMPT_BYTES], "n_predict": ANSWER_TOKENS, "ignore_eos": True}
    call = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    begin = time.monotonic()
    with urllib.request.urlopen(call, timeout=60) as answer:
        tokens = json.load(answer)["tokens_predicted"]
    return time.monotonic() - begin, tokens


def measure(model, flags):
    """Objectives and constraints with these flags; None if the server does not work with them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--model", model, "--port", str(port), "--serve", json.dumps(flags)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                if server.poll() is not None:
                    return None
                time.sleep(0.1)
        request(port, 0)
        begin = time.monotonic()
        with ThreadPoolExecutor(CONCURRENCY) as clients:
            answers = list(clients.map(lambda number: request(port, number), range(REQUESTS)))
        elapsed = time.monotonic() - begin
        status = Path(f"/proc/{server.pid}/status").read_text()
        rss = int(status.split("VmHWM:")[1].split()[0]) / 1024
        latencies = sorted(seconds for seconds, _ in answers)
        return {
            "objectives": {
                "p95_latency_s": latencies[int(0.95 * (len(latencies) - 1))],
                "minus_tokens_per_s": -sum(tokens for _, tokens in answers) / elapsed,
            },
            "constraints": {"spare_rss_mib": MOST_RSS_MIB - rss},
        }
    except OSError:
        return None
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--boute", default="target/release/boute")
    parser.add_argument("--model")
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--port", type=int)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.model, args.port, json.loads(args.serve))
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or f"{folder}/small.gguf"
        if not args.model:
            make_model(model)
        space = Path(folder, "space.json")
        space.write_text(json.dumps(SPACE))
        tuner = subprocess.Popen(
            [args.boute, "optimize", "--space", str(space)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def say(line):
            tuner.stdin.write(json.dumps(line) + "\n")
            tuner.stdin.flush()
            answer = json.loads(tuner.stdout.readline())
            if "error" in answer:
                sys.exit(answer["error"])
            return answer

        defaults = {"threads": 2, "parallel": 4, "batch": 2048, "ubatch": 512, "context": 4096, "cache_prompt": True}
        usual = measure(model, defaults)
        print("with usual flags", usual, flush=True)
        for number in range(args.evaluations):
            candidate = say({"ask": 1})["candidates"][0]
            result = measure(model, candidate["x"])
            told = {"id": candidate["id"], **(result or {"failed": True})}
            answer = say({"tell": [told]})
            print(number, candidate["x"], result and result["objectives"], f"HV {answer['hypervolume']:.3f}", flush=True)
        for entry in answer["front"]:
            print("front", entry["x"], entry["objectives"], entry["constraints"])
        tuner.stdin.close()
        tuner.wait()


if __name__ == "__main__":
    main()
