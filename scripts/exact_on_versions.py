"""The exactness tests on the oldest and the newest transformers that pip finds, beside the one that is installed.

    python scripts/exact_on_versions.py [VERSION ...]

Prints what differs by family; exit status 1 where a family is not exact. Without a network it says so, with status 0.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
# Each family once in a shaken crowd, and that the cache is found.
TESTS = ("tests/test_same_as_alone.py", "tests/model/test_rotary.py", "tests/model/test_probe.py")
CHOSEN = "shaken_batch_gives_what and (baton or rotary) or test_probe and cache"


def main() -> None:
    asked = sys.argv[1:] or releases_to_try()
    if not asked:
        print("pip finds no versions of transformers (no network): tested with the installed one alone")
        return
    # At once: while one is installed and imported, which takes one core, the other is tested.
    with ThreadPoolExecutor() as versions:
        results = dict(zip(asked, versions.map(results_of, asked), strict=True))
    broken = {one: [name for name, came in results[one].items() if came not in ("passed", "skipped")] for one in asked}
    assert all(results.values()), "no test ran"
    installed = f"the installed one is {version('transformers')}"
    for one, came in results.items():
        skipped = sorted(name for name, what in came.items() if what == "skipped")
        print(f"transformers {one} ({installed}): {len(came)} tests, {len(broken[one])} failed, {len(skipped)} skipped")
        for name in (*broken[one], *skipped):
            print(f"  {came[name]:<8}{name}")
    if any(broken.values()):
        sys.exit("not exact on each transformers that baton takes: see above")


def releases_to_try() -> list[str]:
    """The oldest release that pyproject.toml takes, and the newest; without the one that is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    taken = next(one for one in map(Requirement, project["dependencies"]) if one.name == "transformers").specifier
    ran = subprocess.run([*PIP, "index", "versions", "transformers"], capture_output=True, text=True, check=False)
    listed = re.search(r"Available versions: (.*)", ran.stdout)
    known = sorted((one for one in listed[1].split(", ") if one in taken), key=Version) if listed else []
    return [one for one in dict.fromkeys((known[0], known[-1])) if one != version("transformers")] if known else []


def results_of(one: str) -> dict[str, str]:
    """The result of each test, by its name, with this version in front of the installed one and its packages."""
    with tempfile.TemporaryDirectory() as folder:
        install(folder, f"transformers=={one}")
        install(folder, *not_here(folder))
        report, path = Path(folder, "report.xml"), os.pathsep.join((folder, os.environ.get("PYTHONPATH", "")))
        chosen = [*TESTS, "-k", CHOSEN, "-q", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *chosen]
        ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        print(f"== transformers {one}\n{ran.stdout}{ran.stderr}", flush=True)
        return {f"{case.get('name')}": _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def install(folder: str, *names: str) -> None:
    """These alone, and none of their thousands of files compiled: what is imported will be."""
    if names:
        subprocess.run([*PIP, "install", "-q", "--no-deps", "--no-compile", "--target", folder, *names], check=True)


def not_here(folder: str) -> list[str]:
    """What the packages in this folder need and is installed in no version that they take."""
    needed = [Requirement(one) for package in distributions(path=[folder]) for one in package.requires or ()]
    return [str(one) for one in needed if (one.marker is None or one.marker.evaluate({"extra": ""})) and not _here(one)]


def _here(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(version(needed.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _outcome(case: ElementTree.Element) -> str:
    return next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

if __name__ == "__main__":
    main()
