"""What the demo says at the end: a table by adapter and answers side by side."""

import collections
import math

import jobs
import terminal as term

ANSWER_LINES_MAX = 3
FAILURES_SHOWN_MAX = 10


def percentile(values, percent):
    """The least value that at least so many percent of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def by_adapter(finals):
    """Finals by adapter, the base first."""
    groups = collections.defaultdict(list)
    for final in finals:
        groups[final.get("adapter") or jobs.BASE].append(final)
    return dict(sorted(groups.items(), key=lambda item: (item[0] != jobs.BASE, item[0])))


def times(finals, key):
    """p50 and p99 in seconds, as text."""
    known = [f["timing_ms"][key] for f in finals if f["timing_ms"].get(key) is not None]
    if not known:
        return f"{'-':>9}{'-':>8}"
    return f"{percentile(known, 50) / 1000:>9.2f}{percentile(known, 99) / 1000:>8.2f}"


def table(t, finals):
    t.say()
    t.say(t.paint("dim", f"  {'':<10}{'':>6}{'':>9}    queue wait, s    first token, s"))
    head = f"  {'adapter':<10}{'jobs':>6}{'tokens':>9}{'p50':>9}{'p99':>8}{'p50':>10}{'p99':>8}"
    t.say(t.paint("dim", head))
    for name, group in [*by_adapter(finals).items(), ("all", finals)]:
        tokens = sum(f["usage"]["completion_tokens"] for f in group)
        row = f"{len(group):>6}{tokens:>9,}{times(group, 'queued')} {times(group, 'first_token')}"
        t.say(f"  {t.paint('bold' if name == 'all' else 'cyan', f'{name:<10}')}{row}")


def answers(t, sent, finals, questions):
    """The same questions through the base and each adapter."""
    texts = {final["id"]: final.get("text") or "" for final in finals}
    for question in questions:
        asked = [job for job in sent if jobs.question(job) == question]
        if asked:
            t.say()
            t.say(f"  {t.paint('bold', question)}")
        for job in asked:
            lines = term.wrap(texts.get(job["id"], ""), t.width - 14, ANSWER_LINES_MAX)
            t.say(f"    {t.paint('cyan', f'{jobs.adapter(job):<10}')}{lines[0]}")
            for line in lines[1:]:
                t.say(f"    {'':<10}{line}")


def failures(t, finals):
    """Names the jobs that did not succeed; returns how many."""
    failed = [final for final in finals if final["status"] != "succeeded"]
    for final in failed[:FAILURES_SHOWN_MAX]:
        error = final.get("error") or {}
        why = term.printable(f"{error.get('code', '')} {error.get('message', '')}")
        t.say(f"  {t.paint('red', final['status'])} {final['id']}: {why}")
    if len(failed) > FAILURES_SHOWN_MAX:
        t.say(f"  … and {len(failed) - FAILURES_SHOWN_MAX} more")
    return len(failed)
