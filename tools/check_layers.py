#!/usr/bin/env python3
"""Checks who includes whom (docs: the table of folders in ARCHITECTURE.md).

    tools/check_layers.py [ROOT]     prints file:line of each violation; exit code 1 if there is one
    tools/check_layers.py --self-test

A folder may include its own files, and of the folders below it only the public header
(`folder/folder.h`, `worker/source.h` and `worker/bench.h` too; `base/` is all public). `scheduler/` is pure: no clock,
socket or thread. tests/ may reach inside.
"""

import os
import re
import sys
import tempfile

EVERYTHING = {"base", "config", "wire", "text", "kernels", "pool", "model", "scheduler", "worker"}
MAY_INCLUDE = {
    "base": set(),
    "config": {"base"},
    "wire": {"base"},
    "text": {"base"},
    "kernels": {"base"},
    "pool": {"base", "kernels"},
    "model": {"base", "kernels", "pool"},
    "scheduler": {"base"},
    "worker": EVERYTHING - {"worker"},
    "tools": EVERYTHING,
}
PUBLIC_TOO = {"worker/source.h", "worker/bench.h"}
PURE = {
    "scheduler": {"time.h", "sys/time.h", "sys/timerfd.h", "sys/socket.h", "netdb.h", "poll.h",
                  "sys/epoll.h", "pthread.h", "threads.h", "semaphore.h", "base/clock.h"},
}
ENDINGS = (".c", ".h", ".def", ".cu", ".cuh")
NOT_OURS = {"build", "docs", "tests"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>|(\S.*))')


def judge(folder, target, quoted):
    """Says what is wrong with `#include target` in a file of `folder`, or None."""
    if target in PURE.get(folder, ()):
        return f"{folder}/ is pure and may not include {target}"
    above = target.split("/")[0]
    if above == "tests":
        return f"{folder}/ may not include tests"
    if above not in MAY_INCLUDE or "/" not in target:
        return f'write "folder/{target}": quoted includes start at the root' if quoted else None
    if above == folder:
        return None
    if above not in MAY_INCLUDE[folder]:
        return f"{folder}/ may not include {above}/"
    if above == "base":
        return None if target.endswith(".h") else f"{target} is base/'s own"
    if target != f"{above}/{above}.h" and target not in PUBLIC_TOO:
        return f"{target} is {above}/'s own; its public header is {above}/{above}.h"
    return None


def check_file(folder, path):
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            match = INCLUDE.match(line)
            if match is None:
                continue
            quoted, angled, macro = match.groups()
            if macro is not None:
                yield number, f"#include {macro.strip()} cannot be checked"
                continue
            problem = judge(folder, quoted or angled, quoted is not None)
            if problem is not None:
                yield number, problem


def check(root):
    """Yields "file:line: problem" for the tree at `root`."""
    for folder in sorted(os.listdir(root)):
        top = os.path.join(root, folder)
        if not os.path.isdir(top) or folder.startswith(".") or folder in NOT_OURS:
            continue
        for where, folders, files in os.walk(top):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "target")
            for name in sorted(files):
                if not name.endswith(ENDINGS):
                    continue
                path = os.path.join(where, name)
                shown = os.path.relpath(path, root)
                if folder not in MAY_INCLUDE:
                    yield f"{shown}:1: {folder}/ is not in the table of folders"
                    continue
                for number, problem in check_file(folder, path):
                    yield f"{shown}:{number}: {problem}"


def self_test():
    """Plants each kind of violation, and its lawful neighbour, and expects exactly the first."""
    lawful = {
        "base/ring.c": '#include <time.h>\n#include "base/ring.h"\n#include "base/metrics.def"\n',
        "config/file.c": '#include <yaml.h>\n#include "config/options.def"\n#include "base/log.h"\n',
        "scheduler/plan.c": '#include "scheduler/heap.h"\n#include "base/check.h"\n',
        "pool/pages.c": '#include "kernels/kernels.h"\n',
        "kernels/cpu/gemm.c": '#include "kernels/cpu/cpu.h"\n#include <cblas.h>\n',
        "worker/engine.c": '#include "pool/pool.h"\n#include "worker/job.h"\n',
        "tools/lorry/run.c": '#include "worker/worker.h"\n#include "worker/source.h"\n',
        "tests/unit/pool/test_pages.c": '#include "pool/pool_internal.h"\n#include "fixture.h"\n',
        "docs/example.c": '#include "anything.h"\n',
    }
    planted = {
        "base/up.c": '#include "config/config.h"\n',
        "wire/log.c": '\n#include "wire/wire.h"\n#include "text/text.h"\n',
        "scheduler/time.c": "#include <time.h>\n",
        "scheduler/net.h": "#  include <sys/socket.h>\n",
        "scheduler/lock.c": "#include <pthread.h>\n",
        "scheduler/clock.c": '#include "base/clock.h"\n',
        "scheduler/pool.c": '#include "pool/pool.h"\n',
        "pool/inside.c": '#include "kernels/philox.h"\n',
        "pool/angled.c": "#include <kernels/philox.h>\n",
        "kernels/cuda/gemm.cu": '#include "model/model.h"\n',
        "model/def.c": '#include "base/metrics.def"\n',
        "worker/tool.c": '#include "tools/lorry.h"\n',
        "tools/inside.c": '#include "worker/job.h"\n',
        "text/near.c": '#include "text.h"\n',
        "text/macro.c": "#include HEADER\n",
        "text/tests.c": '#include "tests/unit/seed.h"\n',
        "extra/new.c": "int x;\n",
    }
    with tempfile.TemporaryDirectory() as root:
        for path, text in {**lawful, **planted}.items():
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(text)
        found = sorted(line.split(": ")[0] for line in check(root))
    expected = sorted(f"{path}:{3 if path == 'wire/log.c' else 1}" for path in planted)
    if found != expected:
        print("self-test: not found:", *sorted(set(expected) - set(found)), file=sys.stderr)
        print("self-test: found too much:", *sorted(set(found) - set(expected)), file=sys.stderr)
        return 1
    return 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__, file=sys.stderr)
        return 2
    root = arguments[0] if arguments else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    problems = list(check(root))
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
