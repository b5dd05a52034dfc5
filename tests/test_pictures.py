"""The picture of a clip: what it says and that it exists."""

import matplotlib.image
import numpy as np
import pytest
import torch

import main_pretrain
import main_visualize
from model_mamp import MAMP
from util.errors import UserError


def test_a_perfect_prediction_is_drawn_as_the_truth():
    """Undoing the normalisation with the truth's own mean and spread must give the true motion back."""
    settings = {'mask_ratio': 0.5, 'motion_stride': 1, 'motion_aware_tau': 0.8}
    model = MAMP(dim_feat=16, decoder_dim_feat=16, depth=1, decoder_depth=1, num_heads=2, num_frames=16, num_joints=5)
    clip = torch.randn(1, 3, 16, 5, 2)
    bodies = model.fold_bodies(clip)
    model.decode = lambda latent, order: model.target_of(bodies, 1)
    inside = main_visualize.look_inside(model.eval(), settings, clip, seed=0)
    np.testing.assert_allclose(inside['pred'], inside['true'], atol=1e-5)
    np.testing.assert_allclose(inside['true'][:-1], np.diff(inside['pose'], axis=0), atol=1e-6)
    assert inside['hidden'].shape == inside['intensity'].shape == (4, 5) and inside['hidden'].sum() == 10


def test_visualize_draws_a_clip_of_a_checkpoint(tmp_path, capsys):
    """On made-up Kinect-v1 clips, since the picture names joints."""
    from data.common import one_hot, write_npz
    x = np.random.default_rng(0).normal(size=(4, 20, 60)).astype(np.float32).cumsum(1)
    data, runs, picture = tmp_path / 'D.npz', tmp_path / 'runs', tmp_path / 'clip.png'
    write_npz(data, x_train=x, y_train=one_hot([0, 1, 0, 1], 2), x_test=x, y_test=one_hot([0, 1, 0, 1], 2))
    main_pretrain.main(['--data_path', str(data), '--num_joints', '20', '--num_frames', '16', '--dim_feat', '16',
                        '--depth', '1', '--num_heads', '2', '--decoder_dim_feat', '16', '--decoder_depth', '1',
                        '--effective_batch_size', '4', '--epochs', '1', '--lr', '1e-3', '--num_workers', '0',
                        '--device', 'cpu', '--output_dir', str(runs)])
    checkpoint = str(runs / 'checkpoint-last.pth')
    assert main_visualize.main(['--checkpoint', checkpoint, '--clip', '3', '--out', str(picture)]) == 0
    assert capsys.readouterr().out.strip() == str(picture)
    assert matplotlib.image.imread(picture)[..., :3].std() > 0.05
    with pytest.raises(UserError, match='--clip 4'):
        main_visualize.main(['--checkpoint', checkpoint, '--clip', '4', '--out', str(picture)])
