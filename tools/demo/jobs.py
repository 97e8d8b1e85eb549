"""The demo's jobs: questions from demo/questions.txt, over the base and the adapters in turn."""

import json

BASE = "base"  # what the demo calls jobs without adapter
TOKENS_MAX = 56

# Greedy, so that two runs give the same text.
SAMPLING = {"temperature": 0, "max_tokens": TOKENS_MAX}


def read_questions(path):
    """(asked of all, dealt round): the two parts of the file, split at its first blank line."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    shared, _, rest = text.partition("\n\n")
    return shared.split("\n"), rest.strip().split("\n")


def make(questions_path, adapters, count):
    """`count` jobs as dictionaries, in the order in which they are sent. Neighbours differ in
    their adapter, so that whatever keeps an adapter's jobs together is not this order."""
    shared, rest = read_questions(questions_path)
    names = [BASE, *adapters]
    jobs = []
    for number in range(count):
        nth, which = divmod(number, len(names))
        name = names[which]
        if nth < len(shared):
            question = shared[nth]
        else:  # each adapter begins elsewhere in the list
            question = rest[(nth + which * len(rest) // len(names)) % len(rest)]
        job = {
            "id": f"demo/{number:04d}/{name}",
            "messages": [{"role": "user", "content": question}],
            **SAMPLING,
            "stream": True,
        }
        if name != BASE:
            job["adapter"] = name
        jobs.append(job)
    return jobs


def adapter(job):
    return job.get("adapter", BASE)


def question(job):
    return job["messages"][0]["content"]


def write(path, jobs):
    with open(path, "w", encoding="utf-8") as file:
        for job in jobs:
            file.write(json.dumps(job, ensure_ascii=False) + "\n")
