"""What the agent's process and its two peer processes say to each other. Values only; msgpack on the wire, framed as
those of the transfer workers.

The server process gives pieces to others; it holds the node's key. The receiver takes them from others and writes them
to disk; it holds no key but public ones. Pieces are numbered as in `cacheagent.peers.protocol`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cacheagent.model import Value
from cacheagent.transfer.orders import CrcAlgorithm, PieceHash

# --- to the server
# ----------------------------------------------------------------------------------------------------------------


class Start(Value, tag="start"):
    """The first order. `egress_cap_bytes_per_s`: 0 is none. `tls`: whether peers speak it, all of them. `root`: the
    cache directory, whose disk others read too."""

    name: str
    seed: bytes
    root: str
    egress_cap_bytes_per_s: int = 0
    tls: bool = False


class Have(Value, tag="have"):
    """A piece is on disk and proved. `signer`, `signature`: of whoever it came from; empty for this node itself."""

    digest: str
    piece: int
    blake3: bytes
    signer: str = ""
    signature: bytes = b""


class Serve(Value, tag="serve"):
    """A digest, from now on; said again when something of it changed. `members`: raw public keys by name, this node's
    own too; of them, those of the cohorts `above` and `below`. `sizes`: of the large files, in order. `paths`: where
    they are now; empty where one is not staged yet. `hashes`: the raw BLAKE3 of all pieces if all are here, else empty.
    `seals`: of those among them for which others vouch. `first`: the piece that `hashes` begin with; what is long comes
    in several orders, all but the last of which say that it `goes_on`.
    """

    digest: str
    members: dict[str, tuple[bytes, ...]]
    homes: tuple[str, ...]
    sizes: tuple[int, ...]
    paths: tuple[str, ...]
    hashes: bytes = b""
    seals: tuple[Have, ...] = ()
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    first: int = 0
    goes_on: bool = False

    def with_path(self, file: int, path: str) -> Serve:
        """One of the files lies there."""
        return msgspec.structs.replace(self, paths=(*self.paths[:file], path, *self.paths[file + 1 :]))


class Staged(Value, tag="staged"):
    """A file of a digest is being brought: its pieces come to this path. `file` counts the large files."""

    digest: str
    file: int
    path: str


class Part(Value, tag="part"):
    """So many bytes of a piece are on disk, from its beginning on; not proved."""

    digest: str
    piece: int
    length: int


class Lost(Value, tag="lost"):
    """These are served no more."""

    digest: str
    pieces: bytes


class Withdraw(Value, tag="withdraw"):
    """The digest is served no more: not here, or not any more. Whoever waits for it is refused."""

    digest: str


ServerOrder = Start | Serve | Staged | Part | Have | Lost | Withdraw

# --- from the server
# --------------------------------------------------------------------------------------------------------------


class Sought(Value, tag="sought"):
    """Somebody asks for a digest that is not served, or that he is no member of. Answered by Serve or Withdraw."""

    digest: str


class Adopt(Value, tag="adopt"):
    """A member asks this node to fetch pieces if nobody else brings them."""

    digest: str
    client: str
    pieces: bytes


class Refused(Value, tag="refused"):
    """Somebody was sent away. `client`: what it called itself, cut to 64 characters."""

    reason: str
    client: str
    message: str


class Backlog(Value):
    """What is here and was not sent yet. `seconds`: that it takes, for most of those who want it; who takes nothing
    counts no more than others. `behind`: those who have much more to get than most."""

    seconds: float
    behind: tuple[str, ...] = ()


class Counts(Value, tag="counts"):
    """Since the process started; `connections` now. `yields`: how often it began to step back for others who read.
    `backlogs`: of each digest that is not complete and that somebody wants something of."""

    sent_bytes: int
    connections: int
    yields: int
    backlogs: dict[str, Backlog] = {}


ServerReport = Sought | Adopt | Refused | Counts

# --- to the receiver
# --------------------------------------------------------------------------------------------------------------


class Target(Value, tag="target"):
    """A file that pieces are written to. `first`: number of its first piece. `cuts`: as in `FetchPiece`, of the whole
    file."""

    session: int
    first: int
    path: str
    size_bytes: int
    crcs: tuple[CrcAlgorithm, ...]
    cuts: tuple[int, ...] = ()


class Keys(Value, tag="keys"):
    """Who may vouch for pieces in a session: raw public keys by name. `seals`: the file that keeps who did (see
    `vouchers`), but not this node's own word (`me`) when it comes back."""

    session: int
    digest: str
    keys: dict[str, tuple[bytes, ...]]
    me: str = ""
    seals: str = ""


class Connect(Value, tag="connect"):
    """Open a subscription at the member of that name. Answered by `Said` for each note of the server, and by one
    `Ended` at the end. `tls_keys`: the raw public keys one of which must have issued the certificate that it shows;
    empty: no TLS."""

    id: int
    session: int
    name: str
    host: str
    port: int
    tls_keys: tuple[bytes, ...] = ()


class Say(Value, tag="say"):
    """Send this on the connection. `expect`: pieces that it may bring from now on, nobody else brings them."""

    id: int
    data: bytes
    expect: bytes = b""


class Release(Value, tag="release"):
    """What is left of these pieces is not written any more; answered by Released."""

    id: int
    number: int
    pieces: bytes


class Disconnect(Value, tag="disconnect"):
    """End it; answered by Ended, after which nothing of it is written."""

    id: int


class Forget(Value, tag="forget"):
    """The session is over, its connections have ended."""

    session: int


ReceiverOrder = Target | Keys | Connect | Say | Release | Disconnect | Forget

# --- from the receiver
# ------------------------------------------------------------------------------------------------------------


class Said(Value, tag="said"):
    """A note of the server, as it came. `channel`: of the connection, see `protocol.Session`."""

    id: int
    body: bytes
    channel: bytes = b""


class Arrived(Value, tag="arrived"):
    """A piece is whole, on disk, and as its seal says, whose signature is right. `piece.index` counts in its file.
    `unkept`: why its seal is not on disk, if it isn't."""

    id: int
    number: int
    piece: PieceHash
    signer: str
    signature: bytes
    unkept: str = ""

    def seal(self, digest: str) -> Have:
        """What its signer said, of a version's piece."""
        return Have(
            digest=digest,
            piece=self.number,
            blake3=bytes.fromhex(self.piece.blake3),
            signer=self.signer,
            signature=self.signature,
        )


class Unproved(Value, tag="unproved"):
    """A piece was whole, and nobody who may has signed its seal, which names somebody else than the server. It is not
    expected of the connection any more."""

    id: int
    number: int
    signer: str


class Progress(Value, tag="progress"):
    """Bytes that came on a connection since the last time. `useful_bytes`: of them, of pieces that were expected, and
    further than they had ever been on this connection. `begun`: pieces of which a part has come."""

    id: int
    received_bytes: int
    useful_bytes: int = 0
    begun: tuple[int, ...] = ()


class Released(Value, tag="released"):
    """See Release."""

    number: int


EndKind = Literal[
    "connect", "reset", "timeout", "protocol", "mismatch", "forged", "disk", "closed", "stuck", "tls", "key"
]
"""`mismatch`: bytes and their seal differ. `forged`: a seal of the server that it has not signed. `closed`: as ordered.
`stuck`: said of a process that hangs in the kernel, which may still write what was expected. `tls`: the two sides do
not come together in it. `key`: the certificate that was shown was issued by none of the member's keys."""


class Ended(Value, tag="ended"):
    """The connection is over and nothing of it is written any more, unless it is `stuck`."""

    id: int
    kind: EndKind
    message: str


ReceiverReport = Said | Arrived | Unproved | Progress | Released | Ended
