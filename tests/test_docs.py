"""What the documents name exists: paths, links, commands, settings, stages, imports."""

from __future__ import annotations

import ast
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from projected_grpo.cli import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/projected_grpo"
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
EXTENSIONS = ("csv", "json", "jsonl", "lock", "md", "parquet", "png", "py", "safetensors", "svg", "toml", "yaml")
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "numpy", "pandas", "pyarrow", "scipy", "matplotlib",
         "pydantic"}  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def yaml_of(name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text_of(name))


def inline_code(name: str) -> list[str]:
    """What stands between backticks outside fences, line breaks as spaces."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text_of(name)))]


def command_lines(name: str) -> list[str]:
    """Shell lines of a page, comments cut: fences marked bash, and inline code."""
    fenced = [line for kind, body in FENCE.findall(text_of(name)) if kind == "bash" for line in body.splitlines()]
    return [line.split(" #")[0].strip() for line in [*fenced, *inline_code(name)]]


def first_cells(name: str, heading: str) -> list[str]:
    """First column of the first table below `heading`, without its head."""
    return [row[0] for row in table(name, heading)]


def table(name: str, heading: str) -> list[list[str]]:
    below = text_of(name).split(f"\n{heading}\n", 1)[1]
    lines = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), below.splitlines()),
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][2:]


# ---------------------------------------------------------------- paths


@cache
def declared_outs() -> set[str]:
    """Every output of dvc.yaml, of each arm where a stage goes over arms."""
    outs: set[str] = set()
    for stage in yaml_of("dvc.yaml")["stages"].values():
        body = stage.get("do", stage)
        named = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
        for out in (next(iter(out)) if isinstance(out, dict) else out for out in named):
            outs |= {out.replace("${key}", key) for key in stage.get("foreach", [""])}
    return outs


def is_made(path: str) -> bool:
    """Made by the pipeline (declared, inside something declared, or the folder of such), or ignored by Git."""
    pattern = re.sub(r"<[^>]+>", "[^/]+", path.rstrip("/"))
    for out in declared_outs():
        parts = out.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if any(re.fullmatch(pattern, folder) for folder in above) or re.match(f"{re.escape(out)}/", path):
            return True
    inside = re.fullmatch(r"(data/\w+/)<\w+>(/.*)?", path)
    if inside and any(out.startswith(inside[1]) for out in declared_outs()):
        return True
    return path.split("/")[0] + "/" in text_of(".gitignore").splitlines()


def alternatives(path: str) -> list[str]:
    """`a.{x,y}` as `a.x` and `a.y`."""
    found = re.fullmatch(r"(.*)\{([^}]+)\}(.*)", path)
    return [found[1] + each + found[3] for each in found[2].split(",")] if found else [path]


def named_paths(name: str) -> Iterator[str]:
    """Words of a page's code that look like a path of the repository."""
    for line in command_lines(name):
        for word in line.split():
            path = word.strip("'\",;:")
            if re.fullmatch(r"[\w.{},<>@/-]+", path) and not path.startswith("-"):
                looks = "/" in path or path.rsplit(".", 1)[-1] in EXTENSIONS
                if looks and re.search(r"\w", path) and "=" not in path:
                    yield from alternatives(path)


def tree_entries() -> list[str]:
    """Paths of the README's file tree; two spaces of indent per level."""
    [tree] = [body for kind, body in FENCE.findall(text_of("README.md")) if kind == "text"]
    folders: list[str] = []
    entries = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        entries.append("".join(folders))
    return entries


@pytest.mark.parametrize("path", sorted(set(named_paths("README.md")) | set(tree_entries())))
def test_every_path_in_the_readme_exists_or_is_made(path: str) -> None:
    assert (ROOT / path).exists() or is_made(path)
    assert not path.endswith("/") or not (ROOT / path).is_file()


def test_every_line_of_the_file_tree_says_what_it_is() -> None:
    entries = tree_entries()
    [tree] = [body for kind, body in FENCE.findall(text_of("README.md")) if kind == "text"]
    assert all(len(line.split(maxsplit=1)) == 2 for line in tree.splitlines())
    packages = {f"src/projected_grpo/{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= set(entries)
    assert {f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")} <= set(entries)


@pytest.mark.parametrize("name", PAGES[1:])
def test_every_path_in_the_other_pages_exists_or_is_made(name: str) -> None:
    """There a path may start below the package, be one that a scale reads, or be a file name that the code writes."""
    settings = (ROOT / "params.yaml").read_text(encoding="utf-8")
    sources = [path for folder in ("src", "stages", "tests") for path in (ROOT / folder).rglob("*.py")]
    written = "".join(path.read_text(encoding="utf-8") for path in sources if "tests" not in path.parts)
    known = {path.name for path in sources}
    missing = [
        path
        for path in named_paths(name)
        if not (ROOT / path).exists()
        and not (PACKAGE / path).exists()
        and not is_made(path)
        and path not in known
        and f"path: {path}\n" not in settings
        and "<name>" not in path  # a file that the reader is to add
        and f'"{path.rstrip("/")}' not in written
    ]
    assert not missing


# ---------------------------------------------------------------- links


def anchors(path: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_resolves(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(name))):
        if not re.match(r"[a-z]+:", link):
            target, _, anchor = link.partition("#")
            path = (ROOT / name).parent / target if target else ROOT / name
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


# ---------------------------------------------------------------- commands and settings


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text_of("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_exists(name: str) -> None:
    named = {match[1] for line in command_lines(name) if (match := re.match(r"make ([a-z][\w-]*)", line))}
    assert named <= make_targets()


def test_every_make_target_is_explained() -> None:
    named = {match[1] for line in command_lines("README.md") if (match := re.match(r"make ([a-z][\w-]*)", line))}
    assert {"repro", "test", "check", "smoke", "bench", "clean"} <= named


def grpo_lines(name: str) -> list[str]:
    """Uses of our command, in a page or in what the Makefile tells."""
    lines = [line.strip() for line in text_of(name).split('"')] if name == "Makefile" else command_lines(name)
    return [line for line in lines if line.startswith("projected-grpo ")]


@pytest.mark.parametrize("name", [*PAGES, "Makefile"])
def test_every_subcommand_and_its_options_exist(name: str) -> None:
    for line in grpo_lines(name):
        command: Any = get_command(app)
        words = line.split()[1:]
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


def test_the_readme_shows_the_command() -> None:
    assert {line.split()[1] for line in grpo_lines("README.md")} >= {"rollouts", "columns", "validate"}


def is_setting(dotted: str) -> bool:
    block: Any = yaml_of("params.yaml")
    for key in dotted.split("."):
        if not isinstance(block, dict):
            return False
        key = next(iter(block)) if key.startswith("<") else key
        if key not in block:
            return False
        block = block[key]
    return True


@pytest.mark.parametrize("name", [*PAGES, "Makefile"])
def test_every_setting_exists(name: str) -> None:
    lines = [text_of(name)] if name == "Makefile" else command_lines(name)
    named = {key for line in lines for key in re.findall(r"-S ([\w.]+)=", line) if key != "x"}
    named |= {line.split("=")[0] for line in lines if re.fullmatch(r"(scales|arms|comparison)\.[\w.<>]+(=\S+)?", line)}
    assert not {key for key in named if not is_setting(key)}


# ---------------------------------------------------------------- tables and the drawing


def test_arms_and_loopholes_of_the_readme_are_all_there_are() -> None:
    from projected_grpo.problems.loopholes import LOOPHOLES

    described = [
        cell.strip("`")
        for page, heading in (("README.md", "## Arms"), ("docs/study.md", "## The arms"))
        for cell in first_cells(page, heading)
    ]
    assert sorted(described) == sorted(["base", *yaml_of("params.yaml")["arms"]])
    rows = table("README.md", "## Loopholes")
    assert {row[0].strip("`"): row[1] for row in rows} == {name: loophole.hint for name, loophole in LOOPHOLES.items()}


def test_the_table_of_stale_stages_has_the_tested_cases() -> None:
    [cases] = [
        node.value
        for node in ast.parse(text_of("tests/pipeline/test_staleness.py")).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "CASES"
    ]
    assert isinstance(cases, ast.Dict)
    tested = sorted(ast.literal_eval(key) for key in cases.keys if key is not None)
    assert sorted(first_cells("docs/pipeline.md", "## What makes which stage stale")) == tested


def drawn(kind: str = "") -> set[str]:
    """Texts of the drawing, or those of one class."""
    root = ET.fromstring(text_of("docs/architecture.svg"))
    texts = [node for node in root.iter("{http://www.w3.org/2000/svg}text") if kind in (node.get("class") or "")]
    return {"".join(node.itertext()) for node in texts}


def test_the_drawing_shows_every_stage() -> None:
    stages = set(yaml_of("dvc.yaml")["stages"])
    assert stages <= drawn("name mono")
    assert {match for cell in first_cells("docs/architecture.md", "## The pipeline")
            for match in re.findall(r"`(\w+)(?:@<arm>)?`", cell)} - {"base"} == stages  # fmt: skip


def test_the_drawing_shows_the_hooks_of_an_intervention() -> None:
    from_table = {cell.strip("`") for cell in first_cells("docs/adding_an_arm.md", "## The hooks")}
    base = ast.parse((PACKAGE / "interventions/base.py").read_text(encoding="utf-8"))
    [intervention] = [node for node in base.body if isinstance(node, ast.ClassDef) and node.name == "Intervention"]
    methods = {node.name for node in intervention.body if isinstance(node, ast.FunctionDef)}
    assert drawn("hooktext") - {"hook"} == from_table
    services = {"bases", "state", "load_state", "figures", "scores", "weights", "purge"}
    assert from_table == methods - services


# ---------------------------------------------------------------- who imports whom


def package_of(parts: tuple[str, ...]) -> str:
    """`grading` by its parts, everything else by its first name."""
    nested = parts[0] == "grading" and len(parts) > 1 and (PACKAGE / "grading" / parts[1]).is_dir()
    return ".".join(parts[:2]) if nested else parts[0]


def imports_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Absolute imports of a module as tuples of names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            bare = node.module == "projected_grpo"
            yield from ((*node.module.split("."), *([alias.name] if bare else [])) for alias in node.names)


def owner_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return package_of(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize(
    "row", table("docs/architecture.md", "## Who may import whom"), ids=lambda row: row[0].strip("`")
)
def test_a_package_imports_what_the_table_allows(row: list[str]) -> None:
    package, allowed = row[0].strip("`"), set(re.findall(r"`([\w.]+)`", row[1]))
    ours, heavy = set(), set()
    modules = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py" and owner_of(path) == package]
    for parts in itertools.chain.from_iterable(map(imports_of, modules)):
        if parts[0] == "projected_grpo":
            ours.add(package_of(parts[1:]))
        elif parts[0] in HEAVY:
            heavy.add(parts[0])
    assert modules
    assert ours - {package} <= allowed
    assert heavy <= set(row[2].split())


def test_the_table_of_imports_points_downwards_and_is_whole() -> None:
    rows = table("docs/architecture.md", "## Who may import whom")
    names = [row[0].strip("`") for row in rows]
    for place, row in enumerate(rows):
        assert set(re.findall(r"`([\w.]+)`", row[1])) <= set(names[:place]), row[0]
    assert set(names) == {owner_of(path) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


# ---------------------------------------------------------------- form


def test_contributing_stays_short() -> None:
    assert len(text_of("CONTRIBUTING.md").splitlines()) < 80


def test_the_place_of_the_results_is_marked_once() -> None:
    text = text_of("README.md")
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.index(begin) < text.index(end)


@pytest.mark.parametrize("name", PAGES)
def test_fences_and_backticks_are_closed(name: str) -> None:
    assert text_of(name).count("```") % 2 == 0
    assert all(line.count("`") % 2 == 0 for line in FENCE.sub("", text_of(name)).splitlines() if line.startswith("|"))
