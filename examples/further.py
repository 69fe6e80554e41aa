"""Start from a finished run's model, to go on to a higher sparsity, or with other data.

    fedsparsify run configs/cifar-10/short-fedsparsify-global-iid.toml --out runs/ninety
    fedsparsify export runs/ninety --format safetensors
    fedsparsify run configs/cifar-10/short-fedsparsify-global-iid.toml --set run.rounds=10 \
        --set schedule.initial=0.9 --set schedule.final=0.95 \
        --set model.name=examples.further:network --set model.of=6-cnn --set model.start=runs/ninety/model.safetensors

in the repository's folder; in a program of your own, give federate() the network itself. As in every run, all
parameters train in the first round: what was pruned may come back then, and the purge at its end decides anew.
The run calls this function again when it is resumed or exported, so keep the file that it starts from.
"""

from safetensors.torch import load_file
from torch import nn

from fedsparsify import models


def network(of: str, start: str, **options: object) -> nn.Module:
    """Return a network with a run's final parameters.

    Args:
        of: what the run's ``model.name`` was.
        start: the file that ``fedsparsify export --format safetensors`` has made of it.
        options: the other keys of the run's ``[model]``.
    """
    made = models.build(of, seed=0, **options)
    made.load_state_dict(load_file(start))
    return made
