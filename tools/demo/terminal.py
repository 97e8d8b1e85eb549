"""What the demo prints with: colours, widths, and a panel that is drawn over itself.

On a terminal a panel is redrawn in place; elsewhere, and where TERM is dumb, only plain lines are
printed. NO_COLOR takes the colours, not the redrawing. Text of the model is untrusted: printable()
takes control characters out of it."""

import os
import shutil
import sys
import textwrap
import unicodedata

COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

WIDTH_MAX = 100
PANEL_LINES_SPARE = 2  # a panel is drawn only where the window has this many lines more


def printable(text):
    """One line without control characters."""
    kept = (c if unicodedata.category(c)[0] != "C" else " " for c in text)
    return " ".join("".join(kept).split())


def cells(text):
    """Columns that the text takes; without escapes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    marks = sum(unicodedata.combining(c) != 0 for c in text)
    return len(text) + wide - marks


def cut(text, width):
    """As much of the text as fits."""
    if cells(text) <= width:
        return text
    while text and cells(text) > width - 1:
        text = text[:-1]
    return text + "…"


def wrap(text, width, lines_max):
    lines = textwrap.wrap(printable(text), max(width, 20)) or [""]
    if len(lines) > lines_max:
        lines = lines[:lines_max]
        lines[-1] = cut(lines[-1] + " …", width)
    return lines


def clock(seconds):
    whole = int(seconds + 0.5)
    return f"{whole // 60}:{whole % 60:02d}"


class Terminal:
    def __init__(self, out=sys.stdout):
        out.reconfigure(errors="replace")
        self.out = out
        utf8 = (out.encoding or "").lower().replace("-", "") == "utf8"
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.live = out.isatty() and not dumb and utf8
        self.coloured = out.isatty() and not dumb and not os.environ.get("NO_COLOR")
        self.tick = "✓" if utf8 else "*"
        self.drawn = 0  # lines of the panel on the screen

    @property
    def width(self):
        return min(shutil.get_terminal_size((WIDTH_MAX, 24)).columns, WIDTH_MAX)

    def paint(self, colour, text):
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.coloured and text else text

    def say(self, line=""):
        self.wipe()
        print(line, file=self.out, flush=True)

    def fits(self, lines, columns):
        window = shutil.get_terminal_size((WIDTH_MAX, 24))
        return columns <= window.columns and lines + PANEL_LINES_SPARE <= window.lines

    def draw(self, lines):
        """Draws the panel in the place of the last one. Lines are no wider than the window."""
        top = f"\x1b[{self.drawn}A" if self.drawn else "\x1b[?25l"  # the cursor would flicker
        self.out.write(top + "\r" + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[J")
        self.out.flush()
        self.drawn = len(lines)

    def wipe(self):
        """Takes the panel away and shows the cursor again."""
        if self.drawn:
            self.out.write(f"\x1b[{self.drawn}A\r\x1b[J\x1b[?25h")
            self.out.flush()
            self.drawn = 0

    def bar(self, done, of, width):
        filled = width * done // max(of, 1)
        return self.paint("green", "█" * filled) + self.paint("dim", "░" * (width - filled))
