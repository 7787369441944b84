# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of bench/run, as Markdown, and how its figures compare with the aims."""

from __future__ import annotations

from subjects import SUBJECTS

STAGES = {"first": "first run", "steady": "steady state", "changed": "one changed value"}
#: Measure: title and digits.
MEASURES = {
    "seconds": ("wall, s", 1),
    "controller_seconds": ("controller CPU, s", 1),
    "remote_runs": ("remote runs a host", 0),
    "sent_kb": ("sent a host, kB", 0),
    "tasks": ("tasks a host", 0),
    "memory_mb": ("peak memory, MB", 0),
}
#: How many times as fast as whom ours is to be in steady state.
AIMS = {"stock": 6.0, "stock-mitogen": 3.0}
FLOOR_AIM = 1.3
FLAT = (5, 20)  # numbers of hosts between which a host is to cost the same


def table(hosts: str, size: dict) -> list[str]:
    rounds = size["rounds"]
    runs = "one run of each" if rounds == 1 else f"medians of {rounds}, first run: one"
    lines = [
        f"**{hosts} host{'s' * (hosts != '1')} a side, {runs}**",
        "",
        "| stage | | " + " | ".join(title for title, _digits in MEASURES.values()) + " |",
        "| --- | --- |" + " ---: |" * len(MEASURES),
    ]
    for stage, stage_title in STAGES.items():
        for key, found in size["subjects"].items():
            figures = [f"{found[stage][name]:.{digits}f}" for name, (_title, digits) in MEASURES.items()]
            lines.append(f"| {stage_title} | {SUBJECTS[key].title} | " + " | ".join(figures) + " |")
    return [*lines, ""]


def verdict(value: float, aim: float, *, at_most: bool) -> str:
    return "met" if (value <= aim if at_most else value >= aim) else "missed"


def floor(size: dict, key: str) -> tuple[float, float, float, float] | None:
    """Seconds of start-up and of a ping, what as many pings as remote runs would take, and how often ours is that."""
    found = size["subjects"].get(key, {})
    if "floor" not in found:
        return None
    start, run = found["floor"]["start"], found["floor"]["run"]
    least = start + run * found["steady"]["remote_runs"]
    return start, run, least, found["steady"]["seconds"] / least


def aims(result: dict) -> list[str]:
    lines = ["| steady state | hosts | aim | measured | |", "| --- | ---: | ---: | ---: | --- |"]
    for hosts, size in result["sizes"].items():
        found = size["subjects"]
        for key, aim in AIMS.items():
            if key in found and "ours" in found:
                ratio = found[key]["steady"]["seconds"] / found["ours"]["steady"]["seconds"]
                title = f"times as fast as {SUBJECTS[key].title}"
                lines.append(
                    f"| {title} | {hosts} | at least {aim:g} | {ratio:.1f} | {verdict(ratio, aim, at_most=False)} |"
                )
        for key in found:
            if measured := floor(size, key):
                start, run, least, ratio = measured
                title = f"{SUBJECTS[key].title}: wall to floor ({start:.1f} s + {run:.2f} s a run = {least:.1f} s)"
                met = verdict(ratio, FLOOR_AIM, at_most=True)
                lines.append(f"| {title} | {hosts} | at most {FLOOR_AIM:g} | {ratio:.1f} | {met} |")
    few, many = (result["sizes"].get(str(number), {"subjects": {}})["subjects"] for number in FLAT)
    for key in few:
        if key in many:
            costs = [found[key]["steady"]["seconds"] / hosts for found, hosts in zip((few, many), FLAT)]
            title = f"{SUBJECTS[key].title}: wall a host at {FLAT[1]} to that at {FLAT[0]}"
            figures = f"{costs[1]:.2f} s / {costs[0]:.2f} s = {costs[1] / costs[0]:.2f}"
            aim = "flat" if key.startswith("ours") else ""
            lines.append(f"| {title} | | {aim} | {figures} | |")
    return lines


def render(result: dict) -> str:
    lines = [f"{result['broker']}; {result['image']}; {result['forks']} forks", ""]
    for hosts, size in result["sizes"].items():
        lines += table(hosts, size)
    return "\n".join([*lines, *aims(result)])
