#!/usr/bin/env python3
"""Shows lines that begin with "[done/total]" (ninja's, or a job's) as one bar with rate and time left.

Usage: COMMAND | progress.py [--label NAME]

On a terminal the bar is redrawn in place; elsewhere a plain line is printed every few seconds.
Every other line, an error's for instance, is passed on as it is.
"""
import argparse
import re
import sys
import time

PLAIN_INTERVAL_S = 15
BAR_WIDTH = 30


class Bar:
    """A progress bar over a known number of steps."""

    def __init__(self, label, out=sys.stdout):
        self.label, self.out, self.start = label, out, time.monotonic()
        self.tty, self.last_plain, self.drawn = out.isatty(), self.start, False

    def update(self, done, total):
        """Draws `done` of `total`; off a terminal only now and then, and at the end."""
        now = time.monotonic()
        elapsed = max(now - self.start, 1e-9)
        rate = done / elapsed
        left = (total - done) / rate if rate > 0 else 0
        filled = BAR_WIDTH * done // max(total, 1)
        text = (f"{self.label} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total}"
                f"  {rate:.1f}/s  {_clock(elapsed)} gone, {_clock(left)} left")
        if self.tty:
            self.out.write("\r\033[K" + text)
            self.drawn = True
        elif now - self.last_plain >= PLAIN_INTERVAL_S or done == total:
            self.out.write(text + "\n")
            self.last_plain = now
        self.out.flush()

    def pause(self):
        """Ends the line of the bar, so that other text can be printed."""
        if self.drawn:
            self.out.write("\n")
            self.drawn = False


def _clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="progress")
    bar = Bar(parser.parse_args().label)
    step = re.compile(r"^\[(\d+)/(\d+)\] ")
    for line in sys.stdin:
        found = step.match(line)
        if found:
            bar.update(int(found[1]), int(found[2]))
        else:
            bar.pause()
            sys.stdout.write(line)
            sys.stdout.flush()
    bar.pause()


if __name__ == "__main__":
    main()
