"""docs/corpus.md, from the rows that ``python -m tests.corpus`` keeps."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tests.corpus.families import FAMILIES, VOCABULARIES, WIDTH
from tests.corpus.packages import PACKAGES
from tests.corpus.stages import MODULE_STAGES, STAGES, take_module
from tieops.ir.notation import brief_bytes, counted

__all__ = ["PAGE", "not_run", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "corpus.md"
SMALL, LARGE = VOCABULARIES
STEPS = {"import": take_module, **STAGES, **MODULE_STAGES}

HEAD = """# Corpus

Models of other people, each taken through all that tieops does: {families} architectures of
transformers that tie weights, {both} of them at two sizes, and {files} ONNX files out of {packages}
packages.
`python -m tests.corpus` runs what has no row yet and writes this page;
`python -m tests.corpus --again gpt2 silero-vad` runs these two again. The rows are kept in
`tests/corpus/results.json`. They were run with {versions}.

Of {stages} stages {passed} hold, {nothing} have nothing to do, {refused} are refused, for the
reasons [below](#refused), and {failed} fail.

| stage | what has to hold |
|---|---|
{steps}

"The same bits" is said of ONNX Runtime on the CPU, with its graph optimizations and its packing of
stored matrices off. Elsewhere rounding may differ, within `rtol=1e-4` and `atol=1e-5`.

In the tables, **yes** holds, **–** has nothing to do (one output, nothing tied), and a number is a
refusal.
{left}"""

FAMILY_HEAD = f"""
## Architectures

Built from configs with random weights, two layers, width {WIDTH}, and a vocabulary of {SMALL} and
of {LARGE:,}: the shared weight is under and over the 8,192 elements from which torch's optimizer
leaves a weight alone. Sizes that came out alike are one row. *Saved* is at each of them.
The old exporter is given the smaller one.
"""
PACKAGE_HEAD = """
## Packages

Files of one folder that came out alike are one row. *Joined* is what `tie` takes off the file;
*saved* is what its readers share then, counted as if each owned it.
"""


def page(results: Mapping[str, Any]) -> str:
    """Return the page's text."""
    models: Mapping[str, Any] = results["models"]
    outcomes = [outcome for row in models.values() for outcome in row["stages"].values()]
    kinds = [outcome.partition(":")[0] for outcome in outcomes]
    notes = _Notes()
    families = _families(models, notes)
    packages = _packages(models, notes)
    head = HEAD.format(
        families=len({key.partition("/")[0] for key in models} & FAMILIES.keys()),
        both=sum(all(f"{name}/{v}" in models for v in VOCABULARIES) for name in FAMILIES),
        files=sum(key.partition("/")[0] in PACKAGES for key in models),
        packages=len({key.partition("/")[0] for key in models} & PACKAGES.keys()),
        versions=", ".join(f"{name} {number}" for name, number in results["versions"].items()),
        steps="\n".join(f"| {name} | {_said(step)} |" for name, step in STEPS.items()),
        stages=f"{len(outcomes):,}",
        passed=f"{kinds.count('pass'):,}",
        nothing=f"{kinds.count('none'):,}",
        refused=kinds.count("refused"),
        failed=kinds.count("fail"),
        left=_left(models),
    )
    return "".join([head, FAMILY_HEAD, families, PACKAGE_HEAD, packages, notes.text()])


def _left(models: Mapping[str, Any]) -> str:
    left = not_run(models)
    return f"\nNot run yet: {', '.join(left)}.\n" if left else ""


def not_run(models: Mapping[str, Any]) -> list[str]:
    """Return what has no row yet: families by vocabulary, and packages."""
    seen = {key.partition("/")[0] for key in models}
    families = [f"{name}/{vocab}" for vocab in VOCABULARIES for name in FAMILIES]
    return [key for key in families if key not in models] + [n for n in PACKAGES if n not in seen]


def _said(stage: Any) -> str:
    """Return what a stage holds a model to: the first sentence of its description."""
    return " ".join((inspect.getdoc(stage) or "").partition("\n\n")[0].split())


class _Notes:
    """Reasons by number, in the order in which the tables name them."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.models: defaultdict[str, list[str]] = defaultdict(list)

    def cells(self, name: str, row: Mapping[str, Any], steps: Iterable[str]) -> list[str]:
        """Return a row's outcomes, and remember its reasons."""
        return [self._cell(name, row["stages"].get(step, "")) for step in steps]

    def _cell(self, name: str, outcome: str) -> str:
        kind, _, reason = outcome.partition(": ")
        if kind == "pass":
            return "yes"
        if kind in ("", "none") and not reason.startswith("torch"):
            return "–"
        self.models[outcome].append(name)
        number = self.numbers.setdefault(outcome, len(self.numbers) + 1)
        return f"**{number}**" if kind == "fail" else str(number)

    def text(self) -> str:
        """Return what the numbers stand for."""
        lines = ["\n## Refused\n"]
        for outcome, number in self.numbers.items():
            kind, _, reason = outcome.partition(": ")
            said = f"fails: {reason}" if kind == "fail" else reason
            lines.append(f"{number}. `{said.replace('`', chr(39))}`")
        return "\n".join(lines) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = [*head]
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _families(models: Mapping[str, Any], notes: _Notes) -> str:
    rows: list[list[str]] = []
    for name, family in FAMILIES.items():
        run = {v: models[f"{name}/{v}"] for v in VOCABULARIES if f"{name}/{v}" in models}
        alike: defaultdict[str, list[int]] = defaultdict(list)
        for vocab, row in run.items():
            alike[str({k: v for k, v in row["stages"].items() if k in STAGES})].append(vocab)
        for vocabs in alike.values():
            row = run[vocabs[0]]
            saved = ", ".join(brief_bytes(run[each].get("saved_bytes", 0)) for each in vocabs)
            facts = [str(row.get("parameters", "–")), str(row.get("ties", "–")), saved]
            sizes = ", ".join(f"{each:,}" for each in vocabs)
            rows.append([name, family.model, sizes, *facts, *notes.cells(name, row, STEPS)])
    return _table(["family", "class", "vocabulary", "parameters", "ties", "saved", *STEPS], rows)


def _packages(models: Mapping[str, Any], notes: _Notes) -> str:
    steps = [step for step in STEPS if step not in MODULE_STAGES]
    text = _table(
        ["package", "license", "what its models are for"],
        [[name, each.license, each.about] for name, each in PACKAGES.items()],
    )
    groups: defaultdict[tuple[str, ...], list[tuple[str, Any]]] = defaultdict(list)
    for key, row in models.items():
        package, _, member = key.partition("/")
        if package in PACKAGES:
            place = PurePosixPath(member).parent
            place = place.parent if PurePosixPath(member).name == "model.onnx" else place
            cells = notes.cells(key, row, steps)
            groups[(package, str(place), *cells)].append((member, row))
    rows: list[list[str]] = []
    for (package, place, *cells), found in groups.items():
        members, facts = zip(*found, strict=True)
        what = members[0] if len(members) == 1 else f"{place}: {counted(len(members), 'file')}"
        sums = [sum(row.get(key, 0) for row in facts)
                for key in ("parameters", "ties", "joined_bytes", "saved_bytes")]  # fmt: skip
        numbers = [f"{sums[0]:,}", f"{sums[1]:,}", *(brief_bytes(each) for each in sums[2:])]
        rows.append([package, what, *numbers, *cells])
    head = ["package", "file", "parameters", "ties", "joined", "saved", *steps]
    return text + _table(head, rows)
