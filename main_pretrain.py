"""Pre-trains MAMP (or, with --target joint --motion_aware_tau 0, the SkeletonMAE-style baseline).

python main_pretrain.py --config config/pretrain.yaml config/nwucla_xview.yaml
torchrun --nproc_per_node 8 main_pretrain.py --config config/pretrain.yaml config/ntu60_xsub.yaml
"""

import argparse

import torch

import engine_pretrain
from feeder.dataset import SkeletonDataset
from model_mamp import MAMP
from util.config import parse_args, resolve_batch, settings_for
from util.dist import World
from util.errors import run_main
from util.files import check_writable
from util.optim import adamw
from util.trainer import Trainer, started


def method_of(args: argparse.Namespace) -> str:
    """What this pre-training is called in tables; settings other than the two published ones say so."""
    names = {('motion', True): 'MAMP', ('motion', False): 'MAMP, random mask', ('joint', False): 'MAE',
             ('joint', True): 'MAE, motion-aware mask'}
    return names[args.target, args.motion_aware_tau > 0]


def build_model(args: argparse.Namespace, device: torch.device) -> tuple[MAMP, torch.optim.Optimizer]:
    torch.manual_seed(args.seed)
    model = MAMP(**settings_for(MAMP, args)).to(device)
    return model, adamw(model, betas=(0.9, 0.95), weight_decay=args.weight_decay)


def pretrain(args: argparse.Namespace, world: World) -> dict:
    """Builds data, model and optimiser, trains, and returns what result.json says."""
    resolve_batch(args, world.size)
    dataset = SkeletonDataset(args.data_path, 'train', args.num_joints)
    check_writable(args.output_dir)
    check_writable(args.log_dir)
    model, optimizer = build_model(args, world.device)
    trainer = Trainer(args, world, model, optimizer, dataset, {'protocol': 'pretrain', 'method': method_of(args)})
    pictures = None
    if args.picture_epochs:     # not imported at the top: matplotlib takes a second to load, and few runs draw
        from tools.drawing.pictures import picture_maker
        pictures = picture_maker(trainer, dataset)
    if args.resume:
        trainer.resume(args.resume)
    dataset.check_clips(world.rank, world.size)
    return trainer.fit(engine_pretrain.train_one_epoch, pictures=pictures)


def main(argv: list[str] | None = None) -> int:
    args = parse_args('pretrain', argv)
    with started(args) as world:
        pretrain(args, world)
    return 0


if __name__ == '__main__':
    run_main(main)
