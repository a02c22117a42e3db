"""One step of the run's own method on public pictures: with its noise, its pruning, its scrambling.

The gradient of a plain step is the easiest thing to attack, and not what clients of most defences send. This is the
rung between that and the run: the attacker plays a client of the very method, with secrets of its own, and attacks what
that client sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from veilmark.audit.attack import Scene
from veilmark.audit.gradient_inversion import sgd_gradient
from veilmark.federation.methods.method import ClientView, Secrets
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.local_training import rate
from veilmark.run.seeds import rng_for

OWN_STEP = "the same, as the method's own client sends it"
"""The rung; only where what is sent is not the plain gradient for every picture."""
ALIKE = 0.999
"""Cosine from which two gradients are one."""


def own_step(scene: Scene, rows: Sequence[int]) -> Tensors:
    """What one step of the method's own client on public pictures says of the gradient.

    The client has each picture as often as makes it as many as a client of the run has, so that noise which depends on
    their number is the run's; noise that is fitted to a budget is fitted to one step a round.

    Args:
        scene: Its record; its truth is not read. The method shares a classifier, or parts of it.
        rows: Of the public pictures.

    Returns:
        What the server takes for the gradient, tensor by tensor of the classifier, on the CPU.
    """
    record, public = scene.record, scene.public
    first, number = record.rounds[0], record.rounds[0].number - 1
    examples = next(iter(first.updates.values())).examples
    tiled = [row for _ in range(-(-examples // len(rows))) for row in rows]
    data = Data(public.inputs[tiled], public.targets[tiled], tuple(public.names[row] for row in tiled))
    # Of one picture any batch will do; of several, all of them must be in it.
    batch = record.config.training.batch if len(rows) == 1 else len(tiled)
    training = record.config.training.model_copy(update={"local_steps": 1, "batch": batch})
    common, own = (Secret(rng_for(scene.seed, 77, rows[0], place).bytes(SECRET_BYTES)) for place in (0, 1))
    view = ClientView(
        0, record.task, data, training, record.config.rounds, record.config.seed, Secrets(common, own), scene.device
    )
    update = record.method.client(view).train_round(first.broadcast, number)
    after = record.method.server(replace(record.server, training=training)).rebuilt(first.broadcast, update.tensors)
    after = {name: after[name] for name in record.task.network(0).state_dict() if name in after}
    lr = training.lr * rate(number, record.config.rounds, training.decay_after)
    return sgd_gradient({name: first.broadcast[name] for name in after}, after, lr, training.weight_decay)


def is_plain(own: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> bool:
    """Whether a method's own step is the plain gradient, as that of plain averaging is.

    Args:
        own: Of the method, by name.
        plain: The gradient, with the same names or more.
    """
    one, other = (torch.cat([some[name].detach().cpu().flatten() for name in own]) for some in (own, plain))
    return float(cosine_similarity(one, other, dim=0)) > ALIKE
