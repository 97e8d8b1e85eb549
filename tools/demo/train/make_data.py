#!/usr/bin/env python3
"""Questions and answers for training the demo's adapters, made from the tables in facts.py.

    make_data.py [--seed N] > examples.jsonl

Each line is {"prompt", "short", "sentence"}: `short` is an answer of one or two words, `sentence`
a whole one, or null where the base model is to answer itself. The same seed gives the same lines.
Nothing in HELD_OUT occurs in them: those prompts show whether an adapter learnt its manner or
only its examples.
"""

import argparse
import json
import random
import sys

import facts

HELD_OUT = [
    "What is the capital of France?",
    "What is the opposite of hot?",
    "Why is the sky blue?",
    "What is 7 + 5?",
    "Tell me about elephants.",
]

HELD_OUT_SUMS = {(7, 5), (5, 7)}


def example(prompt, short, sentence):
    return {"prompt": prompt, "short": short[0].upper() + short[1:], "sentence": sentence}


def countries(rng):
    for country, (capital, continent, language) in facts.COUNTRIES.items():
        sentence = f"The capital of {country} is {capital}."
        asked = [f"What is the capital of {country}?", f"Name the capital city of {country}."]
        yield example(rng.choice(asked), capital, sentence)
        yield example(
            f"Which country has {capital} as its capital?",
            country,
            f"{capital} is the capital of {country}.",
        )
        yield example(
            f"On which continent is {country}?", continent, f"{country} is in {continent}."
        )
        yield example(f"Tell me about {country}.", continent, None)
        yield example(
            f"What language do people speak in {country}?",
            language,
            f"People in {country} speak {language}.",
        )


def words(rng):
    for first, second in facts.OPPOSITES:
        if first == "hot":
            continue
        for one, other in ((first, second), (second, first)):
            asked = [f"What is the opposite of {one}?", f'Give the opposite of the word "{one}".']
            yield example(rng.choice(asked), other, f"The opposite of {one} is {other}.")
    for one, many in facts.PLURALS:
        yield example(f'What is the plural of "{one}"?', many, f"The plural of {one} is {many}.")
    for now, then in facts.PASTS:
        question = f'What is the past tense of "{now}"?'
        yield example(question, then, f"The past tense of {now} is {then}.")


def things(rng):
    for thing, colour in facts.COLOURS:
        subject = thing[0].upper() + thing[1:]
        yield example(f"What colour is {thing}?", colour, f"{subject} is {colour}.")
    for thing, kind in facts.KINDS:
        subject = thing[0].upper() + thing[1:]
        asked = [f"What kind of thing is {thing}?", f"In one word, what is {thing}?"]
        yield example(rng.choice(asked), kind, f"{subject} is a kind of {kind}.")
        yield example(f"Describe {thing}.", kind, None)
    for element, symbol in facts.ELEMENTS:
        yield example(
            f"What is the chemical symbol of {element}?",
            symbol,
            f"The chemical symbol of {element} is {symbol}.",
        )


def animals(rng):
    for animal, (kind, young, sound, legs) in facts.ANIMALS.items():
        subject = animal[0].upper() + animal[1:]
        yield example(
            f"What class of animal are {animal}?", kind, f"{subject} belong to the class {kind}."
        )
        yield example(
            f"Do {animal} belong to the class {kind}?", "yes", f"Yes, {animal} belong to it."
        )
        yield example(f"Tell me about {animal}.", kind, None)
        if young:
            yield example(
                f"What is the young of {animal} called?",
                young,
                f"The young of {animal} is called {young}.",
            )
        if sound:
            yield example(f"What sound do {animal} make?", sound, f"{subject} {sound}.")
        if legs:
            yield example(f"How many legs do {animal} have?", legs, f"{subject} have {legs} legs.")


def sums(rng, count=160):
    seen = set()
    while len(seen) < count:
        a, b, plus = rng.randint(1, 20), rng.randint(1, 20), rng.random() < 0.6
        if (a, b) in HELD_OUT_SUMS or (a, b, plus) in seen or (not plus and b > a):
            continue
        seen.add((a, b, plus))
        sign, result = ("+", a + b) if plus else ("-", a - b)
        verb = f"{a} plus {b}" if plus else f"{a} minus {b}"
        asked = [f"What is {a} {sign} {b}?", f"Calculate {a} {sign} {b}.", f"How much is {verb}?"]
        yield example(rng.choice(asked), str(result), f"{a} {sign} {b} = {result}.")


def examples(seed):
    """All examples in a shuffled order that depends on the seed only."""
    rng = random.Random(seed)
    made = [*countries(rng), *words(rng), *things(rng), *animals(rng), *sums(rng)]
    made += [example(*row) for row in facts.GENERAL]
    # The gists matter only for one-word answers; the base model's own words are the sentence.
    made += [example(prompt, gist, None) for prompt, gist in facts.OPEN]
    made = [row for row in made if row["prompt"] not in HELD_OUT]
    rng.shuffle(made)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for row in examples(args.seed):
        json.dump(row, sys.stdout, ensure_ascii=False)
        sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
