#!/usr/bin/env python3
"""Writes corpus/text: small folders, as fuzz_text.c reads them."""

import json
from pathlib import Path

OUT = Path(__file__).parent / "corpus" / "text"
CHARACTERS = ["a", "b", "c", "Ġ", "Ã", "©", "▁", "1", "2"]
BYTES = [f"<0x{b:02X}>" for b in (0x61, 0xC3, 0xA9, 0x20)]
SPECIALS = ["<unk>", "<s>", "</s>"]
TEXT = "ab <s> cab ab12 é\n  </s>c x"
CHAT = "{% for m in messages %}{{ bos_token }}[{{ m.role | upper }}]{{ m.content.strip()[:9] }}{% endfor %}"


def added(name, index, **flags):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
    return {"id": index, "content": name, **flags}


def bpe(merges, **more):
    names = SPECIALS + CHARACTERS + BYTES + ["".join(m.split(" ") if isinstance(m, str) else m) for m in merges]
    return {"type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": merges, **more}


def put(name, model, config=None, template="", text=TEXT, tokens=None, **parts):
    tokens = [added(n, i) for i, n in enumerate(SPECIALS)] if tokens is None else tokens
    form = {"version": "1.0", "added_tokens": tokens, **parts, "model": model}
    files = [json.dumps(f, ensure_ascii=False, separators=(",", ":")) for f in (form, config or {})]
    (OUT / name).write_bytes("\0".join([*files, template, text, "x" * 3000]).encode())


def bos(*front):
    return {"type": "TemplateProcessing", "single": [*[{"SpecialToken": {"id": f, "type_id": 0}} for f in front],
                                                     {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {f: {"id": f, "ids": [SPECIALS.index(f)], "tokens": [f]} for f in front}}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
    strip = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": True}, "chat_template": CHAT}
    put("bytelevel", bpe(["a b", "Ġ c"], ignore_merges=True), names, normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]}, decoder=byte_level,
        post_processor={"type": "Sequence", "processors": [byte_level, bos("<s>")]})
    put("sentencepiece", bpe([["▁", "a"], ["b", "c"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True), names,
        CHAT.replace("upper", "tojson"), decoder=strip, post_processor=bos("<s>"),
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})
    put("metaspace", bpe(["▁ a"], unk_token="<unk>", byte_fallback=True), {"chat_template": [
        {"name": "default", "template": "{% if tools %}x{% endif %}{{ messages[1]['content'] }}"}]}, decoder=strip,
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False})
    put("unigram", {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                    "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["▁", -1.5], ["a", -2.0], ["ab", -1.25]]},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        normalizer={"type": "NFKC"}, decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})
    put("wordpiece", {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
                      "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "##b": 4, "c": 5}},
        normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                    "lowercase": True},
        pre_tokenizer={"type": "BertPreTokenizer"}, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    put("added", bpe(["a b"]), {"added_tokens_decoder": {"3": {"content": "a", "special": True, "lstrip": True}},
                                "extra_special_tokens": ["c"]},
        "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index %}{% endfor %}"
        "{% macro f(x) %}<{{ x | trim }}>{% endmacro %}{{ f(ns.n) }}{{ messages | map(attribute='role') | join(',') }}",
        tokens=[added("<unk>", 0, lstrip=True), added("<s>", 1, rstrip=True, special=False),
                added("</s>", 2, single_word=True, normalized=True), added("cab", 16, normalized=True, special=False)],
        normalizer={"type": "Lowercase"}, pre_tokenizer={"type": "Whitespace"})
    put("template", bpe([]), {"chat_template": "{{ raise_exception('no ' ~ messages | tojson) }}", "pad_token": "</s>"},
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                 "pad_token": "<unk>"})


if __name__ == "__main__":
    main()
