"""`python -m cacheagent`: the same as the command `cacheagent`."""

from cacheagent.cli.main import main

main()
