"""A client of PPIDSG that the attacker plays: the G that was sent, and all else drawn by the attacker."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from veilmark.audit.attack import Scene
from veilmark.audit.gradient_inversion import GradientOf, generator_gradient
from veilmark.audit.inversion_search import scrambled
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.ppidsg.cipher import Table
from veilmark.ppidsg.client_training import PPIDSGClient
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.seeds import rng_for


def played_client(scene: Scene, number: int, row: int = 0) -> PPIDSGClient:
    """Such a client, with one public picture, secrets and networks of its own, and the G of the first recorded round.

    Args:
        scene: What the attacker has; its method shares a generator.
        number: Another number gives other networks and secrets.
        row: Of the picture.
    """
    record, options = scene.record, scene.record.method.options
    assert isinstance(options, PPIDSGOptions)
    secret = _secret(scene, number)
    client = PPIDSGClient(
        scene.public.inputs[row : row + 1],
        scene.public.targets[row : row + 1],
        len(record.task.classes),
        cipher_of(options, secret, secret),
        secret.derive(b"key"),
        options,
        training=record.config.training.model_copy(update={"local_steps": 1}),
        rounds=record.config.rounds,
        head_widths=record.task.head_widths,
        # Not the run's seed: clients outside a simulation draw their networks by themselves.
        seed=int(rng_for(scene.seed, 37, number + 1).integers(2**31)),
        device=scene.device,
    )
    client.generator.load_state_dict(generator_of(record.rounds[0].broadcast))
    return client


def played_gradient(scene: Scene, number: int) -> GradientOf:
    """The gradient of such a client's step of G in the first recorded round."""
    record, client, options = scene.record, played_client(scene, number), scene.record.method.options
    assert isinstance(options, PPIDSGOptions)
    classes = options.classes if record.rounds[0].number > options.warmup else 0.0
    head = nn.Sequential(client.extractor, client.classifier)
    return generator_gradient(
        client.generator,
        client.discriminator,
        head,
        partial(scrambled, played_table(scene, number)),
        options.semantic,
        classes,
    )


def played_table(scene: Scene, number: int) -> Table:
    """The cipher of such a client, for the run's pictures."""
    options, secret, task = scene.record.method.options, _secret(scene, number), scene.record.task
    assert isinstance(options, PPIDSGOptions)
    return cipher_of(options, secret, secret).table(task.channels, task.side, task.side)


def played_steps(scene: Scene, row: int) -> list[Tensor]:
    """How G changes in client 0's own training on one batch of one public picture, tensor by tensor."""
    before = {name: some.to(scene.device) for name, some in generator_of(scene.record.rounds[0].broadcast).items()}
    client = played_client(scene, 0, row)
    client.train_round(before, scene.record.rounds[0].number - 1)
    return [before[name] - some.detach() for name, some in client.generator.named_parameters()]


def _secret(scene: Scene, number: int) -> Secret:
    return Secret(rng_for(scene.seed, 36, number + 1).bytes(SECRET_BYTES))
