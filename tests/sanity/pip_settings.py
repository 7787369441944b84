# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn what `pip config list` prints (`section.key='value'`, `:env:.key='value'`) into a pip.conf."""

from __future__ import annotations

import ast
import configparser
import sys


def main() -> None:
    """Filter standard input to standard output; the environment comes last and so wins, as in pip itself."""
    config = configparser.RawConfigParser()
    lines = [line for line in sys.stdin if "=" in line]
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _equals, value = line.partition("=")
        section, _dot, key = name.rpartition(".")
        section = "global" if section == ":env:" else section
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, key, ast.literal_eval(value))
    config.write(sys.stdout)


if __name__ == "__main__":
    main()
