"""On the agents' PYTHONPATH: Python runs it first, so nobody has seen another size of pieces than the run asks for."""

import os

import cacheagent.model

cacheagent.model.PIECE_SIZE_BYTES = int(os.environ["FANOUT_PIECE_BYTES"])  # type: ignore[misc]
