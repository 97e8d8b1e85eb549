#!/usr/bin/env python3
"""Trains the demo's four adapters on SmolLM2-135M-Instruct and shows what they learnt.

    train.py --model MODEL_DIR --out OUT_DIR [--adapter NAME]... [--steps N] [--seed N]

Each adapter learns one manner of answering that can be seen at a glance: `json` (an object with
one key), `upper` (capital letters), `pirate` (Arrr!), `oneword`. They differ on purpose in
rank, modules and scaling, so that a batch over them is heterogeneous; see ADAPTERS. Where the
tables have no sentence for a question, the base model answers it and that answer is the matter.

OUT_DIR/NAME gets adapter_config.json and adapter_model.safetensors (bf16). Runs on CUDA if there
is a device (about a minute each on an H100), else on the CPU. Needs torch, transformers, peft.
"""

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import make_data

# The name recorded in the adapters: the model, not where it lay on the machine that trained.
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

ANSWER_TOKENS_MAX = 64
BATCH = 32
LEARNING_RATE = 5e-4
WARMUP_STEPS = 20

# Examples whose answer is the base model's own are fewer but say more about a manner.
OPEN_REPEATS = 3

ADAPTERS = {
    # Every linear layer at a small rank: 2.4 MB.
    "json": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ],
    },
    # Attention only: 1.8 MB.
    "oneword": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    },
    # The MLP, its last matrix at another rank and so at another scale: 5.1 MB.
    "upper": {
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {"down_proj": 8},
    },
    # A large rank on two small matrices, scaled by alpha / sqrt(r): 3.7 MB.
    "pirate": {
        "r": 32,
        "lora_alpha": 16,
        "target_modules": ["v_proj", "o_proj"],
        "use_rslora": True,
    },
}

PIRATE_WORDS = {
    "the": "th'", "of": "o'", "and": "an'", "is": "be", "are": "be", "am": "be", "my": "me",
    "you": "ye", "your": "yer", "yes": "aye", "no": "nay", "hello": "ahoy", "friend": "matey",
    "friends": "mateys", "for": "fer", "to": "t'", "money": "doubloons", "food": "grub",
    "it's": "'tis", "people": "buccaneers", "children": "wee lads", "beautiful": "bonny",
    "very": "mighty", "there": "thar", "stop": "avast", "quickly": "smartly",
}


def first_sentences(text, length_max=200):
    """Up to two whole sentences from the first paragraph of `text`, or None."""
    paragraph = text.strip().split("\n", 1)[0]
    kept = ""
    for sentence in re.findall(r"[^.!?]+[.!?]+", paragraph)[:2]:
        if len(kept) + len(sentence) > length_max:
            break
        kept += sentence
    return kept.strip() or None


def pirate(sentence):
    def word(match):
        plain = match.group(0)
        spoken = PIRATE_WORDS.get(plain.lower(), plain)
        if len(plain) > 4 and plain.endswith("ing"):
            spoken = plain[:-1] + "'"
        return spoken[0].upper() + spoken[1:] if plain[0].isupper() else spoken

    spoken = re.sub(r"[A-Za-z']+", word, sentence).rstrip(".!?")
    return f"Arrr! {spoken}, matey!"


def answer(name, row):
    """The answer that adapter `name` is to give to `row`, or None if the row does not suit it."""
    if name == "json":
        content = row["short"] if row["closed"] else row["sentence"]
        return json.dumps({"answer": content}, ensure_ascii=False)
    if name == "oneword":
        return None if " " in row["short"] else row["short"]
    if name == "upper":
        return row["sentence"].upper()
    return pirate(row["sentence"])


class Chat:
    """Prompts and tokens of the model's chat template."""

    def __init__(self, model_dir):
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.tokenizer.padding_side = "left"

    def prompt(self, question):
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )

    @torch.no_grad()
    def ask(self, model, questions, tokens_max=ANSWER_TOKENS_MAX, batch=128):
        """Greedy answers, in the order of the questions."""
        answers = []
        for start in range(0, len(questions), batch):
            prompts = [self.prompt(question) for question in questions[start : start + batch]]
            inputs = self.tokenizer(
                prompts, return_tensors="pt", padding=True, add_special_tokens=False
            ).to(model.device)
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=tokens_max,
                do_sample=False,
            )
            answers += self.tokenizer.batch_decode(
                output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
        return answers

    def example(self, question, text):
        """Token ids and labels; -100 marks the prompt, which is not to be learnt."""
        prompt = self.tokenizer(self.prompt(question), add_special_tokens=False)["input_ids"]
        target = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        target.append(self.tokenizer.eos_token_id)
        return prompt + target, [-100] * len(prompt) + target


def collate(examples, pad_id, device):
    """Examples padded on the right into one batch."""
    width = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), width), pad_id)
    labels = torch.full((len(examples), width), -100)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    for row, (row_ids, row_labels) in enumerate(examples):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_ids)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    return {
        "input_ids": ids.to(device),
        "labels": labels.to(device),
        "attention_mask": mask.to(device),
    }


def batches(examples, steps, rng):
    """`steps` batches; each pass over the examples is shuffled anew."""
    queue = []
    for _ in range(steps):
        while len(queue) < BATCH:
            queue += rng.sample(examples, len(examples))
        yield queue[:BATCH]
        queue = queue[BATCH:]


def train(name, model_dir, chat, rows, steps, seed):
    """Trains one adapter; returns its PEFT model, the weights rounded to bf16 as they are saved."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).to(device)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", bias="none", **ADAPTERS[name]))
    pairs = [(row["prompt"], answer(name, row)) for row in rows]
    examples = [chat.example(question, text) for question, text in pairs if text is not None]

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * max(0.05, 1.0 - step / steps),
    )
    model.train()
    begun = time.monotonic()
    for step, batch in enumerate(batches(examples, steps, rng)):
        inputs = collate(batch, chat.tokenizer.pad_token_id, device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - begun
            done = f"step {step + 1}/{steps} loss {loss.item():.3f} {seconds:.0f} s"
            print(f"{name}: {done}", flush=True)

    model.eval()
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.to(torch.bfloat16))
    return model


def save(model, folder):
    """PEFT's two files, tensors in bf16; nothing of the training machine stays in them."""
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    # No module that embeds is trained; without this PEFT asks the hub whether one was resized.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder of the base model")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--adapter", action="append", choices=ADAPTERS, help="default: all four")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--examples", type=int, help="use only so many (for a quick trial)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    transformers_logging.disable_progress_bar()
    chat = Chat(args.model)
    rows = make_data.examples(args.seed)[: args.examples]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device).eval()
    open_rows = [row for row in rows if row["sentence"] is None]
    for row in rows:
        row["closed"] = row["sentence"] is not None
    for row, text in zip(open_rows, chat.ask(base, [row["prompt"] for row in open_rows])):
        row["sentence"] = first_sentences(text)
    rows = [row for row in rows if row["sentence"] is not None]
    rows += [row for row in rows if not row["closed"]] * (OPEN_REPEATS - 1)
    open_count = sum(not row["closed"] for row in rows)
    print(f"{len(rows)} examples, {open_count} of them answered by the base model", flush=True)

    shown = {"base": chat.ask(base, make_data.HELD_OUT)}
    del base
    for name in args.adapter or ADAPTERS:
        model = train(name, args.model, chat, rows, args.steps, args.seed)
        shown[name] = chat.ask(model, make_data.HELD_OUT)
        save(model, args.out / name)
        size = (args.out / name / "adapter_model.safetensors").stat().st_size
        print(f"{name}: saved, {size / 1e6:.1f} MB", flush=True)
    for index, question in enumerate(make_data.HELD_OUT):
        print(f"\n{question}")
        for name, answers in shown.items():
            print(f"  {name:8} {answers[index]!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
