"""Checkpoints as the authors' program writes them, with random weights: names and shapes are written out here."""

import argparse
from pathlib import Path

import torch

SMALL = {'width': 32, 'depth': 2, 'heads': 4, 'segments': 4, 'u': 4, 'joints': 5}
FULL = {'width': 256, 'depth': 8, 'heads': 8, 'segments': 30, 'u': 4, 'joints': 25}


def block_shapes(name: str, depth: int, width: int) -> dict[str, tuple]:
    layers = (('norm1', width, None), ('attn.qkv', 3 * width, width), ('attn.proj', width, width),
              ('norm2', width, None), ('mlp.fc1', 4 * width, width), ('mlp.fc2', width, 4 * width))
    return {f'{name}.{i}.{layer}.{part}': shape for i in range(depth) for layer, rows, columns in layers
            for part, shape in (('weight', (rows, columns) if columns else (rows,)), ('bias', (rows,)))}


def weight_shapes(stage: str, size: dict, classes: int) -> dict[str, tuple]:
    """Names and shapes of a state dict: 'pretrain' with one decoder block of the encoder's width, or with a head."""
    width, segments, joints = size['width'], size['segments'], size['joints']
    shapes = {'joints_embed.proj.weight': (width, 3, size['u'], 1), 'joints_embed.proj.bias': (width,),
              'temp_embed': (1, segments, 1, width), 'pos_embed': (1, 1, joints, width),
              **block_shapes('blocks', size['depth'], width), 'norm.weight': (width,), 'norm.bias': (width,)}
    if stage == 'pretrain':
        return shapes | {
            'decoder_embed.weight': (width, width), 'decoder_embed.bias': (width,), 'mask_token': (1, 1, width),
            **block_shapes('decoder_blocks', 1, width), 'decoder_norm.weight': (width,), 'decoder_norm.bias': (width,),
            'decoder_temp_embed': (1, segments, 1, width), 'decoder_pos_embed': (1, 1, joints, width),
            'decoder_pred.weight': (3 * size['u'], width), 'decoder_pred.bias': (3 * size['u'],)}
    if stage == 'linprobe':
        return shapes | {'head.fc.0.running_mean': (width,), 'head.fc.0.running_var': (width,),
                         'head.fc.0.num_batches_tracked': (), 'head.fc.1.weight': (classes, width),
                         'head.fc.1.bias': (classes,)}
    return shapes | {'head.fc1.weight': (2048, joints * width), 'head.fc1.bias': (2048,), 'head.bn.weight': (2048,),
                     'head.bn.bias': (2048,), 'head.bn.running_mean': (2048,), 'head.bn.running_var': (2048,),
                     'head.bn.num_batches_tracked': (), 'head.fc2.weight': (classes, 2048), 'head.fc2.bias': (classes,)}


def authors_checkpoint(stage: str, size: dict = SMALL, classes: int = 3, seed: int = 0) -> dict:
    """The content of a checkpoint of the authors' program: {model, optimizer, scaler, epoch, args}."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in weight_shapes(stage, size, classes).items():
        if name.endswith('num_batches_tracked'):
            weights[name] = torch.tensor(7)
            continue
        weights[name] = torch.randn(shape, generator=generator) * (0.2 if size is SMALL else 0.05)
        if name.endswith('running_var'):
            weights[name] = 1 + weights[name].abs()
    adam = {'step': 3130, 'exp_avg': torch.ones(2, 2), 'exp_avg_sq': torch.ones(2, 2)}
    args = argparse.Namespace(lr='3e-4', blr=1e-3, min_lr=1e-5, epochs=100, warmup_epochs=5, weight_decay=0.05, seed=4,
                              layer_decay=0.75, mask_ratio=0.8, clip_grad=None, output_dir='/home/them/out', resume='',
                              batch_size=32, world_size=4, dist_url='env://', distributed=True,
                              model_args={'dim_feat': size['width'], 'depth': size['depth'],
                                          'num_heads': size['heads'], 'qk_scale': None})
    return {'model': weights, 'optimizer': {'state': {0: adam}, 'param_groups': [
                {'lr': 1e-3, 'betas': (0.9, 0.95), 'eps': 1e-8, 'amsgrad': False, 'params': [0]}]},
            'scaler': {'scale': 65536., '_growth_tracker': 0}, 'epoch': 99, 'args': args}


def write(path: Path, content: dict, prefix: str = '', zipped: bool = True) -> str:
    torch.save(content | {'model': {prefix + name: value for name, value in content['model'].items()}}, path,
               _use_new_zipfile_serialization=zipped)
    return str(path)
