"""The README says what the program really prints and takes: its symptoms, its commands and their options; and what it,
and the documentation, point at is there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from cacheagent.cli.root import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SYMPTOMS = README.partition("## Troubleshooting")[2]
NOT_OURS = {
    "No space left on device",
    "Read-only file system",
    "Input/output error",
    "AccessDenied",
    "401",
    "403",
    "412",
}
"""What the kernel and origins say; a number in a sentence is an origin's, too."""
FIGURES = re.compile(r"\b\d[\d.]* ?[KMGT]?B\b")


def program_texts() -> str:
    """Every string constant of the product, f-strings with their values left out."""
    texts = []
    for path in (ROOT / "cacheagent").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(texts)


def symptoms() -> list[str]:
    """What stands between backticks in the first column, cut where it says that something was left out."""
    cells = re.findall(r"^\| (.*?) \|", SYMPTOMS, re.MULTILINE)
    quoted = [
        quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell) if not quote.startswith("cacheagent ")
    ]
    return [part for quote in quoted for part in re.split(r"\s*…\s*", FIGURES.sub("…", quote)) if part.strip(" :,")]


def test_every_symptom_is_what_the_program_says() -> None:
    """Part by part, as it is written in the source."""
    said = program_texts()
    parts = [part.strip(" :,") for part in symptoms()]
    assert len(parts) > 15
    assert "is in use by" in said
    assert "is in use by nobody" not in said
    for foreign in NOT_OURS:
        parts = [part.removesuffix(foreign).strip() for part in parts]
    assert [part for part in parts if part and part not in said] == []


def commands() -> list[str]:
    """Command lines in console blocks and between backticks; without comments and what follows in a pipe."""
    blocks = "\n".join(re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^\$ ((?:kubectl )?cacheagent .*)$", blocks, re.MULTILINE)
    lines += re.findall(r"\$\((cacheagent [^)|]*)", blocks)
    lines += re.findall(r"`(cacheagent [a-z][^`]*)`", README)
    return [re.split(r"\s+(?:#|&|\|)", line)[0].removeprefix("kubectl ") for line in lines]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_exists_with_its_options(line: str) -> None:
    """Down to the last group, and every option that is named."""
    command: click.Command = cli
    words = [word for word in shlex.split(line)[1:] if word != "…"]
    while isinstance(command, click.Group) and words:
        assert words[0] in command.commands, f"{words[0]} of: {line}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known


def test_the_table_of_commands_has_every_command() -> None:
    """And none that does not exist."""
    table = README.partition("| command | what it does |")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {quote.split()[0] for cell in first_cells for quote in re.findall(r"`([^`]+)`", cell)}
    assert named == set(cli.commands)


def every_command(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    """By its words, below the groups."""
    if not isinstance(command, click.Group):
        return [(name, command)]
    return [found for word, each in command.commands.items() for found in every_command(each, f"{name} {word}")]


@pytest.mark.parametrize(("name", "command"), every_command(cli, "cacheagent"))
def test_every_help_has_an_example(name: str, command: click.Command) -> None:
    """Of the command itself; those that are on a cluster only may be shown by their short names."""
    _, _, examples = (command.help or "").partition("Example")
    assert re.search(rf"^ *{name.replace(' cluster ', ' (cluster )?')}\b", examples, re.MULTILINE)


def test_every_target_of_make_exists() -> None:
    """Between backticks, and in console blocks."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(each.relative_to(ROOT)) for each in ROOT.glob("docs/**/*.md"))]
)
def test_every_link_leads_somewhere(page: str) -> None:
    """To a file, and where it names one, to a heading of it."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target
