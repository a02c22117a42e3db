"""Encryption-then-compression: the classifier is trained on scrambled pictures (Chuman, Sirichotedumrong, Kiya 2019).

What their paper (IEEE TIFS 14(6), arXiv 1811.00236) does: it sends pictures through social networks. A colour picture's
three planes become one gray picture of three times the size; its 8x8 blocks are permuted, rotated or inverted, and
negated; the result is compressed as JPEG by the provider, and the receiver, who has the key, puts the picture back.
Nobody learns from it and there is no federation.

What this method does is what the comparison in PPIDSG (arXiv 2312.10380) makes of it: clients train a classifier on
scrambled pictures and share all of it, as in federated averaging. The differences to the paper, plainly:

* Nothing is compressed as JPEG. Networks see exactly what the cipher gives.
* Colour pictures stay colour pictures: blocks are permuted with their three planes together, and their colours are
  shuffled within a block. The paper's gray order, which hides colours better and makes three times as many blocks, is
  not built; for gray pictures the two are alike.
* The cipher is :class:`veilmark.ppidsg.cipher.Cipher`, with blocks of 4 by default where the paper takes 8.
* A test picture is scrambled with the client's secret before it is answered: the trained classifier understands
  scrambled pictures only. The server has no secret, so it cannot use what it averages on pictures of its own.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.methods.ppidsg import PPIDSGOptions, Scope, cipher_of
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.cipher import BLOCKS, STEPS
from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import ConfigError


class EtCOptions(BaseModel):
    """Options of ``etc``.

    Attributes:
        scope: Whose secret scrambles: one that all clients share (``federation``), one of each ``client``, or one of
            each ``image``, derived from the client's.
        block: Side of the cipher's blocks in pixels; it divides the pictures' side.
        without: Steps of the cipher that are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    scope: Scope = "federation"
    block: int = 4
    without: tuple[str, ...] = ()

    @field_validator("block")
    @classmethod
    def _block(cls, block: int) -> int:
        if block not in BLOCKS:
            raise ValueError(f"allowed: {', '.join(map(str, BLOCKS))}")
        return block

    @field_validator("without")
    @classmethod
    def _steps(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [step for step in without if step not in STEPS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no step of the cipher; known: {', '.join(STEPS)}")
        return without


class ScramblingClient(FedAvgClient):
    """Federated averaging on scrambled pictures.

    Args:
        view: What the client knows.
        options: How it scrambles.

    Raises:
        ConfigError: If the pictures are no whole number of blocks.
    """

    def __init__(self, view: ClientView, options: EtCOptions) -> None:
        same = PPIDSGOptions(scope=options.scope, block=options.block, without=options.without)
        self.cipher = cipher_of(same, view.secrets.federation, view.secrets.own)
        self.by_image = options.scope == "image"
        height, width = view.data.inputs.shape[2:]
        if self.cipher.padded(height, width) != (height, width):
            raise ConfigError(
                f"pictures of {height} x {width} px are no whole number of blocks of {options.block}; use another block"
            )
        data = view.data
        # Scrambled once: the secret does not change within a run.
        hidden = self.cipher.scramble(data.inputs, list(data.names) if self.by_image else None)
        learner = view.learner(Data(hidden, data.targets, data.names))
        super().__init__(view, learner, list(learner.model.state_dict()))

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Answers to test inputs, scrambled first; in the scope ``image`` each is named by its place."""
        names = [f"test/{row}".encode() for row in range(len(inputs))] if self.by_image else None
        return super().predict(broadcast, self.cipher.scramble(inputs, names))


class EncryptThenCompress(Method[EtCOptions]):
    """A classifier of scrambled pictures, shared whole."""

    summary = "a classifier of scrambled pictures, whole"
    source = "Chuman, Sirichotedumrong and Kiya 2019, arXiv 1811.00236"
    tasks = ("classify",)
    model = EtCOptions

    @property
    def personal(self) -> bool:
        """Clients answer the same where all scramble with one secret."""
        return self.options.scope != "federation"

    def client(self, view: ClientView) -> Client:
        """A client that scrambles what it learns from and what it answers."""
        return ScramblingClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages; it has no secret."""
        return FedAvgServer(view.task.network(view.seed).state_dict(), view.task.metrics)
