"""Linear probe: the encoder is frozen, one linear layer learns to name the action.

python main_linprobe.py --config config/linprobe.yaml config/nwucla_xview.yaml --finetune CHECKPOINT
"""

import argparse

import torch

from engine_finetune import open_splits, run_classifier, start_encoder
from model_transformer import ActionTransformer
from util.config import parse_args, resolve_batch, settings_for
from util.dist import World
from util.errors import run_main
from util.optim import sgd
from util.trainer import started


def build_model(args: argparse.Namespace, device: torch.device) -> tuple[ActionTransformer, torch.optim.Optimizer]:
    torch.manual_seed(args.seed)
    model = ActionTransformer(protocol='linprobe', **settings_for(ActionTransformer, args)).to(device)
    return model, sgd(model, args.weight_decay)


def linprobe(args: argparse.Namespace, world: World) -> dict:
    """Builds data, model and optimiser, trains the head, and returns what result.json says."""
    resolve_batch(args, world.size)
    splits = open_splits(args)
    model, optimizer = build_model(args, world.device)
    facts = {'protocol': 'linprobe', **start_encoder(model, args)}
    return run_classifier(args, world, model, optimizer, splits, facts)


def main(argv: list[str] | None = None) -> int:
    args = parse_args('linprobe', argv)
    with started(args) as world:
        linprobe(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
