"""Noisy SGD on clipped gradients of single examples: DP-SGD (Abadi et al. 2016, arXiv 1607.00133), by Opacus.

Each client draws every example into a step with probability q = batch / examples, clips each example's gradient to a
norm, adds Gaussian noise to their sum, and divides by the expected batch. An accountant (PRV of Gopi et al. 2021, or
RDP of Mironov 2017) says what its rounds have spent; a client whose next round would spend more than its budget does
not train any more: it sends back what it was sent. With ``training.optimizer = adamw`` the noisy gradients go to AdamW
in place of SGD, which spends nothing more: its memory is made of what the accountant has counted. ``training.clip``
does nothing here, where ``options.dpsgd.clip`` holds for each example. Noise that nobody names is as little as lets the
budget last for all rounds (:func:`fitted_noise`): by the number of a client's examples, which the server is told, and
nothing else of them.

**The unit of privacy is one example of one client; neighbours differ by adding or removing one example.** Epsilon holds
for everything that a client sends in the whole run, against whoever sees it, the server included. What it does not
cover: how many examples a client has (the server is told), and a client's examples as a whole. Runs on the same
examples add up, and so do rounds that a server has a client play twice: the count is of what the client remembers.
Chance, that of augmentation too, comes from the client's secret, so that nobody else can draw it again, and from what
it hides (:func:`veilmark.federation.methods.release.secret_for`), so that no two messages share noise that would
cancel; through generators that are not cryptographic: whoever needs that runs Opacus's secure mode.

``none`` with the same ``data.head_widths`` is the same network without clipping and noise.
"""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.methods.release import private_rng, secret_for
from veilmark.federation.tasks.task import Learner
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import batches, rate, set_share, sgd

LARGEST_NETWORK = 2_000_000
"""Parameters; a gradient is kept for each example."""

LARGEST_EPSILON = 100
"""Of budgets that a noise is fitted to."""

AT_ONCE = 16
"""Examples whose gradients are held at the same time."""


class DPSGDOptions(BaseModel):
    """Options of ``dpsgd``.

    Attributes:
        epsilon: Budget of a client, for the whole run.
        delta: Of the same promise; well below 1 / examples.
        noise: Noise multiplier: the noise's standard deviation over ``clip``. None: as little as the budget allows if
            it is to last for all rounds.
        clip: Largest norm of one example's gradient.
        accountant: ``prv`` (tighter) or ``rdp``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epsilon: float = Field(8.0, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    noise: float | None = Field(None, gt=0)
    clip: float = Field(1.0, gt=0)
    accountant: Literal["prv", "rdp"] = "prv"

    @model_validator(mode="after")
    def _fit(self) -> DPSGDOptions:
        if self.noise is None and self.epsilon > LARGEST_EPSILON:
            raise ValueError(
                f"epsilon = {self.epsilon:g}: above {LARGEST_EPSILON} it promises next to nothing, and accountants "
                "take long to fit a noise to it; name one, e.g. noise=0.1"
            )
        return self


@functools.lru_cache(maxsize=256)
def spent(options: DPSGDOptions, noise: float, sample_rate: float, steps: int) -> float:
    """Epsilon of a client after some steps, an upper bound.

    Args:
        options: Delta, accountant.
        noise: Noise multiplier.
        sample_rate: q, 0 to 1.
        steps: Steps so far.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    if not steps:
        return 0.0
    accountant: Any = {"prv": PRVAccountant, "rdp": RDPAccountant}[options.accountant]()
    accountant.history = [(noise, sample_rate, steps)]
    try:
        # Every example in every step (q = 1) has the accountant divide by nothing on the way.
        with np.errstate(all="ignore"):
            return float(accountant.get_epsilon(delta=options.delta))
    except ValueError as error:
        raise ConfigError(
            f"options.dpsgd.delta = {options.delta}: {options.accountant} cannot count {steps} steps with noise "
            f"{noise:g} ({error}); take a usual delta, e.g. 1e-5, or another accountant"
        ) from error


@functools.lru_cache(maxsize=256)
def fitted_noise(options: DPSGDOptions, sample_rate: float, steps: int) -> float:
    """A noise multiplier with which some steps spend nearly the whole budget, and no more.

    Args:
        options: Epsilon, delta, accountant.
        sample_rate: q, 0 to 1.
        steps: Steps of the whole run, 1 at least.

    Raises:
        ConfigError: If no noise is enough for so small a budget.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            # Noises far from the answer are tried too, for which RDP has too few orders.
            warnings.filterwarnings("ignore", "Optimal order is the")
            noise = get_noise_multiplier(
                target_epsilon=options.epsilon,
                target_delta=options.delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=options.epsilon / 100,
            )
    except ValueError as error:
        raise ConfigError(
            f"options.dpsgd.epsilon = {options.epsilon}, delta = {options.delta}: RDP finds no noise that is enough "
            f"for {steps} steps; take a larger epsilon or fewer rounds, or name a noise"
        ) from error
    # PRV counts less for the same noise, but takes seconds to minutes at noises far from the answer.
    lower = [share * noise for share in (0.91, 0.94, 0.97)] if options.accountant == "prv" else []
    return float(next((less for less in lower if spent(options, less, sample_rate, steps) <= options.epsilon), noise))


class DPSGDClient(FedAvgClient):
    """Trains the whole network by noisy SGD until its budget is spent.

    Args:
        view: What the client knows.
        learner: Network and examples.
        options: Budget and noise.
    """

    def __init__(self, view: ClientView, learner: Learner, options: DPSGDOptions) -> None:
        super().__init__(view, learner, list(learner.model.state_dict()))
        self.options, self.steps = options, 0
        # The noise multiplier; found now, so that a budget that cannot be met is refused before any work.
        self.noise = options.noise or fitted_noise(options, self.sample_rate, view.rounds * self._steps(0))

    @property
    def sample_rate(self) -> float:
        """q: the chance of an example to be in a step."""
        return min(1.0, self.view.training.batch / self.learner.examples)

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """As many noisy steps as others take plain ones; none if they would spend too much."""
        options, noise, steps = self.options, self.noise, self._steps(round_number)
        stopped = spent(options, noise, self.sample_rate, self.steps + steps) > options.epsilon
        sent = broadcast
        if not stopped:
            self._take(broadcast)
            self._train(round_number, steps)
            self.steps += steps
            sent = {name: value.clone().cpu() for name, value in self.learner.model.state_dict().items()}
        # Loss and accuracy of the training are of single examples' making and in no accountant's books.
        epsilon = spent(options, noise, self.sample_rate, self.steps)
        figures = {"epsilon": epsilon, "noise": noise, "stopped": float(stopped)}
        return Update(sent, figures, self.learner.examples)

    def _steps(self, round_number: int) -> int:
        """How many steps a round has; all have as many."""
        view = self.view
        return len(batches(self.learner.examples, view.training, view.seed, view.number, round_number))

    def _secret(self, round_number: int) -> Secret:
        """Of a round's chance; all that a round depends on gives another."""
        view, learner = self.view, self.learner
        settings = [self.options, view.training, getattr(view.task, "config", None)]
        words = [some.model_dump_json() for some in settings if isinstance(some, BaseModel)]
        purpose = "|".join([f"dpsgd|{round_number}|{view.rounds}|{self.noise}", *words])
        examples = {"inputs": view.data.inputs, "targets": view.data.targets}
        return secret_for(view.secrets.own, purpose, learner.model.state_dict(), self._memory(), examples)

    def _train(self, round_number: int, steps: int) -> None:
        from opacus import GradSampleModule

        view, learner, options = self.view, self.learner, self.options
        secret = self._secret(round_number)
        draws = private_rng(secret, "draws")
        # Opacus takes gradients from layers; DHLN has weights that are no layer's, and goes example by example.
        hooked = GradSampleModule(learner.model) if view.task.name == "classify" else None
        share = rate(round_number, view.rounds, view.training.decay_after)
        plain = self.lasting or sgd(learner.model, view.training, share)
        set_share(plain, view.training, share)
        optimizer = _noisy(
            plain,
            secret,
            noise_multiplier=self.noise,
            max_grad_norm=options.clip,
            expected_batch_size=max(1, round(self.sample_rate * learner.examples)),
            generator=torch.Generator(view.device),
        )
        try:
            for step in range(steps):
                rows = torch.from_numpy(np.flatnonzero(draws.random(learner.examples) < self.sample_rate))
                chunks = torch.split(rows, AT_ONCE)
                for number, chunk in enumerate(chunks):
                    gradients = self._one_by_one if hooked is None else self._gradients
                    # The server knows the run's seed: what is drawn from that is no chance to it.
                    gradients(chunk, private_rng(secret, f"augmentation|{step}|{number}"))
                    if number < len(chunks) - 1:
                        optimizer.signal_skip_step()
                    optimizer.step()
                    optimizer.zero_grad()
        finally:
            if hooked is not None:
                hooked.to_standard_module()

    def _one_by_one(self, rows: Tensor, rng: np.random.Generator) -> None:
        """The same for any network, at the price of a pass for each example."""
        parameters = [parameter for parameter in self.learner.model.parameters() if parameter.requires_grad]
        taken: list[list[Tensor]] = [[] for _ in parameters]
        for row in rows:
            loss, _ = self.learner.loss(row[None], rng)
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for gathered, slope in zip(taken, slopes, strict=True):
                gathered.append(slope)
        for parameter, gathered in zip(parameters, taken, strict=True):
            empty = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = torch.stack(gathered) if gathered else empty  # type: ignore[attr-defined]

    def _gradients(self, rows: Tensor, rng: np.random.Generator) -> None:
        """Leaves each parameter's gradients by example in ``grad_sample``."""
        if len(rows):
            loss, _ = self.learner.loss(rows, rng)
            with warnings.catch_warnings():
                # The first layer's input needs no gradient; Opacus's hooks do not ask for it either.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                loss.backward()  # type: ignore[no-untyped-call]
            return
        # Nobody was drawn: the step is noise alone, and counts.
        for parameter in self.learner.model.parameters():
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]

    def state(self) -> Tensors:
        """How many steps it has taken, and the memory of an optimiser that lasts."""
        return {"steps": torch.tensor(self.steps)} | self._memory()

    def load_state(self, tensors: Tensors) -> None:
        """Goes on counting, and remembering."""
        super().load_state(tensors)
        self.steps = int(tensors["steps"])


def _noisy(plain: torch.optim.Optimizer, secret: Secret, **settings: Any) -> Any:
    """Opacus's optimiser, whose noise comes from a secret, the step, and the very sum that it hides.

    Args:
        plain: What moves the weights.
        secret: Of the round.
        settings: Opacus's.
    """
    from opacus.optimizers import DPOptimizer

    class Noisy(DPOptimizer):  # type: ignore[misc]
        hidden = 0

        def add_noise(self) -> None:
            sums = {str(place): parameter.summed_grad for place, parameter in enumerate(self.params)}
            own = secret_for(secret, f"noise|{self.hidden}", sums)
            self.generator.manual_seed(int(own.stream(b"seed").take(8).view("<u8")[0]) >> 1)
            self.hidden += 1
            super().add_noise()

    return Noisy(plain, **settings)


class DPSGD(Method[DPSGDOptions]):
    """Noisy SGD on clipped gradients of single examples."""

    summary = "the whole network, trained on clipped and noisy gradients within a budget"
    source = "Abadi et al. 2016, arXiv 1607.00133"
    tasks = ("classify", "landmarks")
    model = DPSGDOptions

    def client(self, view: ClientView) -> Client:
        """A client that spends its budget."""
        return DPSGDClient(view, view.learner(), self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages.

        Raises:
            ConfigError: If the network is too large for a gradient of each example, or Opacus is missing.
        """
        if find_spec("opacus") is None:
            raise ConfigError("method dpsgd: Opacus is not installed; pip install 'veilmark[federation]'")
        network = view.task.network(view.seed)
        _check_size(network, view.task.name)
        return FedAvgServer(network.state_dict(), ("epsilon", "noise", "stopped"))


def _check_size(network: nn.Module, task: str) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > LARGEST_NETWORK:
        remedy = {
            "classify": "a smaller head: --set 'data.head_widths=[128, 64]'",
            "landmarks": "narrower streams: --set 'data.network.structure_widths=[48, 64]'",
        }[task]
        raise ConfigError(
            f"method dpsgd: the network has {count:,} parameters, and a gradient is kept for each example; at most "
            f"{LARGEST_NETWORK:,} fit. Take {remedy}"
        )
