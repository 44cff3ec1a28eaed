"""The command line: what a person types, what they read, and the exit codes that pipelines act on."""

import gc

# A command makes many objects that stay, and little garbage. With Python's own 700, looking for it takes an eighth of
# the time until an origin is asked for the first byte.
gc.set_threshold(50_000)
