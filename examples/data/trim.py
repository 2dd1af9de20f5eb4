#!/usr/bin/env python3
"""Makes the data of the examples from the sources named in README.md.

usage: trim.py SOURCE_FOLDER   (with quality/mmlu_pro.jsonl.gz and traces/azure2023_*.csv.gz)
"""
import gzip, io, json, pathlib, shutil, sys

source, here = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
names = {"llama-3.1-8b-instruct": "llama-3.1-8b", "llama-3.1-70b-instruct": "llama-3.1-70b"}

lines = []
for line in gzip.open(source / "quality/mmlu_pro.jsonl.gz", "rt", encoding="utf-8"):
    row = json.loads(line)
    if all(name in row["scores"] for name in names):
        row["scores"] = {short: row["scores"][name] for name, short in names.items()}
        row["output_tokens"] = {short: row["output_tokens"][name] for name, short in names.items()}
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
packed = io.BytesIO()
with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as out:
    out.write(("\n".join(lines) + "\n").encode())
(here / "mmlu_pro_llama.jsonl.gz").write_bytes(packed.getvalue())
for trace in ["azure2023_conv", "azure2023_code"]:
    shutil.copyfile(source / f"traces/{trace}.csv.gz", here / f"{trace}.csv.gz")
