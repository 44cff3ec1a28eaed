"""On the agents' PYTHONPATH: Python runs it first, so nobody has seen other sizes of pieces and cohorts than the run
asks for, and the member that is to lie gives the first piece of a file for each of them."""

import os

import cacheagent.cohorts
import cacheagent.model

cacheagent.model.PIECE_SIZE_BYTES = int(os.environ["FANOUT_PIECE_BYTES"])  # type: ignore[misc]
cacheagent.cohorts.COHORT = int(os.environ["FANOUT_COHORT"])  # type: ignore[misc]

if os.environ.get("FANOUT_LIES"):
    from cacheagent.peers.shelf import Place, Shelf

    tell_place = Shelf.place

    def place(self: Shelf, piece: int) -> Place:
        """True is what the seal says, which is of the piece that was asked for."""
        return tell_place(self, piece)._replace(offset=0)

    Shelf.place = place  # type: ignore[method-assign]
