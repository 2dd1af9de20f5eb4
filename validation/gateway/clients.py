#!/usr/bin/env python3
"""What Python programs do with an OpenAI endpoint: openai-python, synchronous and not, and LangChain.
usage: clients.py URL   (exits 1 at the first thing that is not as it is with OpenAI)"""

import asyncio
import sys

import openai
from langchain_openai import ChatOpenAI

URL = sys.argv[1]
client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
    },
}


def models():
    assert {model.id for model in client.models.list()} >= {"small", "large", "gpt-4o"}
    assert client.models.retrieve("small").id == "small"


def chat():
    for model in ("small", "large", "gpt-4o"):
        answer = client.chat.completions.create(model=model, **ASK)
        assert answer.choices[0].finish_reason in ("length", "stop") and answer.usage.completion_tokens > 0


def what_was_chosen():
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o", **ASK)
    assert raw.headers["x-boute-model"] == "large" and raw.headers["x-boute-reason"] == "alias"
    assert raw.parse()._request_id.startswith("boute-")


def stream():
    chunks = list(client.chat.completions.create(model="small", stream=True, **ASK))
    assert len(chunks) > 1 and all(chunk.choices for chunk in chunks), "no chunk without choices unless asked for"
    counted = list(
        client.chat.completions.create(
            model="small", stream=True, stream_options={"include_usage": True}, **ASK
        )
    )
    assert counted[-1].choices == [] and counted[-1].usage.completion_tokens > 0


def stream_helper():
    with client.chat.completions.stream(model="large", **ASK) as events:
        kinds = {event.type for event in events}
        assert {"chunk", "content.delta"} <= kinds, kinds


def logprobs():
    answer = client.chat.completions.create(model="small", logprobs=True, top_logprobs=2, **ASK)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def tools():
    assert client.chat.completions.create(model="small", tools=[TOOL], **ASK).choices


def json_schema():
    asked = dict(ASK, max_tokens=60)
    answer = client.chat.completions.create(model="small", response_format=SCHEMA, **asked)
    assert answer.choices[0].message.content.lstrip().startswith("{")


def completions():
    assert client.completions.create(model="small", prompt="hello", max_tokens=4).choices[0].text is not None


def responses():
    assert client.responses.create(model="small", input="hello", max_output_tokens=16).status is not None


def errors():
    for call, error in (
        (lambda: client.chat.completions.create(model="none", **ASK), openai.NotFoundError),
        (lambda: client.chat.completions.create(model="small", messages=[]), openai.BadRequestError),
        (lambda: client.chat.completions.create(model="small", messages=ASK["messages"], temperature="x"), openai.APIStatusError),
    ):
        try:
            call()
        except error as caught:
            assert caught.body["message"] and caught.request_id, caught
        else:
            raise AssertionError(f"no {error.__name__}")


def many_at_once():
    async def run():
        asynchronous = openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
        asks = [asynchronous.chat.completions.create(model=name, **ASK) for name in ["small", "large"] * 16]
        return await asyncio.gather(*asks)

    assert len(asyncio.run(run())) == 32


def feedback():
    raw = client.chat.completions.with_raw_response.create(model="small", **ASK)
    told = {"request_id": raw.headers["x-request-id"], "score": 0.5}
    assert client.post("/feedback", body=told, cast_to=object)["model"] == "small"


def langchain():
    chat = ChatOpenAI(base_url=URL, api_key="none", model="small", max_tokens=6, max_retries=0)
    assert chat.invoke("hello").usage_metadata["output_tokens"] > 0
    assert len(list(chat.stream("hello"))) > 1
    assert len(chat.batch(["hello", "world"])) == 2


for check in (
    models, chat, what_was_chosen, stream, stream_helper, logprobs, tools, json_schema, completions, responses,
    errors, many_at_once, feedback, langchain,
):
    check()
    print("ok   ", check.__name__, flush=True)
print(f"openai-python {openai.__version__}")
