"""Whatever a user gives that is wrong ends in one line, what is wrong, where, what to do, before anything is done.

A row of the table: the command, its options beside those that would be enough, and what the line must hold. {s} is the
folder of the files made below, {out} the folder the command is to write, {last} the name of a run's last checkpoint.
"""

import argparse
import errno
import importlib
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

import engine_finetune
import main_finetune
import main_linprobe
import main_pretrain
import tools.retrieval
from data.common import one_hot, write_npz
from feeder.dataset import SkeletonDataset
from tests.conftest import NUM_CLASSES, NUM_JOINTS, NUM_TRAIN, refusal, run
from tests.util.test_hostile import bounded
from util import checkpoint
from util.checkpoint import LAST
from util.errors import UserError
from util.memory import report_out_of_memory
from util.trainer import Trainer

SIZE = (f'--num_joints {NUM_JOINTS} --num_frames 16 --t_patch_size 4 --dim_feat 16 --depth 2 --num_heads 2 '
        '--num_workers 0 --device cpu')
TRAINING = f'--data_path {{s}}/good.npz {SIZE} --effective_batch_size 4 --lr 1e-3 --epochs 1 --output_dir {{out}}'
ENOUGH = {
    'main_pretrain': f'{TRAINING} --decoder_dim_feat 16 --decoder_depth 1 --mask_ratio 0.5',
    'main_linprobe': TRAINING,
    'main_finetune': TRAINING,
    'tools.retrieval': f'--data_path {{s}}/good.npz {SIZE} --output_dir {{out}}',
    'tools.benchmark': '--device cpu --stages pretrain --modes fused --repeats 1',
    'tools.report': '',
    'tools.visualize': '--out {out}/clip.png',
    'data.prepare_ntu': '--dataset ntu60 --workers 1 --out {out}',
    'data.prepare_pku': '--phase 1 --workers 1 --out {out}',
    'data.prepare_nwucla': '--out {out}',
    'data.synthesize': '--out {out} --workers 1',
    'data.check': '',
}
WITHOUT = {'main_linprobe': '--random_encoder'}     # a source of the encoder, unless the row gives one

TABLE = [
    # ---- settings files
    ('main_pretrain', '--config {s}/none.yaml', ['{s}/none.yaml', 'cannot be read', 'correct --config']),
    ('main_pretrain', '--config {s}', ['{s}', 'cannot be read']),
    ('main_pretrain', '--config {s}/typo.yaml', ['{s}/typo.yaml', "unknown setting 'epoch'", "did you mean 'epochs'"]),
    ('main_finetune', '--config {s}/stage_typo.yaml', ['finetune:', "'layer_decy'", "did you mean 'layer_decay'"]),
    ('main_pretrain', '--config {s}/type.yaml', ['{s}/type.yaml', 'epochs', "'many'", 'whole number']),
    ('main_pretrain', '--config {s}/list.yaml', ['{s}/list.yaml', 'not a map of settings']),
    ('main_pretrain', '--config {s}/torn.yaml', ['{s}/torn.yaml', 'not YAML', 'correct it']),
    ('main_pretrain', '--config {s}/twice.yaml', ['{s}/twice.yaml', 'line 3', "'lr' stands there twice", 'line 1']),
    ('main_linprobe', '--config {s}/twice_inside.yaml', ['line 4', "'seed' stands there twice", 'keep one']),
    ('main_pretrain', '--config {s}/twice_flow.yaml', ['line 1', "'seed' stands there twice", 'keep one']),
    ('main_pretrain', '--config {s}/date.yaml', ['{s}/date.yaml', 'not YAML', 'month']),
    ('main_pretrain', '--config {s}/zero_byte.yaml', ['{s}/zero_byte.yaml', 'data_path', 'zero byte']),
    ('main_pretrain', '--config {s}/both.yaml', ['lr and blr', 'give one']),
    # ---- options
    ('main_pretrain', '--epoch 3', ['--epoch', 'did you mean --epochs?', '--help']),
    ('main_finetune', '--layerdecay 0.5', ['--layerdecay', 'did you mean --layer_decay?']),
    ('main_pretrain', '--epochs 0', ['--epochs', "'0'", 'whole number and >= 1']),
    ('main_pretrain', '--lr -1', ['--lr', "'-1'", 'number and > 0']),
    ('main_pretrain', '--lr nan', ['--lr', "'nan'", 'number']),
    ('main_pretrain', '--min_lr 1', ['--min_lr 1', 'exceeds', '0.001']),
    ('main_pretrain', '--warmup_epochs 1', ['--warmup_epochs 1', '--epochs 1']),
    ('main_pretrain', '--num_frames 17', ['--num_frames 17', '--t_patch_size 4']),
    ('main_pretrain', '--num_heads 3', ['--dim_feat 16', '--num_heads 3']),
    ('main_pretrain', '--mask_ratio 1.5', ['--mask_ratio', "'1.5'", '< 1']),
    ('main_pretrain', '--motion_stride 16', ['--motion_stride 16', '--num_frames 16']),
    ('main_pretrain', '--p_interval 0.9 0.2', ['--p_interval', 'exceeds']),
    ('main_pretrain', '--stream bones', ['--stream', "'bones'", 'joint']),
    ('main_pretrain', '--seed -1', ['--seed', "'-1'", '>= 0']),
    ('main_pretrain', '--seed ' + '9' * 30, ['--seed', 'whole number']),
    ('main_linprobe', '--novel_every 1', ['--novel_every 1', 'give 0 or 2']),
    ('main_linprobe', '--finetune {s}/pretrain/{last} --random_encoder', ['--finetune', '--random_encoder']),
    ('main_finetune', '--eval', ['--eval needs --resume']),
    # ---- sizes
    ('main_pretrain', '--dim_feat 10000000000', ['--dim_feat 1e+10', 'GB', 'memory; give smaller sizes']),
    ('main_pretrain', '--decoder_dim_feat 10000000000', ['--decoder_dim_feat 1e+10', 'give smaller sizes']),
    ('main_pretrain', '--dim_feat ' + '9' * 400, ['--dim_feat', 'whole number and >= 1 and <= 1e+12']),
    ('main_finetune', '--num_frames 1000000000000', ['--num_frames 1e+12', 'give smaller sizes']),
    ('main_finetune', '--num_frames 400000000000 --t_patch_size 400000000000', ['--t_patch_size 4e+11', 'smaller']),
    ('main_linprobe', '--mlp_ratio 1000 --dim_feat 100000', ['--mlp_ratio 1000', 'give smaller sizes']),
    ('main_linprobe', '--mlp_ratio 1e300', ['--mlp_ratio', "'1e300'", '<= 1000']),
    ('tools.retrieval', '--dim_feat 10000000000 --random_encoder', ['--dim_feat 1e+10', 'give smaller sizes']),
    ('main_pretrain', '--depth 1000000', ['--depth', "'1000000'", '<= 1000']),
    ('main_pretrain', '--num_workers 1000000', ['--num_workers', "'1000000'", '<= 1000']),
    # ---- the machine
    ('main_pretrain', '--device cuda', ['--device cuda', 'no CUDA GPU', 'use --device cpu']),
    ('tools.retrieval', '--device cuda:7 --random_encoder', ['--device cuda:7', 'no CUDA GPU', 'use --device cpu']),
    ('main_pretrain', '--device abacus', ['--device abacus', 'use auto, cpu']),
    ('main_pretrain', '--precision tf32', ['tf32', 'CUDA GPU', 'use fp32']),
    ('main_pretrain', '--attention flash', ['--attention flash', 'leave it out on a CPU']),
    # ---- batches
    ('main_pretrain', '--effective_batch_size 6 --batch_size 4', ['--effective_batch_size 6', 'does not divide by 4']),
    ('main_pretrain', '--effective_batch_size 4 --batch_size 3 --accum_iter 2', ['--batch_size 3 × --accum_iter 2']),
    ('main_pretrain', '--effective_batch_size 64', ['64', f'{NUM_TRAIN} training clips', 'lower']),
    ('main_finetune', '--label_fraction 0.1', ['batch of 4', '2 training clips', 'lower --effective_batch_size']),
    ('main_finetune', '--label_fraction 0.001', ['--label_fraction 0.001', f'{NUM_TRAIN} training clips', 'give more']),
    ('main_finetune', '--batch_size 1', ['--batch_size 1', 'BatchNorm', '2 clips']),
    # ---- the data
    ('main_pretrain', '--data_path {s}/none.npz', ['{s}/none.npz', 'no such data file', 'correct --data_path']),
    ('main_pretrain', '--data_path {s}', ['{s}', 'no such data file', 'data/prepare_']),
    ('main_pretrain', '--data_path {s}/text.npz', ['{s}/text.npz', 'not a whole npz', 'write it again']),
    ('main_pretrain', '--data_path {s}/cut.npz', ['{s}/cut.npz', 'not a whole npz', 'copy it again']),
    ('main_pretrain', '--data_path {s}/lacking.npz', ['{s}/lacking.npz', 'no member y_train', 'data/prepare_']),
    ('main_pretrain', '--data_path {s}/flat.npz', ['{s}/flat.npz', 'x_train', '(N, T, M·V·3)']),
    ('main_pretrain', '--data_path {s}/whole_numbers.npz', ['x_train is int64', 'floating-point']),
    ('main_pretrain', '--num_joints 7', ['30 numbers a frame', '7 joints', 'correct --num_joints']),
    ('main_pretrain', '--data_path {s}/empty_train.npz', ['split train is empty', 'write the file again']),
    ('main_finetune', '--data_path {s}/empty_test.npz', ['split test is empty', 'write the file again']),
    ('main_pretrain', '--data_path {s}/nan_train.npz', ['clip 3 of x_train', 'NaN', 'mend or remove it']),
    ('main_finetune', '--data_path {s}/inf_test.npz', ['clip 2 of x_test', 'infinite', 'mend or remove it']),
    ('main_pretrain', '--data_path {s}/nan_train.npz --data_on_device', ['clip 3 of x_train', 'NaN']),
    ('main_linprobe', '--data_path {s}/two_ones.npz', ['y_train is not one-hot', 'write the file again']),
    ('main_linprobe', '--data_path {s}/minus.npz', ['y_test is not one-hot', 'write the file again']),
    ('main_linprobe', '--data_path {s}/text_labels.npz', ['y_train is <U1', 'not one-hot', 'write the file again']),
    ('main_finetune', '--data_path {s}/label_missing.npz', ['y_train', '(21, 3)', '22 clips']),
    ('main_finetune', '--data_path {s}/more_classes.npz', ['y_train has 3 classes, y_test 4', 'write the file again']),
    ('main_finetune', '--data_path {s}/one_class.npz', ['y_train has 1 classes', 'two or more']),
    ('main_finetune', '--num_classes 5', ['y_train has 3 classes', '--num_classes says 5', 'leave it out']),
    ('main_finetune', '--data_path {s}/bodies.npz', ['x_train has 2 bodies, x_test 1', 'write the file again']),
    ('main_finetune', '--novel_every 2 --data_path {s}/novel.npz', ['--novel_every 2', 'leaves no clip']),
    ('main_finetune', '--save_scores --data_path {s}/names.npz', ['name_test', '(4,)', 'write the file again']),
    ('main_finetune', '--stream bone', [f'{NUM_JOINTS} joints', 'correct --num_joints']),
    # ---- folders
    ('main_pretrain', '--output_dir {s}/text.npz', ['{s}/text.npz', 'is not a folder', 'give another place']),
    ('main_finetune', '--output_dir {s}/text.npz/below', ['{s}/text.npz', 'is not a folder', 'give another place']),
    ('main_finetune', '--log_dir {s}/text.npz', ['{s}/text.npz', 'is not a folder', 'give another place']),
    ('main_finetune', '--eval --resume {s}/finetune/{last} --output_dir {s}/text.npz', ['text.npz', 'not a folder']),
    ('tools.retrieval', '--random_encoder --output_dir {s}/text.npz', ['{s}/text.npz', 'is not a folder']),
    ('main_pretrain', '--output_dir /proc/run', ['/proc/run', 'cannot be written', 'correct the permissions']),
    ('main_pretrain', '--output_dir {s}/pretrain', ['{s}/pretrain', LAST, '--resume auto', 'another --output_dir']),
    # ---- checkpoints
    ('main_pretrain', '--resume {s}/none.pth', ['{s}/none.pth', 'no such checkpoint', 'give the path']),
    ('main_linprobe', '--finetune {s}/pretrain', ['{s}/pretrain', 'is no file', 'give a checkpoint']),
    ('main_linprobe', '--finetune {s}/cut.pth', ['{s}/cut.pth', 'not a whole checkpoint', 'take another']),
    ('main_linprobe', '--finetune {s}/text.npz', ['{s}/text.npz', 'not a whole checkpoint', 'take another']),
    ('main_linprobe', '--finetune {s}/good.npz', ['{s}/good.npz', 'take another']),
    ('main_linprobe', '--finetune {s}/altered.pth', ['{s}/altered.pth', 'altered since', 'sha256']),
    ('main_linprobe', '--finetune {s}/list.pth', ['{s}/list.pth', 'holds a list', 'take another']),
    ('main_linprobe', '--finetune {s}/weightless.pth', ['{s}/weightless.pth', 'no model weights', 'take another']),
    ('main_linprobe', '--finetune {s}/nan.pth', ['{s}/nan.pth', 'NaN', 'take another checkpoint']),
    ('main_linprobe', '--finetune {s}/odd_args.pth', ['{s}/odd_args.pth', "'args'", 'take another']),
    ('main_linprobe', '--finetune {s}/odd_seed.pth', ['{s}/odd_seed.pth', 'settings', 'take another']),
    ('main_pretrain', '--resume {s}/odd_epoch.pth', ['{s}/odd_epoch.pth', "'epoch'", 'take another']),
    ('main_pretrain', '--resume {s}/odd_moments.pth', ['optimiser state', 'shape (1,)', '--finetune']),
    ('main_pretrain', '--resume {s}/bare.pth', ['weights only', '--finetune instead of --resume']),
    ('main_linprobe', '--finetune {s}/pretrain/{last} --dim_feat 32', ['does not fit', '16', '32', '--dim_feat']),
    ('main_linprobe', '--finetune {s}/pretrain/{last} --depth 3', ['blocks.2', 'is missing', '--depth']),
    ('main_finetune', '--finetune {s}/pretrain/{last} --depth 1', ['blocks.1', 'not a weight', '--depth']),
    ('main_finetune', '--finetune {s}/pretrain/{last} --t_patch_size 8', ['joints_embed', 'does not fit']),
    ('main_finetune', '--finetune {s}/pretrain/{last} --num_joints 10', ['pos_embed', '--num_joints']),
    ('main_finetune', '--finetune {s}/pretrain/{last} --num_heads 4', ['num_heads 2 (now 4)', 'give the same']),
    ('main_pretrain', '--resume {s}/pretrain/{last} --num_frames 24', ['temp_embed', 'does not fit']),
    ('main_pretrain', '--resume {s}/linprobe/{last}', ['of a linear probe', 'one of pre-training', '--finetune']),
    ('main_linprobe', '--random_encoder --resume {s}/finetune/{last}', ['of fine-tuning', 'one of a linear probe']),
    ('main_finetune', '--resume {s}/pretrain/{last}', ['of pre-training', 'one of fine-tuning', '--finetune']),
    ('main_finetune', '--eval --resume {s}/linprobe/{last}', ['of a linear probe', 'one of fine-tuning']),
    ('main_finetune', '--eval --resume {s}/finetune/{last} --data_path {s}/four_classes.npz',
     ['head.fc2', 'data of as many classes']),
    ('main_finetune', '--eval --resume {s}/finetune/{last} --stream velocity', ['stream joint', 'give the same']),
    ('main_pretrain', '--resume auto --output_dir {s}/spoiled', ['none of its checkpoints is whole', 'start anew']),
    # ---- retrieval
    ('tools.retrieval', '', ['give one of --finetune PATH, --random_encoder and --features']),
    ('tools.retrieval', '--random_encoder --k 23', ['--k 23', f'{NUM_TRAIN} training clips', 'give less']),
    ('tools.retrieval', '--random_encoder --protocol oneshot --novel_every 3', ['--novel_every 3', '1 of 3', '2 are']),
    ('tools.retrieval', '--random_encoder --data_path {s}/more_classes.npz', ['y_train has 3 classes, y_test 4']),
    ('tools.retrieval', '--random_encoder --data_path {s}/names.npz', ['name_test', '(4,)']),
    ('tools.retrieval', '--features {s}/none.npz', ['{s}/none.npz', 'No such file', 'save it again']),
    ('tools.retrieval', '--features {s}/good.npz', ['no features_test', 'features_train', 'tools/retrieval.py wrote']),
    ('tools.retrieval', '--features {s}/finetune/scores.npz', ['features_train', 'tools/retrieval.py wrote']),
    ('tools.retrieval', '--features {s}/no_features.npz', ['features_train', '(0, 4)', 'save it again']),
    ('tools.retrieval', '--features {s}/nan_features.npz', ['features_test', 'NaN or infinity', 'save it again']),
    ('tools.retrieval', '--features {s}/retrieval/features.npz --k 99', ['--k 99', f'{NUM_TRAIN} training clips']),
    # ---- benchmark
    ('tools.benchmark', '--modes slow', ['--modes', "'slow'", 'fused']),
    ('tools.benchmark', '--modes tf32', ['--modes tf32', 'CUDA GPU', 'leave it out']),
    ('tools.benchmark', '--modes nonempty --stages evaluate', ['--modes nonempty', '--stages pretrain']),
    ('tools.benchmark', '--stages finetune --batch_size 1', ['--batch_size 1', 'give 2 clips']),
    ('tools.benchmark', '--data_path {s}/none.npz', ['{s}/none.npz', 'no such data file']),
    ('tools.benchmark', '--config {s}/typo.yaml', ['{s}/typo.yaml', "did you mean 'epochs'"]),
    ('tools.benchmark', '--json {s}', ['{s}', 'cannot be written', 'give another']),
    ('tools.benchmark', '--repeats 0', ['--repeats', "'0'", '>= 1']),
    # ---- reports
    ('tools.report', '', ['nothing to report', '--scores', '--help']),
    ('tools.report', '--score x.npz', ['did you mean --scores?']),
    ('tools.report', '{s}/none', ['{s}/none', 'no result.json', 'give the folder']),
    ('tools.report', '{s}/torn_run', ['{s}/torn_run/result.json', 'not JSON', 'remove it']),
    ('tools.report', '{s}/pretrain --benchmark other', ['--benchmark other', 'there are good']),
    ('tools.report', '{s}/retrieval --figure {out}/f.png', ['--figure', 'none of these runs was trained']),
    ('tools.report', '{s}/pretrain --figure {s}/text.npz/f.png', ['{s}/text.npz', 'is not a folder']),
    ('tools.report', '--confusion {out}/c.png', ['--confusion needs --scores']),
    ('tools.report', '--scores {s}/retrieval/features.npz', ['no label, name, scores', '--save_scores']),
    ('tools.report', '--scores {s}/none.npz', ['{s}/none.npz', 'cannot be read', 'save it again']),
    ('tools.report', '--scores {s}/label_beyond.npz', ['label 3', '3 classes', 'save it again']),
    ('tools.report', '--ensemble {s}/finetune/scores.npz --out {out}', ['--ensemble', 'two runs or more']),
    ('tools.report', '--ensemble {s}/finetune/scores.npz {s}/other_clips.npz --out {out}', ['in one of them only']),
    ('tools.report', '--ensemble {s}/finetune/scores.npz {s}/four_scores.npz --out {out}', ['4 and 3 classes']),
    ('tools.report', '--ensemble {s}/finetune/scores.npz {s}/four_scores.npz --out {s}/finetune', ['another run']),
    ('tools.report', '--features {s}/good.npz --tsne {out}/t.png', ['no features_test', 'tools/retrieval.py wrote']),
    ('tools.report', '--readme {s}/none.md', ['{s}/none.md', 'cannot be read', 'give a Markdown file']),
    # ---- pictures
    ('tools.visualize', '', ['--checkpoint']),
    ('tools.visualize', '--checkpoint {s}/finetune/{last} --gif {out}/c.gif', ['--gif', 'fine-tuning', 'no motion']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --clip 999', ['--clip 999', '0 to 12']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --data_path {s}/none.npz', ['{s}/none.npz', 'no such']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --out {s}', ['--out {s}', 'is a folder']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last}', [f'no joint layout with {NUM_JOINTS} joints']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --html {s}', ['--html {s}', 'is a folder']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --block 7', ['--block 7', 'give 0 to']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --query head', ['--query', '2 arguments']),
    ('tools.visualize', '--checkpoint {s}/pretrain/{last} --seed -1', ['--seed', '>= 0']),
    # ---- preparation
    ('data.prepare_ntu', '--raw {s}/none', ['{s}/none', 'does not exist', 'give --raw']),
    ('data.prepare_ntu', '--raw {s}/nothing', ['{s}/nothing', 'no .skeleton file', 'give --raw']),
    ('data.prepare_ntu', '--raw {s}/text.npz', ['{s}/text.npz', 'neither a folder nor a whole zip', 'again']),
    ('data.prepare_ntu', '--raw {s}/ntu --out {s}/text.npz', ['{s}/text.npz', 'cannot be written', 'another --out']),
    ('data.prepare_ntu', '--raw {s}/ntu --protocol xset', ['--protocol xset', 'xsub, xview']),
    ('data.prepare_ntu', '--raw {s}/ntu --dataset ntu90', ['--dataset', "'ntu90'", 'ntu60']),
    ('data.prepare_ntu', '--raw {s}/ntu --workers 0', ['--workers', 'give 1 or more']),
    ('data.prepare_pku', '--raw {s}/none', ['{s}/none/skeleton', 'no such folder', 'give --raw']),
    ('data.prepare_pku', '--raw {s}/pku', ['needs one split file like cross-subject.txt', 'there is none']),
    ('data.prepare_pku', '--raw {s}/pku --phase 3', ['--phase', '3']),
    ('data.prepare_nwucla', '', ['--raw']),
    ('data.prepare_nwucla', '--raw {s}/none', ['{s}/none', 'does not exist', 'give --raw']),
    ('data.prepare_nwucla', '--raw {s}/nothing', ['{s}/nothing', 'no clip in it', 'give --raw']),
    ('data.prepare_nwucla', '--raw {s}/text.npz', ['{s}/text.npz', 'cannot be read as a tar', 'give a .tar']),
    ('data.prepare_nwucla', '--raw {s}/nothing --out {s}/text.npz', ['{s}/text.npz', 'is not a folder']),
    ('data.prepare_nwucla', '--raw {s}/nothing --protocol all', ['--protocol', "'all'", 'xview']),
    ('data.synthesize', '--out {s}', ['{s}', 'is not empty', 'give --out a new folder']),
    ('data.synthesize', '--classes 1', ['--classes 2 to']),
    # ---- check
    ('data.check', '', ['FILE.npz']),
    ('data.check', '{s}/none.npz', ['{s}/none.npz', 'no such data file']),
    ('data.check', '{s}/lacking.npz', ['{s}/lacking.npz', 'no member y_train']),
    ('data.check', '{s}/good.npz --json {s}/good.npz', ['--json', 'ends with .json']),
    ('data.check', '{s}/good.npz --json {s}/text.npz/f.json', ['{s}/text.npz', 'is not a folder']),
]


def npz_files(folder, good: dict[str, np.ndarray]) -> None:
    """Data files, each with one thing wrong."""
    x, y, test, y_test = (good[name] for name in ('x_train', 'y_train', 'x_test', 'y_test'))
    nan, inf, two_ones = x.copy(), test.copy(), y.copy()
    nan[3, 0, 1], inf[2, 0, 0], two_ones[5] = np.nan, np.inf, 1
    novel = one_hot(np.zeros(len(x), int), 2)
    four = [np.pad(labels, ((0, 0), (0, 1))) for labels in (y, y_test)]
    wrong = {
        'flat': {'x_train': x[0]}, 'whole_numbers': {'x_train': x.astype(int)}, 'lacking': {'y_train': None},
        'empty_train': {'x_train': x[:0], 'y_train': y[:0]}, 'empty_test': {'x_test': test[:0], 'y_test': y_test[:0]},
        'nan_train': {'x_train': nan}, 'inf_test': {'x_test': inf}, 'two_ones': {'y_train': two_ones},
        'minus': {'y_test': -y_test}, 'text_labels': {'y_train': np.array([['a'] * 3] * len(y))},
        'label_missing': {'y_train': y[:-1]}, 'more_classes': {'y_test': four[1]},
        'one_class': {'y_train': y[:, :1] * 0 + 1, 'y_test': y_test[:, :1] * 0 + 1},
        'bodies': {'x_test': test[:, :, :NUM_JOINTS * 3]}, 'novel': {'y_train': novel, 'y_test': novel[:len(test)]},
        'names': {'name_test': np.array(list('abcd'))}, 'four_classes': {'y_train': four[0], 'y_test': four[1]},
    }
    for name, change in wrong.items():
        write_npz(folder / f'{name}.npz', **{key: array for key, array in (good | change).items() if array is not None})
    (folder / 'text.npz').write_text('hello\n')
    (folder / 'cut.npz').write_bytes((folder / 'good.npz').read_bytes()[:3000])


def checkpoints(folder) -> None:
    """Checkpoints, each with one thing wrong."""
    whole = folder / 'pretrain' / LAST
    (folder / 'cut.pth').write_bytes(whole.read_bytes()[:5000])
    shutil.copy(whole, folder / 'altered.pth')
    (folder / 'altered.pth.sha256').write_text('0' * 64)
    (folder / 'spoiled').mkdir()
    (folder / 'spoiled' / LAST).write_bytes(whole.read_bytes()[:5000])
    state = torch.load(whole)
    weights, moments = state['model'], {
        0: {'step': torch.ones(()), 'exp_avg': torch.ones(1), 'exp_avg_sq': torch.ones(1)}}
    odd = {'list': [1], 'weightless': {'epoch': 3}, 'bare': weights,
           'nan': state | {'model': weights | {'norm.bias': weights['norm.bias'] * torch.nan}},
           'odd_args': state | {'args': [1, 2]}, 'odd_seed': state | {'args': state['args'] | {'seed': {'a': 1}}},
           'odd_epoch': state | {'epoch': 'three'},
           'odd_moments': state | {'optimizer': state['optimizer'] | {'state': moments}}}
    for name, content in odd.items():
        torch.save(content, folder / f'{name}.pth')


def predictions(folder) -> None:
    """Scores and features, each with one thing wrong."""
    with np.load(folder / 'finetune/scores.npz') as held:
        scores = dict(held)
    np.savez(folder / 'label_beyond.npz', **scores | {'label': scores['label'] + 1})
    np.savez(folder / 'other_clips.npz', **scores | {'name': np.char.add(scores['name'], 'x')})
    np.savez(folder / 'four_scores.npz', **scores | {'scores': np.pad(scores['scores'], ((0, 0), (0, 1)))})
    features = {f'{field}_{split}': value for split in ('train', 'test') for field, value in (
        ('features', np.ones((3, 4), np.float32)), ('name', np.array(list('abc'))), ('label', np.arange(3)))}
    np.savez(folder / 'nan_features.npz', **features | {'features_test': np.full((3, 4), np.nan)})
    np.savez(folder / 'no_features.npz', **{name: value[:0] for name, value in features.items()})


YAML = {
    'typo': 'lr: 0.1\nepoch: 3\n', 'stage_typo': 'finetune:\n  layer_decy: 0.8\n', 'type': 'epochs: many\n',
    'list': '- lr\n', 'torn': 'lr: [1\n', 'twice': 'lr: 0.1\nepochs: 3\nlr: 0.2\n',
    'twice_inside': 'linprobe:\n  seed: 1\n  epochs: 3\n  seed: 1\n', 'twice_flow': '{seed: 1, seed: 2}\n',
    'date': 'lr: 2020-13-45\n', 'zero_byte': 'data_path: "a\\0b"\n', 'both': 'lr: 0.1\nblr: 0.1\n'}


@pytest.fixture(scope='module')
def shelf(tiny_npz, tmp_path_factory):
    """The folder of all files the table names: good ones, from runs of every stage, and bad ones."""
    folder = tmp_path_factory.mktemp('shelf')
    shutil.copy(tiny_npz, folder / 'good.npz')
    with np.load(tiny_npz) as held:
        npz_files(folder, dict(held))
    for name, text in YAML.items():
        (folder / f'{name}.yaml').write_text(text)
    for module, more in ((main_pretrain, ''), (main_linprobe, '--random_encoder'), (main_finetune, '--save_scores'),
                         (tools.retrieval, '--random_encoder')):
        stage = module.__name__.removeprefix('main_')
        words = f'{ENOUGH[module.__name__]} {more}'.format(s=folder, out=folder / stage).split()
        assert module.main(words) == 0
    checkpoints(folder)
    predictions(folder)
    for name in ('nothing', 'ntu', 'pku/skeleton', 'pku/label', 'torn_run'):
        (folder / name).mkdir(parents=True)
    (folder / 'ntu/S001C001P001R001A001.skeleton').write_text('1\n')
    for kind in ('skeleton', 'label'):
        (folder / f'pku/{kind}/0001-L.txt').write_text('1\n')
    (folder / 'torn_run/result.json').write_text('{"benchmark": ')
    return folder


def contents(*folders) -> dict:
    return {path: path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns)
            for folder in folders for path in folder.rglob('*')}


def options_of(command: str, words: str, shelf, out) -> list[str]:
    more = WITHOUT.get(command, '')
    if any(word in words for word in ('--finetune', '--random_encoder', '--eval')):
        more = ''
    return f'{ENOUGH[command]} {more} {words}'.format(s=shelf, out=out, last=LAST).split()


@pytest.mark.parametrize('command, words, says', TABLE, ids=[f'{row[0]} {row[1][:60]}' for row in TABLE])
def test_refused_in_one_line_before_anything_is_done(command, words, says, shelf, tmp_path, monkeypatch, capsys):
    for place, name in ((Trainer, 'update'), (tools.retrieval, 'predict'), (engine_finetune, 'evaluate')):
        monkeypatch.setattr(place, name, lambda *_: pytest.fail('it computes'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    options, before = options_of(command, words, shelf, tmp_path / 'out'), contents(shelf)
    refusal(lambda: importlib.import_module(command).main(options), *(text.format(s=shelf) for text in says))
    assert contents(shelf) == before
    if command not in ('data.prepare_ntu', 'data.prepare_pku'):         # whose samples lie in the folder they write
        assert not (tmp_path / 'out').exists(), 'nothing is left behind'
    assert capsys.readouterr().out == ''


def test_the_table_is_long_and_names_every_command():
    assert len(TABLE) >= 80 and {command for command, *_ in TABLE} == set(ENOUGH)


def test_a_folder_that_may_not_be_written(shelf, tmp_path, monkeypatch):
    """Root may write everywhere: access is denied here by the answer."""
    (tmp_path / 'theirs').mkdir()
    real = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: not (mode & os.W_OK) and real(path, mode))
    options = options_of('main_pretrain', '', shelf, tmp_path / 'theirs/run')
    refusal(lambda: main_pretrain.main(options), tmp_path / 'theirs', 'may not be written', 'give another place')
    assert not any((tmp_path / 'theirs').iterdir())


def test_damaged_clips_outside_the_subset_do_not_matter(shelf, tmp_path):
    """Clips that take no part are not looked at."""
    good = dict(np.load(shelf / 'good.npz'))
    good['x_train'][0, 0, 0] = np.nan       # of class 0, which is left out
    write_npz(tmp_path / 'f.npz', **good)
    options = options_of('main_finetune', f'--data_path {tmp_path}/f.npz --novel_every {NUM_CLASSES}', shelf,
                         tmp_path / 'out')
    assert main_finetune.main(options) == 0


@pytest.mark.parametrize('stage', ['linprobe', 'finetune'])
def test_another_number_of_segments_is_resized_as_the_method_says(stage, shelf, tmp_path):
    options = options_of(f'main_{stage}', f'--finetune {shelf}/pretrain/{LAST} --num_frames 24', shelf, tmp_path)
    assert importlib.import_module(f'main_{stage}').main(options) == 0
    assert checkpoint.load(tmp_path / LAST)['model']['temp_embed'].shape[1] == 6


def test_a_result_that_is_no_json_is_named_where_a_finished_run_is_resumed(shelf, tmp_path):
    shutil.copytree(shelf / 'pretrain', tmp_path / 'run')
    (tmp_path / 'run/result.json').write_text('{')
    options = options_of('main_pretrain', '--resume auto', shelf, tmp_path / 'run')
    refusal(lambda: main_pretrain.main(options), 'run/result.json', 'remove it')


@pytest.mark.parametrize('line', ['3', '{}', '{"epoch": null}', '[' * 100_000, '{"epoch": 1' + '0' * 400 + '}', '\x80'])
def test_odd_lines_of_a_log_are_written_again(line, shelf, tmp_path):
    shutil.copytree(shelf / 'pretrain', tmp_path / 'run')
    with open(tmp_path / 'run/log.jsonl', 'a') as file:
        file.write(f'{line}\n')
    assert main_pretrain.main(options_of('main_pretrain', '--resume auto --epochs 2', shelf, tmp_path / 'run')) == 0
    lines = (tmp_path / 'run/log.jsonl').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in lines] == [0, 1]


PROCESSES = [('main_pretrain', '--data_path {s}/nan_train.npz', 'NaN'),
             ('main_linprobe', '--finetune {s}/cut.pth', 'cut.pth'),
             ('tools.report', '--score x', 'did you mean --scores?'),
             ('data.check', '{s}/none.npz --jsn x', 'did you mean --json?'),
             ('data.prepare_nwucla', '--raw {s}/none', 'does not exist')]


@pytest.mark.parametrize('command, words, says', PROCESSES, ids=[f'{row[0]} {row[1]}' for row in PROCESSES])
def test_as_a_process_it_ends_with_two_and_one_line(command, words, says, shelf, tmp_path):
    done = run(command.replace('.', '/') + '.py', *options_of(command, words, shelf, tmp_path / 'out'))
    assert (done.returncode, done.stdout) == (2, '') and says in done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and not (tmp_path / 'out').exists()


CPU_FULL = ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            'allocate 4096 bytes. Error code 12 (Cannot allocate memory)')
SHORTAGES = {'GPU': (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total\n…'),
                     '20.00 MiB more'),
             'CPU': (RuntimeError(CPU_FULL), '4096 bytes more'), 'Python': (MemoryError(), '--batch_size'),
             'cuBLAS': (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'), '')}


@pytest.mark.parametrize('shortage', SHORTAGES)
@pytest.mark.parametrize('command, batch, advice', [
    ('main_pretrain', 4, 'accumulation keeps the effective batch'), ('main_linprobe', 4, '--resume auto'),
    ('main_finetune', 4, '--resume auto'), ('tools.retrieval', 128, 'give a smaller model')])
def test_when_memory_runs_out(command, batch, advice, shortage, shelf, tmp_path, monkeypatch):
    error, asked = SHORTAGES[shortage]

    def fail(*_, **__):
        raise error
    monkeypatch.setattr(*{'tools.retrieval': (tools.retrieval, 'predict')}.get(command, (Trainer, 'backward')), fail)
    options = options_of(command, '--random_encoder' * (command == 'tools.retrieval'), shelf, tmp_path)
    refusal(lambda: importlib.import_module(command).main(options), 'out of memory on cpu', f'--batch_size {batch}',
            advice, asked)


WORKERS = {
    'fork': OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    'mmap': RuntimeError('unable to mmap 4096 bytes from file </torch_1_2_0>: Cannot allocate memory (12)'),
    'shared': RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                           'workers are out of shared memory. Please try to raise your shared memory limit.'),
    'killed': RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '),
    'killed twice': RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly')}
WORKERS['killed twice'].__cause__ = WORKERS['killed']


@pytest.mark.parametrize('shortage', WORKERS)
def test_when_memory_of_the_workers_runs_out(shortage):
    def fail():
        with report_out_of_memory(argparse.Namespace(batch_size=4, accum_iter=1), torch.device('cpu')):
            raise WORKERS[shortage]
    said = WORKERS['killed' if shortage == 'killed twice' else shortage]
    refusal(fail, str(said).strip(), '--num_workers 0', '/dev/shm', 'more memory')


def test_a_worker_that_the_system_kills_is_told_as_memory(shelf, tmp_path, monkeypatch):
    """What PyTorch really says, of a worker that is killed for want of memory."""
    monkeypatch.setattr(SkeletonDataset, '__getitem__', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    refusal(lambda: main_pretrain.main(options_of('main_pretrain', '--num_workers 1', shelf, tmp_path)),
            'DataLoader worker', 'Killed', '--num_workers 0')


def fail_on_a_gpu() -> None:
    raise RuntimeError('CUDA error: device-side assert triggered')


def fail_in_a_kernel() -> None:
    raise RuntimeError('OutOfResources: out of resource: shared memory, Required: 163840, Hardware limit: 101376')


@pytest.mark.parametrize('failure', [
    lambda: torch.empty(2**40, 2**40), lambda: torch.empty(2**70), lambda: torch.zeros(3) + torch.zeros(4),
    fail_on_a_gpu, fail_in_a_kernel, lambda: os.stat('/nowhere/at all')],
    ids=['size', 'number', 'shapes', 'CUDA', 'kernel', 'file'])
def test_other_failures_are_not_taken_for_a_shortage_of_memory(failure):
    """Nor are their tracebacks lost: they are faults of ours."""
    with (pytest.raises((RuntimeError, OSError, TypeError)),     # a UserError is a ValueError
          report_out_of_memory(argparse.Namespace(batch_size=4), torch.device('cpu'))):
        failure()


def test_memory_that_really_runs_out(shelf, tmp_path):
    """Clips of 800,000 frames, where no more than a little address space is left."""
    options = options_of('main_pretrain', '--num_frames 800000', shelf, tmp_path)
    with pytest.raises(UserError, match='out of memory on cpu') as error, bounded(seconds=60, room=1 << 28):
        main_pretrain.main(options)
    assert '--batch_size 4' in str(error.value) and '\n' not in str(error.value)


def test_a_path_with_a_line_break_is_told_in_one_line(tmp_path):
    done = run('data/check.py', str(tmp_path / 'two\nlines.npz'))
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'two lines.npz' in done.stderr


def test_checkpoints_without_settings_are_told_by_their_weights(shelf, tmp_path):
    state = checkpoint.load(shelf / 'pretrain' / LAST)
    torch.save({'model': state['model'], 'args': argparse.Namespace()}, tmp_path / 'plain.pth')
    options = options_of('main_linprobe', f'--finetune {tmp_path}/plain.pth', shelf, tmp_path / 'out')
    assert main_linprobe.main(options) == 0
