"""The images in ``docker/`` against the project: nobody builds them in CI, so this must be held."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

import edgekd

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
#: Python of base images whose tag does not say it: Ubuntu 22.04 of JetPack 6.
PYTHON_OF = {"nvcr.io/nvidia/l4t-tensorrt:r10.3.0": (3, 10)}
#: what a board must not get.
HEAVY = {"torch", "onnx", "onnxscript", "lightning-fabric", "transformers"}
COMPILERS = {"g++", "gcc", "build-essential", "python3-dev", "python3-venv", "libc6-dev"}


def requirements(extra: str) -> set[str]:
    """Names that an extra of ``pyproject.toml`` asks for; KeyError where there is none."""
    section = PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    found = re.search(rf"^{re.escape(extra)} = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL)
    if found is None:
        raise KeyError(extra)
    return set(re.findall(r'"([A-Za-z0-9._-]+)', found[1]))


def instructions(text: str) -> list[tuple[str, str]]:
    """(keyword, rest) of a Dockerfile: lines joined, no comments, each ``ARG`` put in."""
    plain = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.split(None, 1) for line in plain.splitlines() if line.strip()]
    arguments: dict[str, str] = {}
    result = []
    for keyword, rest in found:
        for name, value in arguments.items():
            rest = rest.replace(f"${{{name}}}", value)
        if keyword == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value.strip('"')
        result.append((keyword, " ".join(rest.split())))
    return result


def base_python(image: str) -> tuple[int, int]:
    """Python of a base image, by its tag."""
    found = re.match(r"python:(\d+)\.(\d+)", image)
    if found:
        return int(found[1]), int(found[2])
    return next(python for name, python in PYTHON_OF.items() if image.startswith(name))


def passes_ignore(path: str, ignore: str) -> bool:
    """Whether ``.dockerignore`` lets a top-level path reach the build."""
    passed = True
    for line in ignore.splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(path, line.removeprefix("!")):
            passed = line.startswith("!")
    return passed


def faults(name: str, text: str, ignore: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    said: list[str] = []
    steps = instructions(text)
    bases = [rest.split() for keyword, rest in steps if keyword == "FROM"]
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT).groups()  # type: ignore[union-attr]
    pythons = {base_python(base[0]) for base in bases}
    if len(pythons) != 1:
        said.append(f"stages have Python {pythons}; a venv is copied from one to the other")
    said += [f"Python {p} is not accepted" for p in pythons if not int(low) <= p[1] < int(high)]
    said += [f"{b[0]} is not pinned" for b in bases if ":" not in b[0] or "latest" in b[0]]
    arguments = dict(rest.partition("=")[::2] for keyword, rest in steps if keyword == "ARG")
    if arguments.get("VERSION") != edgekd.__version__:
        said.append(f"VERSION is {arguments.get('VERSION')}")
    wanted: set[str] = set()
    for extra in arguments.get("EXTRAS", "").split(","):
        try:
            wanted |= requirements(extra)
        except KeyError:
            said.append(f"there is no extra {extra!r}")
    if name.startswith("runtime") and wanted & HEAVY:
        said.append(f"a board gets {sorted(wanted & HEAVY)}")
    installs = re.findall(r"pip install [^&]+", " ".join(rest for _, rest in steps))
    own = [line for line in installs if f'".[{arguments.get("EXTRAS")}]"' in line]
    said += [] if len(own) == 1 else [f"the project is installed {len(own)} times"]
    said += [f"keeps a cache: {line}" for line in installs if "--no-cache-dir" not in line]
    for keyword, rest in steps:
        words = rest.split()
        if keyword in ("COPY", "ADD") and not rest.startswith("--from="):
            for path in words[:-1]:
                if not (ROOT / path).exists():
                    said.append(f"{path} is not there")
                if not passes_ignore(path, ignore):
                    said.append(f"{path} is kept back by .dockerignore")
        if keyword == "RUN" and "apt-get install" in rest:
            for needed in (
                "apt-get update",
                "--no-install-recommends",
                "rm -rf /var/lib/apt/lists",
            ):
                if needed not in rest:
                    said.append(f"apt-get without {needed}")
    last = steps[max(n for n, (keyword, _) in enumerate(steps) if keyword == "FROM") :]
    if name.startswith("runtime"):
        tools = COMPILERS & {
            word for keyword, rest in last if keyword == "RUN" for word in rest.split()
        }
        said += [f"build tools on the board: {sorted(tools)}"] if tools else []
    users = [rest for keyword, rest in last if keyword == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        said.append(f"runs as {users[-1:] or 'root'}, not as a number other than 0")
    if ("ENTRYPOINT", '["edgekd"]') not in last:
        said.append("edgekd is not the process that gets the signals")
    settings = " ".join(rest for keyword, rest in last if keyword == "ENV").split()
    if "onnxruntime" in wanted and "ORT_DISABLE_TELEMETRY=1" not in settings:
        said.append("ONNX Runtime reports to its maker")
    labels = " ".join(rest for keyword, rest in last if keyword == "LABEL")
    said += [
        f"no label {key}"
        for key in ("title", "description", "version", "revision", "licenses")
        if f"org.opencontainers.image.{key}=" not in labels
    ]
    return said


IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")


def test_there_is_one_image_per_machine_and_the_page_names_each() -> None:
    names = [path.name.removesuffix(".Dockerfile") for path in FILES]
    assert names == ["deploy", "runtime-jetson", "runtime-rpi", "train"]
    page = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    assert all(f"-f docker/{path.name}" in page for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_image_fits_the_project(path: Path) -> None:
    assert faults(path.name, path.read_text(encoding="utf-8"), IGNORE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("EXTRAS=onnxrt,geo,trust", "EXTRAS=onnxrt,gdal", "no extra 'gdal'"),
        ("EXTRAS=onnxrt,geo,trust", "EXTRAS=onnxrt,deploy", "a board gets"),
        ("EXTRAS=onnxrt,geo,trust", "EXTRAS=onnxrt,check", "a board gets ['onnx']"),
        ('".[${EXTRAS}]"', '"edgekd[geo]"', "installed 0 times"),
        ("BASE=python:3.11-slim-bookworm", "BASE=python:3.9-slim-bookworm", "not accepted"),
        ("BASE=python:3.11-slim-bookworm", "BASE=python:3.14-slim-bookworm", "not accepted"),
        ("FROM ${BASE}\n", "FROM python:3.12-slim-bookworm\n", "a venv is copied"),
        ("COPY engines engines", "COPY recipes recipes", "recipes is not there"),
        ("COPY engines engines", "COPY tests tests", "kept back by .dockerignore"),
        (" --no-cache-dir", "", "keeps a cache"),
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001\n", "USER 0:0\n", "not as a number other than 0"),
        ("USER 10001:10001\n", "USER edgekd\n", "not as a number other than 0"),
        ('ENTRYPOINT ["edgekd"]', "ENTRYPOINT edgekd", "gets the signals"),
        ("VERSION=0.1.0", "VERSION=0.0.9", "VERSION is 0.0.9"),
        ("libexpat1", "libexpat1 gcc", "build tools on the board: ['gcc']"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "apt-get without rm"),
        (" ORT_DISABLE_TELEMETRY=1", "", "reports to its maker"),
        (".image.revision=", ".image.other=", "no label revision"),
    ],
)
def test_a_fault_is_seen(old: str, new: str, said: str) -> None:
    text = (ROOT / "docker" / "runtime-rpi.Dockerfile").read_text(encoding="utf-8")
    assert old in text
    found = faults("runtime-rpi.Dockerfile", text.replace(old, new), IGNORE)
    assert found and any(said in fault for fault in found), found


def test_nothing_but_what_is_copied_reaches_a_build() -> None:
    copied = {
        path
        for file in FILES
        for keyword, rest in instructions(file.read_text(encoding="utf-8"))
        if keyword == "COPY" and not rest.startswith("--from=")
        for path in rest.split()[:-1]
    }
    entries = {item.name for item in ROOT.iterdir()} | {".git", "runs", "bundles", "fleet.key"}
    assert {name for name in entries if passes_ignore(name, IGNORE)} == copied
