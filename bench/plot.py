#!/usr/bin/env python3
# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Draw what bench/run measured: plot.py run.json run.svg. Needs requirements/bench.txt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from run_table import STAGES
from subjects import SUBJECTS

ROWS = {"seconds": "wall, s", "controller_seconds": "controller CPU, s"}
# Ours is one colour and stock another; the strategy is the line.
COLOURS = {"ours": "#0b6e4f", "stock": "#b3541e", "pyinfra": "#4a4e9e"}
LINES = {"mitogen": ":", "free": "--"}


def draw(result: dict, target: Path) -> None:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    hosts = sorted(int(size) for size in result["sizes"])
    figure, axes = pyplot.subplots(len(ROWS), len(STAGES), figsize=(9, 5.4), sharex=True, sharey="row", squeeze=False)
    for row, (measure, label) in enumerate(ROWS.items()):
        for column, (stage, title) in enumerate(STAGES.items()):
            axis = axes[row][column]
            for key, subject in SUBJECTS.items():
                sizes = [size for size in hosts if key in result["sizes"][str(size)]["subjects"]]
                values = [result["sizes"][str(size)]["subjects"][key][stage][measure] for size in sizes]
                family, _dash, strategy = key.partition("-")
                style = LINES.get(strategy, "-")
                axis.plot(sizes, values, style, color=COLOURS[family], marker="o", markersize=3, label=subject.title)
            axis.set(xscale="log", xticks=hosts, xticklabels=hosts)
            axis.set_yscale("log", base=2)
            axis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(visible=True, which="both", linewidth=0.3)
            if row == 0:
                axis.set_title(title)
            if column == 0:
                axis.set_ylabel(label)
    figure.supxlabel("hosts")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SUBJECTS))
    figure.set_layout_engine("constrained")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
