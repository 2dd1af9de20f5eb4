#!/usr/bin/env python3
"""Models that engines know by another name (`--replica MODEL=URL#NAME`), by openai-python: asked by theirs, answered by ours.
usage: renamed.py URL   (exits 1 at the first thing that is not so)"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}


def models():
    ids = {model.id for model in client.models.list()}
    assert {"renamed", "renamed-llama"} <= ids and not any("/" in name for name in ids), ids


def chat():
    # This engine refuses any other name than its own, and answers by that.
    answer = client.chat.completions.create(model="renamed", **ASK)
    assert answer.model == "renamed" and answer.choices[0].message.content == "Hello there", answer


def stream():
    chunks = list(client.chat.completions.create(model="renamed", stream=True, **ASK))
    assert {chunk.model for chunk in chunks} == {"renamed"}, chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there", chunks


def llama():
    # llama.cpp answers by the path of its weights.
    answer = client.chat.completions.create(model="renamed-llama", **ASK)
    assert answer.model == "renamed-llama" and answer.usage.completion_tokens > 0, answer
    chunks = list(client.chat.completions.create(model="renamed-llama", stream=True, **ASK))
    assert {chunk.model for chunk in chunks} == {"renamed-llama"}, chunks


for check in (models, chat, stream, llama):
    check()
    print("ok    renamed:", check.__name__, flush=True)
