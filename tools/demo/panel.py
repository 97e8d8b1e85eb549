"""The demo's moving picture: progress, a line for each adapter, and the text of a running job."""

import time

import terminal as term

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 5.0
COLUMNS_MIN = 64
TEXT_LINES = 3
FOLLOW_SECONDS_MIN = 1.5  # a finished text stays this long, to be read


class Panel:
    def __init__(self, terminal, watch):
        self.terminal = terminal
        self.watch = watch
        self.followed = None  # the job whose text is shown
        self.followed_since = 0.0
        self.due = 0.0

    def show(self):
        """Draws or prints, if it is time to."""
        now = time.monotonic()
        if now < self.due:
            return
        self.follow(now)
        lines = self.lines()
        live = self.terminal.live and self.terminal.fits(len(lines), COLUMNS_MIN)
        if live:
            self.terminal.draw(lines)
        else:
            self.terminal.say(self.plain())
        self.due = now + (REDRAW_SECONDS if live else PLAIN_SECONDS)

    def follow(self, now):
        """Chooses the job whose text is shown: one to its end, then one of another adapter."""
        job = self.followed
        if job is not None and (job.running or now - self.followed_since < FOLLOW_SECONDS_MIN):
            return
        running = [each for each in self.watch.jobs.values() if each.running]
        others = [each for each in running if job is None or each.adapter != job.adapter]
        if running:
            self.followed = min(others or running, key=lambda each: each.tokens)
            self.followed_since = now

    def eta(self):
        seconds = self.watch.eta_seconds()
        return "-:--" if seconds is None else term.clock(seconds)

    def lines(self):
        t, w = self.terminal, self.watch
        of = len(w.jobs)
        rate = f"{w.tokens_per_second:>4.0f} tokens/s"
        counts = f" {w.finals:>4}/{of} jobs   {rate}   eta {self.eta()}"
        bar = t.bar(w.finals, of, max(t.width - len(counts) - 2, 10))
        lines = ["", f"  {bar}{counts}", ""]
        lines.append(t.paint("dim", f"  {'adapter':<10}{'done':>9}{'running':>10}{'tokens':>10}"))
        for name, group in w.by_adapter().items():
            done = sum(job.final is not None for job in group)
            running = sum(job.running for job in group)
            tokens = sum(job.tokens for job in group)
            row = f"{f'{done}/{len(group)}':>9}{running or '':>10}{tokens:>10,}"
            lines.append(f"  {t.paint('cyan', f'{name:<10}')}{row}")
        lines.append("")
        return lines + self.text_lines()

    def text_lines(self):
        t, job = self.terminal, self.followed
        if job is None:
            return [""] * (TEXT_LINES + 1)
        title = term.cut(f"{job.adapter}: {job.question}", t.width - 2)
        name, rest = title[: len(job.adapter)], title[len(job.adapter) :]
        text = term.wrap(job.text, t.width - 4, 1000)[-TEXT_LINES:]
        text += [""] * (TEXT_LINES - len(text))
        return [f"  {t.paint('cyan', name)}{rest}", *(f"    {line}" for line in text)]

    def plain(self):
        w = self.watch
        groups = " ".join(
            f"{name} {sum(job.final is not None for job in group)}/{len(group)}"
            for name, group in w.by_adapter().items()
        )
        line = (
            f"  {w.finals}/{len(w.jobs)} jobs, {w.tokens} tokens,"
            f" {w.tokens_per_second:.0f} tokens/s, eta {self.eta()}; {groups}"
        )
        if self.followed is not None:
            text = term.printable(self.followed.text)[-60:]
            line += f"\n    {self.followed.adapter}: …{text}"
        return line
