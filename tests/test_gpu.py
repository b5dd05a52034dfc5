"""What holds on a GPU as on the CPU; skipped without one."""

import json

import pytest
import torch

import main_finetune
import main_linprobe
import main_pretrain
from model_mamp import MAMP
from util.rng import uniform

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU')


def result_of(folder) -> dict:
    return json.loads((folder / 'result.json').read_text())


def test_random_numbers_are_the_same_on_both():
    position = torch.arange(300)
    assert torch.equal(uniform(12345, position, 750), uniform(12345, position.cuda(), 750).cpu())


def test_masks_and_loss_are_the_same_on_both():
    torch.manual_seed(0)
    model = MAMP(dim_feat=32, decoder_dim_feat=32, depth=2, decoder_depth=1, num_heads=4, num_frames=24)
    clips, draw = torch.randn(2, 3, 24, 25, 2), torch.rand(4, 150)
    loss, _, mask = model(clips, uniform=draw)
    loss_gpu, _, mask_gpu = model.cuda()(clips.cuda(), uniform=draw.cuda())
    assert torch.equal(mask, mask_gpu.cpu())
    assert loss_gpu.item() == pytest.approx(loss.item(), rel=1e-5)


def test_every_stage_runs_in_bf16_by_default(tiny, tiny_pretrain, tmp_path):
    pretrained, device = tmp_path / 'pretrain', ['--device', 'cuda']
    main_pretrain.main([*tiny_pretrain, *device, '--output_dir', str(pretrained)])
    start = ['--finetune', str(pretrained / 'checkpoint-last.pth')]
    main_linprobe.main([*tiny, *device, *start, '--output_dir', str(tmp_path / 'linprobe')])
    main_finetune.main([*tiny, *device, *start, '--output_dir', str(tmp_path / 'finetune')])
    for stage in ('pretrain', 'linprobe', 'finetune'):
        assert result_of(tmp_path / stage)['precision'] == 'bf16'


def test_fp32_pretraining_follows_the_cpu(tiny_pretrain, tmp_path):
    losses = []
    for device in ('cpu', 'cuda'):
        folder = tmp_path / device
        main_pretrain.main([*tiny_pretrain, '--device', device, '--precision', 'fp32', '--output_dir', str(folder)])
        losses.append(result_of(folder)['train_loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
