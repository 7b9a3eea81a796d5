"""Prints setup.cfg's lower bounds as pip constraints, so that the oldest promised versions can be tested."""

import re
from configparser import ConfigParser
from pathlib import Path

BOUND = re.compile(r"([\w.-]+)>=([\w.]+)")


def lower_bounds(
    path: Path,  # of a setup.cfg
) -> list[str]:  # `name==version`, one per requirement that has a lower bound
    "List the lowest version of every package that this package and its tests require."
    config = ConfigParser()
    config.read(path)
    extras = config["options.extras_require"]
    lines = "\n".join([config["options"]["install_requires"], *(extras[name] for name in extras)])
    return [f"{name}=={version}" for name, version in BOUND.findall(lines)]


if __name__ == "__main__":
    print("\n".join(lower_bounds(Path(__file__).parents[1] / "setup.cfg")))
