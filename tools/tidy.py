#!/usr/bin/env python3
"""Runs clang-tidy over the C files of a build, one process a file, two at a time.

    tools/tidy.py BUILD [FILE...]    all C files that BUILD compiles, or those given

A file that was clean is not looked at again until it, what it includes, the flags, the checks or
clang-tidy change: BUILD/../tidy-cache holds an empty file named by the hash of all of these. (One
process a file, because clang-tidy 14's va_list check carries state from file to file.)
"""

import concurrent.futures
import hashlib
import json
import os
import shlex
import subprocess
import sys

TIDY = os.environ.get("CLANG_TIDY", "clang-tidy-14")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def compiled(build):
    """path -> its entry of compile_commands.json, for our C files."""
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        entries = json.load(file)
    found = {}
    for entry in entries:
        path = os.path.realpath(os.path.join(entry["directory"], entry["file"]))
        if path.endswith(".c") and not path.startswith(os.path.join(ROOT, "build", "")):
            found[path] = entry
    return found


def preprocess(entry):
    """The compile command, made to print the preprocessed text instead of an object."""
    words = shlex.split(entry["command"]) if "command" in entry else list(entry["arguments"])
    kept = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("-o", "-MF", "-MT", "-MQ"):
            skip = True
        elif word not in ("-c", "-MD", "-MMD"):
            kept.append(word)
    done = subprocess.run(kept + ["-E"], cwd=entry["directory"], capture_output=True, check=False)
    return " ".join(kept).encode(), done.stdout if done.returncode == 0 else None


def look(path, entry, build, cache, seed):
    """Returns what is wrong with the file: clang-tidy's output, or an empty text."""
    flags, text = preprocess(entry)
    stamp = None
    if text is not None:  # else clang-tidy says what does not compile
        with open(path, "rb") as file:  # the raw text too: NOLINT stands in comments
            stamp = os.path.join(cache, hashlib.sha256(
                b"\0".join([seed, flags, file.read(), text])).hexdigest())
        if os.path.exists(stamp):
            return ""
    done = subprocess.run([TIDY, "--quiet", "-p", build, path], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        return (done.stdout + done.stderr).strip()
    if stamp is not None:
        with open(stamp, "w", encoding="utf-8"):
            pass
    return ""


def main(arguments):
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    build = os.path.abspath(arguments[0])
    cache = os.path.join(os.path.dirname(build), "tidy-cache")
    os.makedirs(cache, exist_ok=True)
    entries = compiled(build)
    if len(arguments) > 1:
        wanted = [os.path.realpath(path) for path in arguments[1:]]
        for path in sorted(set(wanted) - set(entries)):
            print(f"{os.path.relpath(path, ROOT)}: no target builds it, so clang-tidy cannot judge it")
        entries = {path: entries[path] for path in wanted if path in entries}
    seed = subprocess.run([TIDY, "--version"], capture_output=True, check=True).stdout
    with open(os.path.join(ROOT, ".clang-tidy"), "rb") as file:
        seed += file.read()
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        for problem in pool.map(lambda path: look(path, entries[path], build, cache, seed),
                                sorted(entries)):
            if problem:
                bad += 1
                print(problem, flush=True)
    print(f"clang-tidy: {len(entries)} files, {bad} with findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
