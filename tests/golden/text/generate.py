#!/usr/bin/env python3
"""Writes the goldens of text/: what transformers and tokenizers say.

    generate.py MODEL_DIR       the folder of SmolLM2-135M-Instruct

Needs transformers and tokenizers, no torch. Every random choice has a fixed seed. The small tokenizers
are trained once: delete a tokenizer.json to train it anew.

strings.jsonl           the texts, one JSON string a line
conversations.jsonl     [[role, content], ...] a line
NAME/encode.jsonl       [i, ids without special tokens, ids with them or null when they are equal]:
                        text i of strings.jsonl
NAME/decode.jsonl       [ids, text]: decode(ids, skip_special_tokens=True)
NAME/chat.jsonl         [i, text, ids]: conversation i in the model's own template
templates/chat.jsonl    [template, i, text, null] or [template, i, null, what it raised], with the special tokens of bytelevel/
decoders/decode.jsonl   [decoder as tokenizer.json has it, [[ids, text], ...]]
"""

import json
import random
import sys
from pathlib import Path

import jinja2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).parent
STRING_COUNT = 1100
SMALL_STEP = 3  # the small tokenizers take every third text

WORDS = """the quick brown fox jumps over a lazy dog queue worker adapter batch token stream deadline
Kafka GPU it's don't we'll I've they're e.g. naïve café Straße Größe señor œuvre fjord Čeština żółw
running Running RUNNING snake_case camelCase kebab-case x86_64 v1.2.3 3.14159 1,234,567 2^10 100% #42
user@example.org https://example.org/a?b=c&d=e#f /usr/local/bin C:\\\\temp TODO(me) foo::bar std->x""".split()
SCRIPTS = {
    "cjk": "我们正在测试分词器的行为今天天气很好你好世界日本語のテキストとカタカナひらがな漢字한국어도있습니다",
    "arabic": "مرحبا بالعالم هذا نص للاختبار ١٢٣٤ شُكْرًا",
    "hebrew": "שלום עולם זה טקסט לבדיקה",
    "cyrillic": "Привет мир это проверка разбора ЁЖИК щука объект",
    "greek": "Γειά σου Κόσμε αυτό είναι δοκιμή ΐΰ",
    "indic": "नमस्ते दुनिया यह परीक्षण है क्षत्रिय தமிழ் உரை ภาษาไทยไม่มีช่องว่าง",
    "combining": "e\u0301a\u0308o\u0302n\u0303 A\u030a\u0301 \u1e9b\u0323 q\u0307\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d",
    "emoji": "😀😂🤣🥲🙏🏽👍🏿❤️‍🔥👨‍👩‍👧‍👦🏳️‍🌈🇩🇪🇯🇵🧑🏾‍🚀☺️✈️#️⃣",
    "symbols": "→←↑↓∀∃∈∑∏√∞≈≠≤≥±×÷°€£¥¢§¶†‡•…‰′″‹›«»“”‘’–—ﬁﬂ½⅓Ⅷ①㎏",
    "rare": "\U00010348\U0001d538\U0001f9ff\U000e0041\u200b\u200c\u200d\u2060\ufeff\u00ad\ufffd\U0010ffff\ue000",
}
CONTROL = "\x00\x01\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x85\u2028\u2029"
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u3000", " " * 17, "\t\t\t", "\r", "\u2009"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "[INST]",
            "<|im_start", "|>", "<|im_start|><|im_end|>", "▁", "<0x0A>", "Ġ", "<repo_name>", "<file_sep>"]
CODE = """def f(x: int) -> str:
    \"\"\"Doc.\"\"\"
\treturn f"{x!r:>10}"  # note

#include <stdio.h>
int main(void) { for (int i = 0; i < 10; ++i) { printf("%d\\n", i * 0x1F); } return 0; }
SELECT a, b FROM t WHERE c >= 3 AND d LIKE '%x_' ORDER BY 1 DESC;
{"key": [1, 2.5e-3, null, true], "nested": {"k\\u00e9y": "v"}}
<div class="a b" id='c'>&amp;&lt;text</div>
| a | b |
|---|---|
$ git log --oneline | head -n 5 && echo "done" > /dev/null 2>&1
""".splitlines(keepends=True)


def fragment(rng):
    """A piece of text of one kind."""
    kind = rng.randrange(10)
    if kind < 3:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))
    if kind == 3:
        script = rng.choice(list(SCRIPTS.values()))
        start = rng.randrange(len(script))
        return script[start:start + rng.randint(1, 14)]
    if kind == 4:
        return rng.choice(SPACES)
    if kind == 5:
        return str(rng.randrange(10 ** rng.randint(1, 18)))
    if kind == 6:
        return rng.choice(CODE)
    if kind == 7:
        return "".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(1, 12)))
    if kind == 8:
        return rng.choice(SPECIALS + list(CONTROL))
    return "".join(character(rng) for _ in range(rng.randint(1, 5)))


def character(rng):
    """Any character of Unicode but surrogates."""
    code = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
    return "x" if 0xD800 <= code < 0xE000 else chr(code)


def make_strings():
    rng = random.Random(20)
    strings = ["", "a", "Hello, world!", "".join(CODE), *SPACES, *SPECIALS, *CONTROL, *WORDS, *SCRIPTS.values()]
    strings += ["a" * 500, " " * 500, "\n" * 100, "9" * 200, "é" * 100, "😀" * 60, "ab" * 250, "-=" * 80]
    strings += ["".join(fragment(rng) for _ in range(150)) for _ in range(3)]
    while len(strings) < STRING_COUNT:
        glue = rng.choice(["", " "])
        strings.append(glue.join(fragment(rng) for _ in range(rng.randint(1, 6))))
    return strings


def make_conversations(strings):
    rng = random.Random(21)
    short = [s for s in strings if len(s) < 120]
    conversations = [[["user", "Hi"]], [["system", "Be brief."], ["user", "Hi"]], [["user", ""]],
                     [["assistant", "I begin."]], [["user", "a"], ["user", "b"]], [["tool", "{}"]],
                     [["user", "  padded \n"], ["assistant", "<think>\nhm\n</think>\n\nyes"], ["user", "why"],
                      ["assistant", "<think>\nhm\n</think>\n\nso"]]]
    while len(conversations) < 110:
        turns = []
        if rng.random() < 0.4:
            turns.append(["system", rng.choice(short)])
        for i in range(rng.randint(1, 5)):
            role = ["user", "assistant"][i % 2] if rng.random() < 0.93 else rng.choice(["user", "tool", "system"])
            turns.append([role, rng.choice(short)])
        conversations.append(turns)
    return conversations


def write_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{path.relative_to(HERE)}: {len(rows)} lines, {path.stat().st_size} bytes")


def train_bytelevel(strings):
    """As Qwen2.5: NFC, a regular expression with a look-ahead, byte-level; with a BOS."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    pattern = r"'(?i:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(strings, trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_tokens([AddedToken("<repo_name>", normalized=False), AddedToken("größe", lstrip=True)])
    t.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", t.token_to_id("<|im_start|>"))])
    t.enable_truncation(16)  # the library must turn both off
    t.enable_padding(length=32)
    return t


def train_sentencepiece(strings):
    """As Llama 2: a leading ▁ for spaces, bytes for unknown characters, <s> in front."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] + [SCRIPTS["cyrillic"]]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, max_token_length=12, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    names += sorted(model["vocab"], key=model["vocab"].get)
    t = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[tuple(m) for m in model["merges"]],
                             unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = trained.normalizer
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


def make_decoders():
    """A vocabulary of tokens that decoders treat specially."""
    names = ["<unk>", "a", "bc", "##d", "##", "x</w>", "</w>", "▁", "▁e", "f▁", "▁▁", " ", " g", "h ", "  ", "", ".", "n't",
             "'s", "<0x41>", "<0xE2>", "<0x82>", "<0xAC>", "<0x20>", "<0xGG>", "<0x+A>", "<0xé>", "�", "Ġ", "Ġi", "Ã", "©", "â", "Ĥ",
             "¬", "ð", "ŁĺĢ", "é€", "é", "<pad>", "|", "😀", "日", "ss", "s", "HH"]
    t = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    t.add_special_tokens(["<unk>"])
    return t


DECODERS = [
    None, decoders.ByteLevel(), decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(),
    decoders.Metaspace(prepend_scheme="never"), decoders.WordPiece(), decoders.WordPiece("##", False),
    decoders.BPEDecoder(), decoders.CTC(), decoders.Strip("H", 1, 0), decoders.Replace("s", "S"),
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 3, 0)]),
    decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("aa", "A")]),
    decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("s+"), "-"), decoders.Strip("a", 1, 0)]),
    decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
    decoders.Sequence([decoders.ByteLevel(), decoders.ByteFallback()]),
    decoders.Sequence([decoders.Metaspace(), decoders.Sequence([decoders.WordPiece(), decoders.BPEDecoder()])]),
]


def decode_rows(tokenizer, seed, count, extra=()):
    """Random ids, uniform and in runs of `extra`, some beyond the vocabulary."""
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size()
    rows = []
    while len(rows) < count:
        ids = []
        for _ in range(rng.randint(1, 6)):
            if extra and rng.random() < 0.5:
                ids += [rng.choice(extra) for _ in range(rng.randint(1, 8))]
            else:
                ids += [rng.randrange(size) for _ in range(rng.randint(1, 8))]
            if rng.random() < 0.1:
                ids.append(size + rng.randrange(1000))
        rows.append([ids, tokenizer.decode(ids, skip_special_tokens=True)])
    return rows


def encode_rows(t, strings, step):
    rows = []
    for i in range(0, len(strings), step):
        bare = t(strings[i], add_special_tokens=False)["input_ids"]
        full = t(strings[i])["input_ids"]
        rows.append([i, bare, None if full == bare else full])
    return rows


def render(t, conversation, template=None):
    messages = [{"role": r, "content": c} for r, c in conversation]
    return t.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def small(name, train, strings, config):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        train(strings).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    for s in strings:
        assert fast(s)["input_ids"] == raw.encode(s).ids, s
    write_lines(folder / "encode.jsonl", encode_rows(fast, strings, SMALL_STEP))
    return raw, fast


def main():
    model_dir = sys.argv[1]
    strings = make_strings()
    conversations = make_conversations(strings)
    write_lines(HERE / "strings.jsonl", strings)
    write_lines(HERE / "conversations.jsonl", conversations)

    model = PreTrainedTokenizerFast.from_pretrained(model_dir)
    auto = AutoTokenizer.from_pretrained(model_dir)
    assert all(auto(s)["input_ids"] == model(s)["input_ids"] for s in strings)
    write_lines(HERE / "smollm2/encode.jsonl", encode_rows(model, strings, 1))
    write_lines(HERE / "smollm2/decode.jsonl", decode_rows(model.backend_tokenizer, 30, 200))
    rows = []
    for i, conversation in enumerate(conversations):
        text = render(model, conversation)
        rows.append([i, text, model(text, add_special_tokens=False)["input_ids"]])
    write_lines(HERE / "smollm2/chat.jsonl", rows)

    raw, fast = small("bytelevel", train_bytelevel, strings, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "other", "template": "wrong"},
                          {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]})
    high = [i for i in range(raw.get_vocab_size()) if not raw.id_to_token(i).isascii()]
    write_lines(HERE / "bytelevel/decode.jsonl", decode_rows(raw, 31, 300, high))
    rows = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for i in range(40):
            try:
                rows.append([path.stem, i, render(fast, conversations[i], template), None])
            except jinja2.exceptions.TemplateError as e:
                rows.append([path.stem, i, None, str(e)])
    write_lines(HERE / "templates/chat.jsonl", rows)

    raw, _ = small("sentencepiece", train_sentencepiece, strings, {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    write_lines(HERE / "sentencepiece/decode.jsonl", decode_rows(raw, 32, 300, range(3, 259)))

    raw = make_decoders()
    (HERE / "decoders").mkdir(exist_ok=True)
    raw.save(str(HERE / "decoders/tokenizer.json"), pretty=False)
    rows = []
    for i, decoder in enumerate(DECODERS):
        if decoder is not None:
            raw.decoder = decoder
        rows.append([json.loads(raw.to_str())["decoder"], decode_rows(raw, 100 + i, 40)])
    write_lines(HERE / "decoders/decode.jsonl", rows)


if __name__ == "__main__":
    main()
