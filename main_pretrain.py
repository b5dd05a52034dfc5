"""Pre-train MAMP (or, with --target joint --motion_aware_tau 0, the SkeletonMAE-style baseline).

python main_pretrain.py --config config/pretrain.yaml config/nwucla_xview.yaml
torchrun --nproc_per_node 8 main_pretrain.py --config config/pretrain.yaml config/ntu60_xsub.yaml
"""

import argparse

import numpy as np
import torch

from engine_pretrain import train_one_epoch
from feeder.dataset import SkeletonDataset
from model_mamp import MAMP
from util.config import parse_args, resolve_batch
from util.dist import World
from util.errors import run_main
from util.optim import adamw
from util.results import Result
from util.resume import resume
from util.trainer import Trainer, finish_run, start_run
from util.weights import create_model


def method_name(args: argparse.Namespace) -> str:
    """Return the name of the pre-training method in tables."""
    names = {('motion', True): 'MAMP', ('motion', False): 'MAMP, random mask', ('joint', False): 'MAE',
             ('joint', True): 'MAE, motion-aware mask'}
    return names[args.target, args.motion_aware_tau > 0]


def draw_pictures(trainer: Trainer, dataset: SkeletonDataset) -> dict[str, np.ndarray]:
    """Draw a clip with its motion and attention, and in pre-training its mask and prediction, for TensorBoard."""
    from tools.drawing.pictures import make_training_pictures  # imported here, as matplotlib loads slowly
    return make_training_pictures(trainer.model, trainer.clips, dataset, trainer.args,
                                  trainer.data['class_names'])


def pretrain(args: argparse.Namespace, world: World) -> Result:
    """Build data, model and optimiser, train, and return the result."""
    resolve_batch(args, world.size)
    dataset = SkeletonDataset(args.data_path, 'train', args.num_joints)
    args.keypoints = dataset.keypoints

    torch.manual_seed(args.seed)
    model = create_model(MAMP, vars(args)).to(world.device)
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=args.weight_decay)

    trainer = Trainer(args, world, model, optimizer, dataset, protocol='pretrain', method=method_name(args))
    resume(trainer)
    dataset.check_clips(world.rank, world.size)
    with trainer.running():
        for epoch in range(trainer.epoch, args.epochs):
            stats = train_one_epoch(trainer, epoch)
            trainer.finish_epoch(epoch, stats)      # logs and saves
            trainer.log_pictures(epoch, lambda: draw_pictures(trainer, dataset))
            trainer.stop_if_requested(epoch)
        return finish_run(trainer)


def main(argv: list[str] | None = None) -> int:
    args = parse_args('pretrain', argv)
    with start_run(args) as world:
        pretrain(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
