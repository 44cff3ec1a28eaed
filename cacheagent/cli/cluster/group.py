"""The commands on the cluster as one group: `cacheagent cluster …`, and `kubectl cacheagent …`."""

from __future__ import annotations

import click

from cacheagent import __version__
from cacheagent.cli.cluster.explain import explain
from cacheagent.cli.cluster.look import nodes, status
from cacheagent.cli.cluster.orders import evict, pin, refresh, unpin
from cacheagent.cli.cluster.warm import warm

ONLY_HERE = (warm, nodes, explain, refresh)
"""What there is on a cluster only: `cacheagent warm` needs no `cluster` in front."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cacheagent")
def cluster() -> None:
    """Models on the nodes of a Kubernetes cluster.

    `status`, `pin`, `unpin` and `evict` without `cluster` are about this machine's own cache. As a plug-in of kubectl
    (`kubectl cacheagent …`) all of them are about the cluster.

    \b
    Examples:
      cacheagent warm llama-3-70b --nodes pool=h100
      cacheagent cluster status llama-3-70b
      cacheagent explain pod/llama-0 -n serving
    """


for command in (*ONLY_HERE, status, pin, unpin, evict):
    cluster.add_command(command)
