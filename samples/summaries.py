"""Summaries that people wrote: the first line of a Python docstring says in one sentence what the paragraphs after it
say at length. Sources are parsed, not imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from samples.rows import divided, write_jsonl

LIBRARIES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "pandas": "pandas", "networkx": "networkx"}
NOT_PROSE = re.compile(
    r"^\s*[-=~]{3,}\s*$|^\s*(Args|Parameters|Returns|Examples?)\b|>>>|^\s*\.\. |^\s*:\w+|^\s*\|", re.M
)
MIN_WORDS, MAX_WORDS = 25, 300  # of the description
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 4, 30


def summaries(into: Path, have: dict[str, Path]) -> None:
    """Docstrings of the installed numpy, scipy, scikit-learn, pandas and networkx (all BSD-3-Clause): `source` is the prose
    between the first paragraph and the first section or code, `target` the first paragraph, white space collapsed. Of
    equal sources or targets one was kept. Divided 80:10:10 by module, so that no module is in two splits, into
    {train,validation,test}.jsonl; `library` and `module` say where a row comes from. versions.txt names the versions."""
    by_module: dict[tuple[str, str], list[dict[str, str]]] = {}
    seen: set[str] = set()
    for package, library in LIBRARIES.items():
        for module, text in _sources(package):
            for source, target in pairs_of(text):
                if seen.isdisjoint((source, target)):
                    seen |= {source, target}
                    row = {"source": source, "target": target, "library": library, "module": module}
                    by_module.setdefault((library, module), []).append(row)
    for split, modules in divided(by_module.values()).items():
        write_jsonl(into / f"{split}.jsonl", (row for rows in modules for row in rows))
    versions = (f"{library}=={version(library)}\n" for library in LIBRARIES.values())
    (into / "versions.txt").write_text("".join(versions))


def pairs_of(text: str) -> Iterator[tuple[str, str]]:
    """(description, summary) of every docstring in a Python source that has both."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        summary, *rest = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
        prose = []
        for paragraph in rest:
            if NOT_PROSE.search(paragraph):
                break
            prose.append(" ".join(paragraph.split()))
        source, target = " ".join(prose), " ".join(summary.split())
        fits = MIN_WORDS <= len(source.split()) <= MAX_WORDS and not NOT_PROSE.search(summary)
        if fits and MIN_SUMMARY_WORDS <= len(target.split()) <= MAX_SUMMARY_WORDS:
            yield source, target


def _sources(package: str) -> Iterator[tuple[str, str]]:
    """(path inside the package, text) of its modules, tests excluded, in a fixed order."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if "tests" not in inside.parts and "_vendored" not in inside.parts:
            yield str(inside), path.read_text(encoding="utf-8")
