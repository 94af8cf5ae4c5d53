#!/usr/bin/env python3
"""Draws the dashboard's panels from a Prometheus: a look at it where there is no Grafana.

Usage: draw.py --prometheus http://127.0.0.1:9090 --out dashboard.png [--seconds 120]     needs matplotlib
"""
import argparse
import json
import math
import pathlib
import time
import urllib.parse
import urllib.request

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

DASHBOARD = pathlib.Path(__file__).with_name("tim4rec.json")


def ask(prometheus, expression, start, end, step):
    query = expression.replace("$__rate_interval", f"{max(4 * step, 5)}s").replace("$instance", ".*")
    url = f"{prometheus}/api/v1/query_range?" + urllib.parse.urlencode(
        {"query": query, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def name_of(legend, labels):
    for key, value in labels.items():
        legend = legend.replace("{{" + key + "}}", value)
    return legend


def draw(axes, panel, prometheus, start, end, step):
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    seconds = panel["fieldConfig"]["defaults"]["unit"] == "s"
    for target in panel["targets"]:
        for series in ask(prometheus, target["expr"], start, end, step):
            points = [(float(t) - start, float(v) * (1000 if seconds else 1)) for t, v in series["values"]]
            points = [p for p in points if not math.isnan(p[1])]
            if points:
                axes.plot(*zip(*points), linewidth=1, label=name_of(target["legendFormat"], series["metric"]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_ylabel("ms" if seconds else "", fontsize=7)
    if axes.lines:
        axes.legend(fontsize=5, loc="upper left", ncols=2, framealpha=0.4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=int, default=120, help="how far back (default 120)")
    arguments = parser.parse_args()
    panels = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] == "timeseries"]
    columns = 3
    figure, grid = plt.subplots(-(-len(panels) // columns), columns, figsize=(12, 2.1 * -(-len(panels) // columns)))
    end = time.time()
    for axes, panel in zip(grid.flat, panels):
        draw(axes, panel, arguments.prometheus, end - arguments.seconds, end, max(1, arguments.seconds // 120))
    for axes in list(grid.flat)[len(panels):]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main()
