"""Which project files a script imports, read from the source: the ground truth for `deps` in dvc.yaml."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "projected_grpo"


def imported_files(script: Path, root: Path) -> set[str]:
    """Project files that `script` imports, directly or not, as paths relative to `root`; the script included.

    Imports inside functions count; those under `if TYPE_CHECKING` do not run and do not count. Importing a
    module runs the `__init__` of each package above it. Modules loaded by a computed name are not seen.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imports(path, root / "src"))
    return {path.relative_to(root).as_posix() for path in found}


def _imports(path: Path, source: Path) -> Iterator[Path]:
    for node in _running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, source)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.relative_to(source).parent.parts[: -(node.level - 1) or None]
                module = ".".join([*package, *filter(None, [module])])
            yield from _files(module, source)
            for alias in node.names:  # `from package import module`
                yield from _files(f"{module}.{alias.name}", source)


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and all below it, without what only a type checker sees."""
    yield node
    checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in node.orelse if checked else ast.iter_child_nodes(node):
        yield from _running_nodes(child)


def _files(module: str, source: Path) -> Iterator[Path]:
    """The file of a module of the package and the `__init__` files above it; nothing for other names."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return
    for length in range(1, len(parts) + 1):
        stem = source.joinpath(*parts[:length])
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                yield file
