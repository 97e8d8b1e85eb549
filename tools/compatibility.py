#!/usr/bin/env python3
"""Prints docs/COMPATIBILITY.md: what is exact and what is refused, from what the tests hold the
program to.

    tools/compatibility.py              the page; `make docs` writes it, a test compares it

It reads tests/golden: the goldens (test_golden, test_smollm2), bad.json and the adapters that it
names (test_adapter), published_configs.json and bad_configs.json (test_config). It fails where a kind of adapter is neither
exact somewhere nor refused. The standard library is enough for it.
"""

import json
import re
import struct
import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden"
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
TOKENIZER_VOCAB = 320  # of the tiny models

STANDS_FOR = {
    "tiny-llama": "SmolLM2, TinyLlama",
    "tiny-llama2": "Llama 2",
    "tiny-llama3": "Llama 3.1",
    "tiny-llama32": "Llama 3.2",
    "tiny-linear": "long-context tunes of Llama",
    "tiny-mha": "Llama 2, one layer",
    "tiny-mistral": "Mistral 7B v0.1",
    "tiny-nemo": "Mistral v0.2 and later, Nemo",
    "tiny-qwen2": "Qwen2, Qwen2.5 above 3B",
    "tiny-qwen25": "Qwen2.5 up to 3B; with a window in all layers",
    "tiny-qwen3": "Qwen3 up to 4B",
    "tiny-qwen3-untied": "Qwen3 above 4B",
}


def read(path):
    return json.loads(path.read_text())


def tensors_of(path):
    """name → dtype"""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    return {k: v["dtype"] for k, v in header.items() if k != "__metadata__"}


class Adapter:
    def __init__(self, folder):
        self.config = read(folder / "adapter_config.json")
        self.tensors = tensors_of(folder / "adapter_model.safetensors")

    def has(self, field):
        return bool(self.config.get(field))

    def names(self, pattern):
        return any(re.search(pattern, name) for name in self.tensors)

    def modules(self):
        return {m for m in MODULES if self.names(rf"\.{m}\.lora_A")}

    def lists_more(self):
        listed = self.config.get("target_modules")
        return isinstance(listed, list) and bool(MODULES & set(listed) - self.modules())


def target(kind):
    def test(adapter):
        modules = adapter.config.get("target_modules")
        if isinstance(modules, str):
            return kind == ("all-linear" if modules == "all-linear" else "regex")
        return kind == "list"

    return test


def field(name):
    return lambda adapter: adapter.has(name)


def tensor(pattern):
    return lambda adapter: adapter.names(pattern)


# What it is called, how an adapter of the kind is known, and the entry of bad.json that refuses it
# where it is not supported.
KINDS = (
    ("LoRA, scale alpha / r", lambda a: not a.has("use_rslora"), None),
    ("`use_rslora`: alpha / √r", field("use_rslora"), None),
    ("`rank_pattern`", field("rank_pattern"), None),
    ("`alpha_pattern`", field("alpha_pattern"), None),
    ("`target_modules`: a list", target("list"), None),
    ("`target_modules`: a regex", target("regex"), None),
    ('`target_modules`: "all-linear"', target("all-linear"), None),
    ("`layers_to_transform`", field("layers_to_transform"), None),
    ("`exclude_modules`", field("exclude_modules"), None),
    ("modules listed without tensors", Adapter.lists_more, None),
    ("tensors in F32", lambda a: "F32" in a.tensors.values(), None),
    ("tensors in F16", lambda a: "F16" in a.tensors.values(), None),
    ("tensors in BF16", lambda a: "BF16" in a.tensors.values(), None),
    ("names with `.default.`", tensor(r"\.default\."), None),
    ("`lora_bias`", field("lora_bias"), None),
    ("LoRA on `embed_tokens`", tensor("embed_tokens.lora_"), None),
    ("LoRA on `lm_head`", tensor("lm_head.lora_"), None),
    ("copies of these that equal the base's", tensor(r"\.base_layer\.weight"), None),
    ("`ensure_weight_tying`", field("ensure_weight_tying"), "ensure-weight-tying"),
    ("`use_dora`", field("use_dora"), "use-dora"),
    ("`modules_to_save`", field("modules_to_save"), "modules-to-save"),
    ("`trainable_token_indices`", field("trainable_token_indices"), "trainable-token-indices"),
    ("`bias` other than none", lambda a: a.config.get("bias", "none") != "none", "bias-all"),
)


# ---- models ------------------------------------------------------------------------------------


def rope_words(config):
    for form in ("rope_scaling", "rope_parameters"):
        rope = config.get(form)
        if rope:
            kind = rope.get("rope_type") or rope.get("type")
            return f"{form} {kind}"
    return "rope_theta" if "rope_theta" in config else "rope_theta absent"


def model_words(folder):
    """What of a config.json is not the same for all."""
    config = read(folder / "config.json")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    words = ["MHA" if kv_heads == heads else f"{heads // kv_heads} heads a KV head"]
    head_dim = config.get("head_dim")
    if head_dim and head_dim * heads != config["hidden_size"]:
        words.append("head_dim × heads ≠ hidden_size")
    words.append("tied" if config.get("tie_word_embeddings") else "untied")
    words.append(rope_words(config))
    sliding = "sliding_attention" in config.get("layer_types", ())
    always = config["architectures"][0].startswith("Mistral")
    if config.get("sliding_window") and (always or sliding or config.get("use_sliding_window")):
        words.append(f"window {config['sliding_window']}")
    generation = folder / "generation_config.json"
    stops = read(generation).get("eos_token_id") if generation.exists() else None
    if isinstance(stops, list):
        words.append(f"{len(stops)} eos tokens")
    if (folder / "model.safetensors.index.json").exists():
        words.append("shards")
    if config["vocab_size"] > TOKENIZER_VOCAB:
        words.append("padded vocabulary")
    tensors = {}
    for file in folder.glob("model*.safetensors"):
        tensors |= tensors_of(file)
    if any(name.endswith("inv_freq") for name in tensors):
        words.append("rotary_emb.inv_freq left over")
    dtypes = {dtype for name, dtype in tensors.items() if not name.endswith("inv_freq")}
    return ", ".join([*words, *sorted(dtypes)])


def count(number, what):
    return f"{number} {what}" + ("" if number == 1 else "s")


class Family:
    def __init__(self, folder):
        self.name = folder.name
        self.architecture = read(folder / "model/config.json")["architectures"][0]
        self.words = model_words(folder / "model")
        self.cases = read(folder / "golden.json")["cases"]
        self.prompts = sum(len(case["prompts"]) for case in self.cases)
        names = [case["adapter"] for case in self.cases if case["adapter"]]
        self.adapters = {name: Adapter(folder / "adapters" / name) for name in names}


def print_models(families):
    print("| model in tests/golden | stands for | architecture | config.json, weights | exact |")
    print("|---|---|---|---|---|")
    for f in families:
        exact = f"{count(f.prompts, 'prompt')}, base and {count(len(f.adapters), 'adapter')}"
        print(f"| {f.name} | {STANDS_FOR.get(f.name, '')} | {f.architecture} | {f.words} | {exact} |")
    files = sorted((GOLDEN / "smollm2").glob("*.json"))
    prompts = sum(len(case["prompts"]) for file in files for case in read(file)["cases"])
    exact = f"{count(prompts, 'prompt')}, base and {count(len(files) - 1, 'adapter')}"
    print(f"| smollm2 | SmolLM2-135M-Instruct itself | LlamaForCausalLM | as published | {exact} |")


# ---- tables ------------------------------------------------------------------------------------


def escape(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def words_of(one):
    return " … ".join(f"`{escape(word)}`" for word in one["words"])


def cell(families, architecture, test):
    found = [
        f"{family.name}/{name}"
        for family in families
        if family.architecture == architecture
        for name, adapter in family.adapters.items()
        if test(adapter)
    ]
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"exact: {found[0]}{more}"


def print_matrix(families, bad):
    print("| adapter | " + " | ".join(ARCHITECTURES) + " |")
    print("|---|" + "---|" * len(ARCHITECTURES))
    for name, test, refused_as in KINDS:
        cells = [cell(families, architecture, test) for architecture in ARCHITECTURES]
        if not any(cells):
            if refused_as not in bad:
                sys.exit(f"{name}: neither a golden nor in bad.json; say which it is")
            refused = f"refused: {words_of(bad[refused_as])}"
            cells = [refused] * len(ARCHITECTURES)
        elsewhere = next(a for a, c in zip(ARCHITECTURES, cells, strict=True) if c)
        cells = [c or f"as {elsewhere}" for c in cells]
        print(f"| {name} | " + " | ".join(cells) + " |")


def bad_what(one, plain):
    """The fields in which a bad adapter's config differs from the plain one."""
    path = GOLDEN / "tiny-llama/bad" / one["adapter"] / "adapter_config.json"
    try:
        config = read(path)
    except (OSError, ValueError):
        return ""
    if not isinstance(config, dict):
        return ""
    changed = {k: v for k, v in config.items() if plain.get(k) != v}
    return ", ".join(f"`{escape(f'{k}: {json.dumps(v)}')}`" for k, v in changed.items())


def print_bad(manifest, error):
    plain = read(GOLDEN / "tiny-llama/bad/nan/adapter_config.json")
    print("| in tests/golden/tiny-llama/bad | config | the message says |")
    print("|---|---|---|")
    for one in manifest:
        if one["error"] == error:
            print(f"| {one['adapter']} | {bad_what(one, plain)} | {words_of(one)} |")


def print_bad_configs():
    print("| config.json | field | the message says |")
    print("|---|---|---|")
    for one in read(GOLDEN / "bad_configs.json"):
        config = ", ".join(f"{k}: {json.dumps(v)}" for k, v in one["config"].items())
        print(f"| `{escape(config)}` | {one['field']} | `{escape(one['words'])}` |")


INTRO = """\
# Compatibility

Written by `tools/compatibility.py` from what the tests check (`make docs`); do not edit.

**Exact** means: on the CPU device, the logits after the prompt are those of transformers and PEFT
in float32 within 0.1% of the largest (measured: some 10⁻⁶), and 64 greedy tokens are the same.
tests/golden/generate.py made the goldens and held them to a NumPy float64 forward pass from the
files (tests/golden/reference.py). **Refused** means: an error that names the field or tensor; of a
model when the worker starts, of an adapter for its own jobs. Nothing is ignored that would change
the output.

On a GPU, which computes in F16 or BF16: over the positions of a golden's prompt and answer, the mean
error against float32 is at most 1.5 times that of transformers and PEFT in the same type
(tests/gpu/test_golden.c, tests/golden/errors16.py).

## Models
"""

MODELS = """
- `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters` (5) are read; given twice,
  they must agree. Types: default, linear, llama3.
- The dtype of each tensor counts (F32, F16, BF16), not `dtype` or `torch_dtype`.
- `vocab_size` may exceed the tokenizer's: padding rows are rows like others.
- Stop tokens are the union of `eos_token_id` in config.json and generation_config.json; the latter's
  temperature, top_p and top_k are the defaults of a job.
- A sliding window is the same in all layers: Mistral's `sliding_window` (absent: 4096, as in
  transformers; null: none), Qwen's where `use_sliding_window` with `max_window_layers` or
  `layer_types` gives it to every layer or to none.
- Mistral and Qwen must give `num_key_value_heads`, Qwen3 `head_dim`: transformers' defaults for
  them are those of one size of model.
- A GPU computes in the checkpoint's type, in BF16 where that is F32. It takes head_dim 32, 64, 80, 96
  and 128, and `hidden_size` and `intermediate_size` that are multiples of 8.

### Refused
"""

ADAPTERS = """
## Adapters

By what decides how an adapter is computed; an adapter is of several kinds at once. Ranks are 1 to
512, by module and layer. Adapters are converted the same way for all architectures; where one has no
golden of a kind of its own, the cell names the architecture that has.
"""

REFUSED = """
### Refused: not supported

Whatever the architecture; with error `unsupported_adapter`.
"""

DAMAGED = """
### Refused: damaged, incomplete or of another model

With error `bad_adapter`.
"""

TEXT = """
## Text

Token ids, decoded text and rendered prompts are those of transformers 5: tests/golden/text/generate.py.
Decoding is incremental, with whole characters only; stop strings may begin anywhere in a token.

| tokenizer in tests/golden/text | stands for | exact |
|---|---|---|"""

TOKENIZERS = {
    "smollm2": "SmolLM2-135M-Instruct itself",
    "bytelevel": "byte-level BPE, NFC; a tokenizer.json that cuts and pads, which is turned off",
    "llama3": "Llama 3 to 3.2: digits by threes, ignore_merges, BOS by the post-processor",
    "qwen": "Qwen2.5, Qwen3: NFC, single digits, no BOS",
    "tekken": "Mistral Nemo",
    "sentencepiece": "Llama 2, Mistral as they were: normalizer Prepend and Replace, byte fallback",
    "metaspace-first": "the same as they are now: Metaspace, prepend_scheme first",
    "metaspace-always": "prepend_scheme always",
    "metaspace-never": "prepend_scheme never",
    "unigram": "T5: Unigram, NFKC",
    "wordpiece": "BERT: WordPiece",
}

TEMPLATES = """
Merges are read as pairs and as "a b"; added tokens with lstrip, rstrip, single_word and normalized. Special
tokens come from tokenizer.json, tokenizer_config.json or special_tokens_map.json; as in transformers 5,
add_bos_token and add_eos_token change nothing beside a tokenizer.json. One that the vocabulary lacks is not
added: the model has no row for it. A prompt gets BOS from the post-processor, a chat from its template.

Chat templates: chat_template.jinja, else `chat_template` of tokenizer_config.json, a text or the list's
entry "default". Tools and documents are none."""

TEMPLATE_LIMITS = """
A template that raises, or does what the engine lacks, rejects the job with the template's or the engine's
words. Known to fail: `'%s' % x` (the filter `format` works), slices backwards over nothing, as
`''[::-1]`. Known to differ: `~` writes None, True and False in lower case; `[a:0:-1]` includes
the first item.
"""


def lines_of(path):
    """A file of JSON lines; a text in them may hold what Python takes for a line's end."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def print_text():
    folder = GOLDEN / "text"
    texts = len(lines_of(folder / "strings.jsonl"))
    print(TEXT)
    for name, meaning in TOKENIZERS.items():
        if len(lines_of(folder / name / "encode.jsonl")[0]) != 8 * texts:
            sys.exit(f"text/{name}: not all texts have an answer")
        print(f"| {name} | {meaning} | {texts} texts |")
    print(TEMPLATES)
    names = [row[0] for row in lines_of(folder / "templates/chat.jsonl") if isinstance(row[1], str)]
    talks = len(lines_of(folder / "conversations.jsonl"))
    print(f"Exact over {talks} conversations, what they raise included, with each of {len(names)} "
          f"templates written for the constructs of their families: {', '.join(names)}.")  # fmt: skip
    print(TEMPLATE_LIMITS, end="")


def main():
    families = [Family(path.parent) for path in sorted(GOLDEN.glob("tiny-*/golden.json"))]
    tested = (GOLDEN.parent / "unit/model/test_golden.c").read_text()
    for family in families:
        if family.architecture not in ARCHITECTURES:
            sys.exit(f"{family.name}: {family.architecture} has no column")
        if f'"{family.name}"' not in tested:
            sys.exit(f"{family.name}: no test runs it: test_golden.c")
    families.sort(key=lambda f: (ARCHITECTURES.index(f.architecture), f.name))
    manifest = read(GOLDEN / "tiny-llama/bad.json")
    print(INTRO)
    print_models(families)
    names = [one["name"] for one in read(GOLDEN / "published_configs.json")]
    print(f"\nThe config.json and generation_config.json of these are read as they should be: "
          f"{', '.join(names)}.")  # fmt: skip
    print(MODELS)
    print_bad_configs()
    print(ADAPTERS)
    print_matrix(families, {one["adapter"]: one for one in manifest})
    print(REFUSED)
    print_bad(manifest, "unsupported_adapter")
    print(DAMAGED)
    print_bad(manifest, "bad_adapter")
    print_text()


if __name__ == "__main__":
    main()
