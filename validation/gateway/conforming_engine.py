#!/usr/bin/env python3
"""An engine that answers /v1/chat/completions as OpenAI's specification has it, each required key included, and says nothing
of use: what a conformance suite then finds wrong through a gateway is the gateway's. With a NAME it knows no other model.
usage: conforming_engine.py PORT [NAME]"""

import http.server
import json
import sys

NAME = sys.argv[2] if len(sys.argv) > 2 else None
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def message(request):
    """The answer, and why it ends: a call of the first tool that is offered, or two words."""
    empty = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
    if request.get("tools"):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": '{"location": "San Francisco"}'}
        return empty | {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}, "tool_calls"
    return empty | {"content": "Hello there"}, "stop"


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, content_type, body):
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200 if self.path == "/health" else 404, "text/plain", b"")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if NAME and request["model"] != NAME:
            return self.reply(404, "application/json", b'{"error": {"message": "no such model"}}')
        answer, finish = message(request)
        base = {"id": "chatcmpl-1", "created": 1, "model": request["model"]}
        choice = {"index": 0, "logprobs": None}
        if not request.get("stream"):
            choice |= {"message": answer, "finish_reason": finish}
            whole = base | {"object": "chat.completion", "choices": [choice], "usage": USAGE}
            return self.reply(200, "application/json", json.dumps(whole).encode())
        base |= {"object": "chat.completion.chunk"}
        pieces = [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " there"}]
        chunks = [base | {"choices": [choice | {"delta": piece, "finish_reason": None}]} for piece in pieces]
        chunks.append(base | {"choices": [choice | {"delta": {}, "finish_reason": finish}]})
        if request.get("stream_options", {}).get("include_usage"):
            chunks.append(base | {"choices": [], "usage": USAGE})
        events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        self.reply(200, "text/event-stream", "".join(f"data: {event}\n\n" for event in events).encode())


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
