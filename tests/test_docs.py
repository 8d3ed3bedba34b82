"""What the pages say is so: links lead somewhere, commands exist with their options, codes and figures are real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from netagent import errors
from netagent.cli import kubectl, main

TOP = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "examples/*.md")
    for path in TOP.glob(pattern)
    if path.is_file()
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))


# --- links ------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), target
        assert TOP in (aim, *aim.parents), f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(aim), target


def test_the_index_has_every_page() -> None:
    index = (TOP / "docs" / "README.md").read_text()
    for page in (*(TOP / "docs").glob("*.md"), *(TOP / "docs").glob("*/README.md")):
        name = str(page.relative_to(TOP / "docs"))
        assert name == "README.md" or f"]({name})" in index, name
    decisions = (TOP / "docs" / "decisions" / "README.md").read_text()
    for page in (TOP / "docs" / "decisions").glob("[0-9]*.md"):
        assert f"]({page.name})" in decisions, page.name


# --- commands ---------------------------------------------------------------------------------------------------

_OURS = ("netagent", "/opt/netagent/bin/netagent")


def command_lines(text: str) -> Iterator[str]:
    """Simple commands in the code blocks of a page, that are for a shell."""
    blocks = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    for _, language, block in blocks:
        if language not in ("", "console", "sh"):
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.lstrip().removeprefix("$ ") for line in lines if line.lstrip().startswith("$ ")]
        for line in lines:
            for part in re.split(r"\s\|\s|&&|;\s|\$\(|^if |^elif ", line.partition(" # ")[0]):
                yield re.split(r"\s\d?>", part)[0].strip().rstrip(")")


def ours(text: str) -> Iterator[tuple[str, list[str]]]:
    """Command lines of netagent: "netagent" or "kubectl", and the words after it."""
    for line in command_lines(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        if words and words[0] in _OURS:
            yield "netagent", words[1:]
        elif words[:2] == ["kubectl", "netagent"]:
            yield "kubectl", words[2:]
        elif words[:1] == ["kubectl"] and "--" in words and words[words.index("--") + 1] == "netagent":
            yield "netagent", words[words.index("--") + 2 :]


def parsed(words: list[str]) -> None:
    """Have click take the words as it would in earnest; nothing runs. UsageError if it does not."""
    with click.Context(main.main, info_name="netagent") as context:
        rest = [word for word in words if word not in ("-v", "-vv")]
        if rest[:1] in (["COMMAND"], ["--help"], ["-h"]):
            return
        command = main.main.get_command(context, rest[0]) if rest else None
        if command is None:
            raise click.UsageError(f"there is no command {rest[:1]}")
        if "--help" not in rest:
            command.make_context(rest[0], rest[1:], parent=context)


@every_page
def test_every_command_line_is_one_that_netagent_takes(page: Path) -> None:
    for program, words in ours(page.read_text()):
        try:
            if program == "kubectl":
                taken = kubectl.plugin.make_context("kubectl netagent", list(words)).params["words"]
                parsed(list(kubectl.lifted(taken, nodes=(), everywhere=False).words))
            else:
                parsed(words)
        except click.UsageError as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


@every_page
def test_every_command_that_is_mentioned_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("tells of what was, too")
    with click.Context(main.main) as context:
        names = set(main.main.list_commands(context))
    for name in re.findall(r"`(?:kubectl )?netagent (?:-v )?([a-z][a-z-]*)[^`]*`", page.read_text()):
        assert name in names, name


@every_page
def test_every_script_that_is_mentioned_exists(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.])(scripts/[\w/-]+(?:\.\w+)?)", page.read_text()):
        assert (TOP / name).exists(), name


def test_finding_command_lines_finds_them() -> None:
    text = "```console\n$ kubectl get x | netagent diff -f - > out   # why\nnetagent nonsense\n```\n"
    assert list(ours(text)) == [("netagent", ["diff", "-f", "-"])]
    with pytest.raises(click.UsageError):
        parsed(["dump", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parsed(["dunp", "-f", "x"])


def test_the_front_page_shows_what_explain_prints() -> None:
    command = "netagent explain default/idle -f examples --node-name demo-node"
    shown = (TOP / "README.md").read_text().partition(f"```console\n$ {command}\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=TOP, capture_output=True, text=True, timeout=60, check=True
    )
    assert shown == done.stdout


# --- exit codes -------------------------------------------------------------------------------------------------


def exit_codes() -> set[int]:
    """Every code that the program may end with."""

    def classes(base: type[errors.NetagentError]) -> Iterator[type[errors.NetagentError]]:
        yield base
        for derived in base.__subclasses__():
            yield from classes(derived)

    # 0 is success, 8 what `diff` says for 1.
    return {0, 8, *(one.exit_code for one in classes(errors.NetagentError))}


@pytest.mark.parametrize("name", ["docs/exit-codes.md", "docs/operating.md"])
def test_every_exit_code_is_in_the_table_and_no_other(name: str) -> None:
    table = (TOP / name).read_text().partition("| code | means |")[2].partition("\n\n")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted(exit_codes())


def test_every_exit_code_is_at_the_end_of_the_help() -> None:
    listed = re.findall(r"(?:^|  )(\d+)  [a-z]", main.main.epilog or "", re.MULTILINE)
    assert {int(code) for code in listed} == exit_codes()
    assert len(listed) == len(set(listed))


def test_every_command_that_judges_has_its_row() -> None:
    page = (TOP / "docs/exit-codes.md").read_text()
    with click.Context(main.main) as context:
        for name in main.main.list_commands(context):
            assert f"`{name}`" in page, name


# --- figures ----------------------------------------------------------------------------------------------------


def test_the_figures_of_the_front_page_are_those_of_the_report() -> None:
    report = (TOP / "docs/performance.md").read_text()
    table = (TOP / "README.md").read_text().partition("| measured |")[2].partition("\n\n")[0]
    assert table
    figures = re.findall(r"\b\d[\d,]*(?:\.\d+)? (?:ms|ns|MB)\b", table)
    assert len(figures) >= 8
    for figure in figures:
        number = figure.split()[0]
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,])", report), (
            f"{figure} is not in docs/performance.md"
        )
