"""The root of the command line: global options, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys

import click

from cacheagent import __version__
from cacheagent.cli.agent import agent
from cacheagent.cli.cache import evict, ls, pin, status, unpin, verify
from cacheagent.cli.cluster.group import ONLY_HERE, cluster
from cacheagent.cli.controller import controller
from cacheagent.cli.demo import demo
from cacheagent.cli.peers import peers
from cacheagent.cli.pull import pull
from cacheagent.errors import CacheAgentError

EXIT_INTERRUPTED = 128 + signal.SIGINT

EXIT_CODES = """\b
Exit codes:
  0  done
  1  failed                 3  timed out (the work goes on)
  2  usage                  4  refused by policy
  130  interrupted"""


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cacheagent")
def cli() -> None:
    """Keep one verified copy of each model on this node's NVMe.

    \b
    Examples:
      cacheagent pull hf://sentence-transformers/all-MiniLM-L6-v2
      cacheagent pull s3://models/llama-3-70b --endpoint https://minio.example:9000
      cacheagent ls
      cacheagent agent --config models.yaml
    """


for command in (pull, ls, status, verify, pin, unpin, evict, *ONLY_HERE, cluster, agent, controller, peers, demo):
    cli.add_command(command)


def run(group: click.Group, name: str) -> None:
    """Run a command line, then exit with its code. A traceback is a bug; CACHEAGENT_DEBUG=1 shows it."""
    try:
        group.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Abort:  # what click makes of Ctrl-C
        click.echo("cacheagent: interrupted; what was proved is kept, the same command goes on from there", err=True)
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except CacheAgentError as error:
        if os.environ.get("CACHEAGENT_DEBUG"):
            raise
        _tell(error)
        code = error.exit_code
    else:
        code = 0
    gc.freeze()  # else the interpreter's end looks for garbage in all that was imported: 0.08 s that somebody waits for
    sys.exit(code)


def _tell(error: CacheAgentError) -> None:
    click.echo(f"cacheagent: {error.message}", err=True)
    if error.hint:
        click.echo(f"  next: {error.hint}", err=True)
