"""Linear probe: train a linear layer on the mean features of a frozen encoder.

python main_linprobe.py --config config/linprobe.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
"""

import argparse

import torch

from feeder.subset import open_splits
from main_finetune import train_classifier
from model_transformer import ActionTransformer
from util.config import parse_args, resolve_batch
from util.dist import World
from util.errors import run_main
from util.optim import sgd
from util.trainer import start_run
from util.weights import create_model


def linprobe(args: argparse.Namespace, world: World):
    """Build data, model and optimiser, train the head, and return the result."""
    resolve_batch(args, world.size)
    train, test = open_splits(args)

    torch.manual_seed(args.seed)
    model = create_model(ActionTransformer, vars(args), protocol='linprobe').to(world.device)
    optimizer = sgd(model, weight_decay=args.weight_decay)
    return train_classifier(args, world, model, optimizer, train, test, protocol='linprobe')


def main(argv: list[str] | None = None) -> int:
    args = parse_args('linprobe', argv)
    with start_run(args) as world:
        linprobe(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
