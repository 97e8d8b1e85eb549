#!/usr/bin/env python3
"""Writes the goldens of text/: what transformers and tokenizers say.

    generate.py MODEL_DIR       the folder of SmolLM2-135M-Instruct

Needs transformers and tokenizers, no torch. Every random choice has a fixed seed. The small tokenizers
are trained once: delete a tokenizer.json to train it anew. Most answers are kept as CRC-32 in eight hex
digits, a few in full, so that a difference can be looked at.

strings.jsonl           the texts, one JSON string a line
conversations.jsonl     [[role, content], ...] a line
NAME/encode.jsonl       line 1: a CRC for each text: of its ids without special tokens, 2^32-1, its ids with them
                        line 2: a CRC for each text: of decode(its ids with special tokens, skip_special_tokens=True)
                        the others: [i, ids without special tokens, ids with them]: text i of strings.jsonl
NAME/decode.jsonl       [ids, text]: decode(ids, skip_special_tokens=True)
templates/chat.jsonl    [template, tokenizer, a CRC of each conversation's text, one of its ids or 0] or, as samples,
                        [template, i, text or null, what it raised or null]; a CRC of what was raised has 255 in front.
                        Today as strftime_now("%d %b %Y") gives it is @TODAY@
configs.jsonl           [tokenizer, tokenizer_config.json, special_tokens_map.json or null,
                        [[text, ids without special tokens, ids with them, decoded], ...]]
decoders/decode.jsonl   [decoder as tokenizer.json has it, [[ids, text], ...]]
"""

import json
import random
import struct
import sys
import tempfile
import zlib
from datetime import datetime
from pathlib import Path

import jinja2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
STRING_COUNT = 2100
SAMPLE_STEP = 70  # of the texts, these are kept with all their ids

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
            "<|im_start", "|>", "<|im_start|><|im_end|>", "▁", "<0x0A>", "Ġ", "<repo_name>", "<file_sep>",
            "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "[/INST]", "[AVAILABLE_TOOLS]", "<think>",
            "[CLS]", "[MASK]", "##a"]
ADDED = ["<tool>", "<end>", "word", "größe", "<|both|>"]  # added tokens with all the flags there are: see added()
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
        return rng.choice(["", " ", "  ", "\n", "a"]) + rng.choice(ADDED + SPECIALS + list(CONTROL)) + rng.choice(["", " ", "\t ", "b"])
    return "".join(character(rng) for _ in range(rng.randint(1, 5)))


def character(rng):
    """Any character of Unicode but surrogates."""
    code = rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)])
    return "x" if 0xD800 <= code < 0xE000 else chr(code)


def make_strings():
    rng = random.Random(20)
    strings = ["", "a", "Hello, world!", "".join(CODE), *SPACES, *SPECIALS, *CONTROL, *WORDS, *SCRIPTS.values()]
    strings += [before + name + after for name in ADDED for before in ("", " ", "x", "x ", " \n") for after in ("", " ", "y", " \t")]
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
    for i in range(90):  # as a user would: turns alternate, no padding
        turns = [["system", rng.choice(short).strip()]] if i % 3 == 0 else []
        turns += [[["user", "assistant"][k % 2], rng.choice(short).strip() or "x"] for k in range(2 * rng.randint(0, 3) + 1)]
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


def added(special):
    """One token of each kind; `special` is one more, with room on both sides."""
    return [AddedToken("<tool>", lstrip=True, normalized=False), AddedToken("<end>", rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=True), AddedToken("größe", normalized=True),
            AddedToken(special, lstrip=True, rstrip=True, normalized=False, special=True)]


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_bytes(strings, pattern, specials, bos=None, normalizer=None, whole=()):
    """A byte-level family; `whole`: words that no merge makes, found by ignore_merges only."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(strings[::3], trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(t.to_str())["model"]
    vocab = model["vocab"]
    for name in whole:
        vocab.setdefault(name, len(vocab))
    t.model = models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], ignore_merges=bool(whole))
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    t.add_tokens(added("<|both|>"))
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        ids = [(bos, t.token_to_id(bos))]
        t.post_processor = processors.Sequence([t.post_processor, processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=ids)])
    return t


def train_llama3(strings):
    return train_bytes(strings, LLAMA3, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                         "<|eot_id|>", "<|eom_id|>"], bos="<|begin_of_text|>",
                       whole=["Ġdeadline", "queue", "ĠÐŁÑĢÐ¸", "123"])


def train_qwen(strings):
    return train_bytes(strings, QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
                       normalizer=normalizers.NFC())


def train_tekken(strings):
    return train_bytes(strings, TEKKEN, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
                       bos="<s>", whole=["ĠKafka", "tokens"])


def metaspace(scheme):
    """As the newer files of Llama 2 and Mistral: no normalizer, ▁ by the pre-tokenizer."""
    def train(strings):
        t = train_sentencepiece(strings)
        t.normalizer = None
        t.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
        strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
        t.add_tokens([AddedToken("[INST]", special=True, normalized=False), AddedToken("[/INST]", special=True, normalized=False)])
        t.add_tokens(added("<|both|>"))
        return t
    return train


def train_unigram(strings):
    """As T5: NFKC, Metaspace, unknown characters stay unknown; </s> behind."""
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    t.decoder = decoders.Metaspace("▁", "always")
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] + [SCRIPTS["cyrillic"]] * 3
    t.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    t.add_tokens(added("<|both|>"))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
    return t


def train_wordpiece(strings):
    """As BERT: accents go, ## inside words."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece("##", cleanup=False)
    t.train_from_iterator(strings[::3], trainers.WordPieceTrainer(
        vocab_size=500, limit_alphabet=250, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    t.add_tokens(added("<|both|>"))
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return t


BOS_EOS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAMILIES = {  # name: (how it is trained, tokenizer_config.json, merges as "a b")
    "metaspace-first": (metaspace("first"), BOS_EOS, False),
    "metaspace-always": (metaspace("always"), BOS_EOS, True),
    "metaspace-never": (metaspace("never"), BOS_EOS, False),
    "llama3": (train_llama3, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                              "eos_token": "<|eot_id|>"}, True),
    "qwen": (train_qwen, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>",
                          "pad_token": "<|endoftext|>", "add_bos_token": False}, False),
    "tekken": (train_tekken, dict(BOS_EOS), False),
    "unigram": (train_unigram, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}, False),
    "wordpiece": (train_wordpiece, {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]"}, False),
}
TEMPLATES = {  # template: the tokenizer that goes with it; the others of templates/ go with bytelevel
    "llama2": "metaspace-first", "llama3": "llama3", "llama31": "llama3", "llama32": "llama3", "mistral01": "sentencepiece",
    "mistral03": "metaspace-first", "nemo": "tekken", "qwen25": "qwen", "qwen3": "qwen", "chatml": "bytelevel",
    "smollm2": "smollm2",
}


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


def crc(data):
    return f"{zlib.crc32(data):08x}"


def words_of(ids):
    return struct.pack(f"<{len(ids)}I", *ids)


def encode_rows(t, strings):
    hashes, decoded, rows = [], [], []
    for i, s in enumerate(strings):
        bare = t(s, add_special_tokens=False)["input_ids"]
        full = t(s)["input_ids"]
        hashes.append(crc(words_of([*bare, 0xFFFFFFFF, *full])))
        decoded.append(crc(t.backend_tokenizer.decode(full, skip_special_tokens=True).encode()))
        if i % SAMPLE_STEP == 0:
            rows.append([i, bare, full])
    return ["".join(hashes), "".join(decoded), *rows]


def render(t, conversation, template=None):
    messages = [{"role": r, "content": c} for r, c in conversation]
    return t.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def small(name, train, strings, config, plain_merges=False):
    """A small tokenizer and all that is said about its texts."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    path = folder / "tokenizer.json"
    if not path.exists():
        form = json.loads(train(strings).to_str())
        if plain_merges:
            form["model"]["merges"] = [" ".join(pair) for pair in form["model"]["merges"]]
        path.write_text(json.dumps(form, ensure_ascii=False, separators=(",", ":")))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    raw = Tokenizer.from_file(str(path))
    raw.no_truncation()
    raw.no_padding()
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    for s in strings:
        assert fast(s)["input_ids"] == raw.encode(s).ids, s
    write_lines(folder / "encode.jsonl", encode_rows(fast, strings))
    return raw, fast


def render_all(name, tokenizer_name, fast, conversations):
    """[template, tokenizer, CRCs of texts, CRCs of ids], and samples."""
    path = HERE / f"templates/{name}.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else None
    texts, ids, samples, failed = [], [], [], 0
    for i, conversation in enumerate(conversations):
        try:
            text = render(fast, conversation, template)
            texts.append(crc(text.encode()))
            messages = [{"role": r, "content": c} for r, c in conversation]
            tokens = fast.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, return_dict=False)
            if "@TODAY@" in text or "[PAD]" in text and tokenizer_name == "bytelevel":
                tokens = []  # ids that change daily, or of a token that transformers adds and the model has no row for
            elif fast.bos_token and fast.bos_token not in json.dumps(conversation):
                assert tokens.count(fast.bos_token_id) == text.count(fast.bos_token)
            ids.append(crc(words_of(tokens)))
            words = None
        except jinja2.exceptions.TemplateError as e:
            assert type(e) is jinja2.exceptions.TemplateError, (name, i, e)
            text, words = None, str(e)
            texts.append(crc(b"\xff" + words.encode()))
            ids.append(crc(b""))
            failed += 1
        if i in (0, 1, 6) or i % 50 == 9 or words and failed == 1:
            samples.append([name, i, text, words])
    print(f"{name}: {len(conversations) - failed} rendered, {failed} raised")
    return [[name, tokenizer_name, "".join(texts), "".join(ids)], *samples]


class Today:
    """Stands for datetime in transformers' strftime_now."""

    @staticmethod
    def now():
        return Today()

    @staticmethod
    def strftime(form):
        return "@TODAY@" if form == "%d %b %Y" else datetime.now().strftime(form)


CONFIGS = [  # tokenizer, tokenizer_config.json, special_tokens_map.json
    ("llama3", {}, None),
    ("llama3", {"bos_token": "<|begin_of_text|>", "add_bos_token": False}, None),
    ("llama3", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True, "add_eos_token": True}, None),
    ("llama3", {"add_bos_token": True}, None),
    ("llama3", {"eos_token": "<|eot_id|>", "add_eos_token": True}, None),
    ("qwen", {"bos_token": "<|endoftext|>", "add_bos_token": True}, None),
    ("qwen", {"eos_token": "<tool>", "additional_special_tokens": ["<end>"]}, None),
    ("qwen", {"added_tokens_decoder": {"3": {"content": "$", "lstrip": True, "rstrip": False, "normalized": False,
                                             "single_word": False, "special": True}}}, {"eos_token": "<tool>"}),
    ("qwen", {}, {"bos_token": {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False,
                                "single_word": False}, "eos_token": "<tool>"}),
    ("qwen", {"bos_token": "<|im_end|>", "add_bos_token": True}, {"bos_token": "<|im_start|>"}),
    ("metaspace-first", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False,
                         "legacy": False}, None),
    ("sentencepiece", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True}, None),
    ("unigram", {"eos_token": "</s>", "add_eos_token": False}, None),
]


def config_rows(strings):
    rows = []
    for name, config, special_map in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "tokenizer.json").write_text((HERE / name / "tokenizer.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
            if special_map is not None:
                (folder / "special_tokens_map.json").write_text(json.dumps(special_map))
            t = PreTrainedTokenizerFast.from_pretrained(folder)
        answers = []
        for s in ["Hello, world!", "", "a<tool> b <end> c", "<|im_start|>x<|im_end|> $y", *strings[300:600:60]]:
            full = t(s)["input_ids"]
            answers.append([s, t(s, add_special_tokens=False)["input_ids"], full,
                            t.backend_tokenizer.decode(full, skip_special_tokens=True)])
        rows.append([name, config, special_map, answers])
    return rows


def main():
    model_dir = sys.argv[1]
    strings = make_strings()
    conversations = make_conversations(strings)
    write_lines(HERE / "strings.jsonl", strings)
    write_lines(HERE / "conversations.jsonl", conversations)

    model = PreTrainedTokenizerFast.from_pretrained(model_dir)
    auto = AutoTokenizer.from_pretrained(model_dir)
    assert all(auto(s)["input_ids"] == model(s)["input_ids"] for s in strings)
    write_lines(HERE / "smollm2/encode.jsonl", encode_rows(model, strings))
    write_lines(HERE / "smollm2/decode.jsonl", decode_rows(model.backend_tokenizer, 30, 200))
    fast = {"smollm2": model}

    raw, fast["bytelevel"] = small("bytelevel", train_bytelevel, strings, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "other", "template": "wrong"},
                          {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]})
    high = [i for i in range(raw.get_vocab_size()) if not raw.id_to_token(i).isascii()]
    write_lines(HERE / "bytelevel/decode.jsonl", decode_rows(raw, 31, 300, high))

    raw, fast["sentencepiece"] = small("sentencepiece", train_sentencepiece, strings, BOS_EOS)
    write_lines(HERE / "sentencepiece/decode.jsonl", decode_rows(raw, 32, 300, range(3, 259)))

    for i, (name, (train, config, plain_merges)) in enumerate(FAMILIES.items()):
        raw, fast[name] = small(name, train, strings, config, plain_merges)
        odd = [k for k in range(raw.get_vocab_size()) if raw.id_to_token(k).startswith("<0x") or not raw.id_to_token(k).isascii()]
        write_lines(HERE / name / "decode.jsonl", decode_rows(raw, 50 + i, 100, odd))
    write_lines(HERE / "configs.jsonl", config_rows(strings))

    chat_template_utils.datetime = Today
    rows = []
    names = sorted({path.stem for path in (HERE / "templates").glob("*.jinja")} | {"smollm2"})
    for name in names:
        tokenizer_name = TEMPLATES.get(name, "bytelevel")
        rows += render_all(name, tokenizer_name, fast[tokenizer_name], conversations)
    write_lines(HERE / "templates/chat.jsonl", rows)

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
