#!/usr/bin/env python3
"""llama.cpp's server on the CPU with a small model of random weights: a real engine to try `boute` on, no GPU, no download
of models. Needs `pip install xllamacpp gguf numpy`.  usage: llama_cpp_engine.py FOLDER PORT [LAYERS]

Writes FOLDER/model.gguf (20 MB) and FOLDER/config.json (its shape, for `boute profile --config`), then serves.
"""

import json
import pathlib
import signal
import sys
import threading

import gguf
import numpy
import xllamacpp

CONTEXT = 4096
SHAPE = {
    "model_type": "llama",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 384,
    "max_position_embeddings": CONTEXT,
    "torch_dtype": "float16",
}


def vocabulary():
    """(text, type) of each token: control, bytes, printable characters, padding."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [("\u2581", kinds.NORMAL)] + [(chr(code), kinds.NORMAL) for code in range(33, 127)]
    padding = SHAPE["vocab_size"] - len(tokens)
    return tokens + [(f"<pad{index}>", kinds.UNUSED) for index in range(padding)]


def write_model(path):
    """A llama of random weights, 16 bits each."""
    hidden, ffn, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    heads, kv_heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    kv = hidden // heads * kv_heads
    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random-llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    texts, kinds = zip(*vocabulary())
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(texts))
    writer.add_token_scores([-float(index) for index in range(len(texts))])
    writer.add_token_types(list(kinds))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")

    def matrix(name, rows, columns, scale=1):
        writer.add_tensor(name, (scale * random.normal(0, 0.02, (rows, columns))).astype(numpy.float16))

    def norm(name):
        writer.add_tensor(name, numpy.ones(hidden, numpy.float32))

    matrix("token_embd.weight", SHAPE["vocab_size"], hidden)
    # Characters win over bytes and ends: an answer can be read, and is as long as was asked.
    readable = numpy.array([[25 if kind == gguf.TokenType.NORMAL else 1] for kind in kinds])
    matrix("output.weight", SHAPE["vocab_size"], hidden, readable)
    norm("output_norm.weight")
    for layer in range(layers):
        of = f"blk.{layer}."
        norm(of + "attn_norm.weight")
        norm(of + "ffn_norm.weight")
        matrix(of + "attn_q.weight", hidden, hidden)
        matrix(of + "attn_k.weight", kv, hidden)
        matrix(of + "attn_v.weight", kv, hidden)
        matrix(of + "attn_output.weight", hidden, hidden)
        matrix(of + "ffn_gate.weight", ffn, hidden)
        matrix(of + "ffn_up.weight", ffn, hidden)
        matrix(of + "ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path, port):
    """Until SIGTERM or Ctrl-C."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.port = port
    parameters.n_parallel = 4
    # Its HTTP server grows threads too late for connections that come at once: those wait until an idle one ends, 5 s.
    parameters.n_threads_http = 64
    parameters.n_ctx = 4 * CONTEXT
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.use_jinja = True
    server = xllamacpp.Server(parameters)
    print("listening", server.listening_address, flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(0.2):
        pass


if __name__ == "__main__":
    folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        SHAPE["num_hidden_layers"] = int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE, indent=1))
    write_model(folder / "model.gguf")
    serve(folder / "model.gguf", port)
