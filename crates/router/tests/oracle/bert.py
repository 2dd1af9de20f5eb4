"""Makes `bert/`, a tiny BERT with random weights, and `bert.json`, embeddings of a few texts by it.

The embeddings are by this script's own reading of BERT (Devlin et al., arXiv 1810.04805) in numpy and double precision: WordPiece,
embeddings, attention over a padded batch with a mask, and the masked mean over the states. Nothing is shared with the library
under test. `bert.py FOLDER TEXT` prints the embedding of a text by any other BERT folder, such as all-MiniLM-L6-v2.

Run: python3 crates/router/tests/oracle/bert.py   (numpy only)
"""

import json
import math
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CONFIG = {
    "model_type": "bert", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 24,
    "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}
WORDS = "the a is what of and how many cats dogs prove that sum two three plus ? . , ! + = ca ##t ##s ##ing ##ed un ##known ##ly".split()
TEXTS = [
    "What is two plus three?",
    "the cats and the dogs",
    "Prove that the SUM of two cats is three dogs, unknowingly!",
    "é cafés ca",
    "",
    "??!!..,, + = +",
    "zebra quux",
    " ".join(["how many cats"] * 20 + ["is that?"]),
    "two three " * 600 + "prove the sum",
]
# What the library reads of a text: see `bert.rs`.
MOST_TOKENS, TAIL_SHARE, HEAD_BYTES, TAIL_BYTES = 256, 4, 3 << 10, 1 << 10


def make():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz" if c not in vocabulary]
    vocabulary += letters + ["##" + c for c in "abcdefghijklmnopqrstuvwxyz" if "##" + c not in vocabulary]
    vocabulary = {token: at for at, token in enumerate(vocabulary)}
    assert len(vocabulary) <= CONFIG["vocab_size"], len(vocabulary)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = {
        "version": "1.0",
        # As published tokenizers have them; whoever encodes one text at a time has to leave them out.
        "truncation": {"max_length": 12, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [{"id": vocabulary[t], "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for t in special],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in ["[CLS]", "[SEP]"]},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    }
    rng = np.random.default_rng(1)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,), "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, rows, columns in [("attention.self.query", hidden, hidden), ("attention.self.key", hidden, hidden),
                                    ("attention.self.value", hidden, hidden), ("attention.output.dense", hidden, hidden),
                                    ("intermediate.dense", inner, hidden), ("output.dense", hidden, inner)]:
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        for name in ["attention.output.LayerNorm", "output.LayerNorm"]:
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (hidden,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (hidden,)
    tensors = {}
    for name, shape in shapes.items():
        scale = 1.0 if name.startswith("embeddings.") else 0.3
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensors[name] = (centre + scale * rng.standard_normal(shape)).astype(np.float16)
    folder = HERE / "bert"
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer) + "\n")
    header, data = {}, b""
    for name, tensor in tensors.items():
        end = len(data) + tensor.nbytes
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


class Bert:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        raw = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        kinds = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
        self.tensors = {}
        for name, entry in json.loads(raw[8:8 + length]).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                values = np.frombuffer(raw[8 + length + start:8 + length + end], kinds[entry["dtype"]])
                self.tensors[name] = values.reshape(entry["shape"]).astype(np.float64)

    def words(self, text):
        word = ""
        for c in unicodedata.normalize("NFD", text).lower():
            if unicodedata.category(c) == "Mn":
                continue
            ascii_sign = 33 <= ord(c) <= 126 and not c.isalnum()
            if c.isspace() or ascii_sign or unicodedata.category(c).startswith("P"):
                if word:
                    yield word
                word = ""
                if not c.isspace():
                    yield c
            else:
                word += c
        if word:
            yield word

    def pieces(self, word):
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.vocabulary:
                    found.append(self.vocabulary[piece])
                    start = end
                    break
            else:
                return [self.vocabulary["[UNK]"]]
        return found

    def ids(self, text):
        data = text.encode()
        if len(data) > HEAD_BYTES + TAIL_BYTES:  # the texts here are ASCII where they are cut
            text = data[:HEAD_BYTES].decode() + " " + data[-TAIL_BYTES:].decode()
        ids = [self.vocabulary["[CLS]"]] + [i for w in self.words(text) for i in self.pieces(w)] + [self.vocabulary["[SEP]"]]
        most = min(MOST_TOKENS, self.config["max_position_embeddings"])
        tail = most // TAIL_SHARE
        return ids if len(ids) <= most else ids[:most - tail] + ids[-tail:]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]

    def linear(self, x, name):
        return x @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]

    def embed(self, texts):
        """Unit vectors of texts, encoded together, padded to the longest."""
        ids = [self.ids(text) for text in texts]
        width = max(map(len, ids))
        mask = np.array([[1.0] * len(row) + [0.0] * (width - len(row)) for row in ids])
        ids = np.array([row + [0] * (width - len(row)) for row in ids])
        t, heads = self.tensors, self.config["num_attention_heads"]
        x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x + t["embeddings.position_embeddings.weight"][:width], "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."
            split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
            q, k, v = (split(self.linear(x, f"{at}attention.self.{name}")) for name in ["query", "key", "value"])
            scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]) + np.where(mask, 0.0, -1e30)[:, None, None, :]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weights / weights.sum(-1, keepdims=True)) @ v
            mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
            x = self.norm(x + self.linear(mixed, at + "attention.output.dense"), at + "attention.output.LayerNorm")
            inner = self.linear(x, at + "intermediate.dense")
            inner = inner * 0.5 * (1.0 + np.vectorize(math.erf)(inner / math.sqrt(2.0)))
            x = self.norm(x + self.linear(inner, at + "output.dense"), at + "output.LayerNorm")
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(Bert(Path(sys.argv[1])).embed(sys.argv[2:]).tolist()))
    else:
        make()
        rows = [{"text": text, "embedding": [round(x, 7) for x in row.tolist()]}
                for text, row in zip(TEXTS, Bert(HERE / "bert").embed(TEXTS))]
        lines = ",\n".join(json.dumps(row) for row in rows)
        (HERE / "bert.json").write_text(f"[\n{lines}\n]\n")
