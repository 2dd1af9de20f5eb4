#!/usr/bin/env python3
"""Makes the data of the grids from the sources named in README.md.

usage: make.py SOURCE_FOLDER   (with quality/zeroeval.jsonl.gz, traces/mooncake_conversation.csv.gz, traces/azure2023_conv.csv.gz)
"""
import gzip, io, json, pathlib, random, shutil, sys

source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
names = {
    "llama-3.1-8b-instruct": "llama-3.1-8b",
    "llama-3.1-70b-instruct": "llama-3.1-70b",
    "llama-3.1-405b-instruct": "llama-3.1-405b",
    "gemma-2-2b-it": "gemma-2-2b",
    "gemma-2-9b-it": "gemma-2-9b",
    "gemma-2-27b-it": "gemma-2-27b",
}


def pack(name, lines):
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as out:
        out.write(("\n".join(lines) + "\n").encode())
    (here / name).write_bytes(packed.getvalue())


def lines_of(name):
    return gzip.open(source / name, "rt", encoding="utf-8").read().splitlines()


rows = []
for line in lines_of("quality/zeroeval.jsonl.gz"):
    row = json.loads(line)
    if all(name in row["scores"] for name in names):
        for key in ["scores", "output_tokens"]:
            row[key] = {short: row[key][name] for name, short in names.items()}
        rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
pack("zeroeval.jsonl.gz", rows)

shutil.copyfile(source / "traces/mooncake_conversation.csv.gz", here / "mooncake_conversation.csv.gz")

# Lengths of the chat trace in their order; gaps from a Gamma distribution whose standard deviation is CV times its mean.
CV, RATE = 3.0, 5.5
draw = random.Random(0)
header, *requests = lines_of("traces/azure2023_conv.csv.gz")
bursts, at = [header], 0.0
for request in requests:
    bursts.append(f"{at:.4f},{request.split(',', 1)[1]}")
    at += draw.gammavariate(1 / CV**2, CV**2 / RATE)
pack("bursts.csv.gz", bursts)
