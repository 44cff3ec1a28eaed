"""The recipes call commands and options that are there, and a pipeline sees how they end."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cacheagent.cli.cluster.group import cluster
from cacheagent.cli.root import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/pipelines"
NAMES = "warm|cluster|nodes|explain|refresh"
CALL = re.compile(rf"^\s*(?:\$ )?(?:kubectl )?cacheagent ((?:{NAMES})\b[^\n|&;]*)", re.MULTILINE)


def parses(arguments: list[str], group: click.Group = cli) -> None:
    """Raises UsageError for what no command takes."""
    name, *rest = arguments
    command = group.commands[name]
    if isinstance(command, click.Group):
        parses(rest, command)
    else:
        command.make_context(name, rest)


def commands_in(text: str) -> list[list[str]]:
    """Every call of the program in a text: to the end of the line, or to what the shell reads otherwise."""
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text.replace("\\\n", " "))  # defaults of the shell's variables
    return [shlex.split(each) for each in CALL.findall(text)]


@pytest.mark.parametrize("name", ["rollout.sh", "github-actions.yaml"])
def test_calls_in_scripts_parse(name: str) -> None:
    calls = commands_in((FOLDER / name).read_text())
    assert calls
    for call in calls:
        parses(call)


def test_calls_in_the_documentation_parse() -> None:
    calls = commands_in((ROOT / "docs/commands-cluster.md").read_text())
    assert len(calls) > 2
    for call in calls:
        parses(call)


def test_the_job_of_the_hooks() -> None:
    """It runs what the image's entry point takes, once, with an account that has the operators' role."""
    items: list[Any] = list(yaml.safe_load_all((FOLDER / "hook-job.yaml").read_text()))
    account, binding, job = items
    pod = job["spec"]["template"]["spec"]
    parses([str(each) for each in pod["containers"][0]["args"]])
    assert job["spec"]["backoffLimit"] == 0
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == "cacheagent-operator"
    for item in items:  # made before the release or the sync, in an order that works
        annotations = item["metadata"]["annotations"]
        assert annotations["argocd.argoproj.io/hook"] == "PreSync"
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_a_step_fails_when_the_command_does() -> None:
    """A pipe to `tee` would hide it, were there no pipefail."""
    workflow = yaml.safe_load((FOLDER / "github-actions.yaml").read_text())
    for step in workflow["jobs"]["deploy"]["steps"]:
        if "| tee" in step.get("run", ""):
            assert step["shell"] == "bash"


def test_the_script_is_plain_shell() -> None:
    subprocess.run(["sh", "-n", FOLDER / "rollout.sh"], check=True)


@pytest.mark.parametrize("command", cluster.commands.values(), ids=str)
def test_examples_in_the_help_parse(command: click.Command) -> None:
    for call in commands_in(command.help or ""):
        parses(call if call[0] in cli.commands and call[0] != "status" else ["cluster", *call])
