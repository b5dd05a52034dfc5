"""2D keypoints: units, files of pose estimators, training and prediction from end to end."""

import json

import numpy as np
import pytest
import torch

import tools.predict
import tools.visualize
from data import prepare_custom, project_2d
from data.dataset_file import write_npz
from data.formats import read_recording, read_recordings
from data.formats.recording import clean_keypoints, select_bodies
from feeder.augment import ClipMaker
from feeder.dataset import SkeletonDataset, pack_clips
from feeder.layouts import read_layout
from model_mamp import MAMP
from tests.conftest import refusal, train
from tests.feeder.conftest import make_members
from util.checkpoint import LAST, Checkpoint
from util.predictions import read_scores

COCO = read_layout('coco-17')
SMALL = ['--num_frames', '16', '--dim_feat', '16', '--depth', '1', '--num_heads', '2', '--num_workers', '0', '--device',
         'cpu', '--effective_batch_size', '2', '--epochs', '1', '--warmup_epochs', '0', '--lr', '1e-3']


def walk(frames=12, persons=2, joints=17, seed=0):
    """Keypoints (T, M, V, 3) in pixels with scores; the persons are 400 pixels apart."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 150, (1, persons, joints, 2)) + rng.normal(0, 3, (frames, 1, joints, 2)).cumsum(axis=0)
    points += 400 * np.arange(1, persons + 1)[:, None, None]
    return np.concatenate([points, rng.uniform(0.3, 1, (frames, persons, joints, 1))], axis=-1).round(3)


def test_units_of_the_body():
    """Independent of resolution and position; y upwards; joints of low score are missing."""
    frames = walk()
    clean = clean_keypoints(frames, COCO)
    first = frames[0, 0, :, :2]
    unit = np.hypot(*np.ptp(first, axis=0)) / 2
    np.testing.assert_allclose(clean[..., :2], (frames[..., :2] - first[0]) / unit * (1, -1), atol=1e-5)
    np.testing.assert_allclose(clean[..., 2], frames[..., 2], rtol=1e-6)
    np.testing.assert_allclose(clean_keypoints(frames * (3, 3, 1) + (70, -20, 0), COCO), clean, atol=1e-5)
    frames[0, 0, 0, 2] = frames[5, 1, 3, 2] = 0.05       # the root in the first frame, and another joint
    clean = clean_keypoints(frames, COCO)
    assert not clean[0, 0, 0].any() and clean[5, 1, 3].tolist() == [*clean[4, 1, 3, :2], 0] and clean[5, 1, 4].all()
    np.testing.assert_allclose(clean[0, 0, 1:, :2].mean(axis=0), 0, atol=1e-6)
    refusal(lambda: clean_keypoints(frames * (1, 1, 0), COCO), 'scores are below')
    refusal(lambda: clean_keypoints(-frames, COCO), 'not a score')


def write_openpose(folder, frames, swap=()):
    folder.mkdir()
    for t, bodies in enumerate(frames):
        people = [{'person_id': [-1], 'pose_keypoints_2d': body.ravel().tolist()} for body in bodies if body.any()]
        content = {'version': 1.3, 'people': people[::-1] if t in swap else people}
        (folder / f'video_{t}_keypoints.json').write_text(json.dumps(content))


def test_formats_agree(tmp_path):
    """OpenPose's folder, with persons in changing order, lists with ids, arrays with and without scores."""
    frames = walk()
    frames[4:6, 1] = 0          # the second person is not detected
    expected = clean_keypoints(frames, COCO)
    np.save(tmp_path / 'a.npy', frames)
    np.testing.assert_array_equal(read_recording(tmp_path / 'a.npy', planar=True).frames, expected)
    np.save(tmp_path / 'b.npy', frames[..., :2])
    recording = read_recording(tmp_path / 'b.npy')
    assert recording.planar and np.isin(recording.frames[..., 2], (0, 1)).all()
    np.testing.assert_allclose(recording.frames[..., :2], expected[..., :2], atol=1e-6)
    write_openpose(tmp_path / 'openpose', frames, swap=(2, 3, 7, 11))
    np.testing.assert_allclose(read_recording(tmp_path / 'openpose').frames, expected, atol=1e-6)
    for ids, note in (((0, 1), 'read with the joints coco-17'), (([0.0], [0.0]), 'read without ids')):  # no tracking
        entries = [{'image_id': f'{t}.jpg', 'keypoints': frames[t, m].ravel().tolist(), 'idx': ids[m]}
                   for t in range(12) for m in (1, 0) if frames[t, m].any()]
        (tmp_path / 'alphapose.json').write_text(json.dumps(entries))
        made = read_recording(tmp_path / 'alphapose.json')
        np.testing.assert_allclose(clean_keypoints(frames[:, ::-1], COCO), made.frames, atol=1e-6)
        assert made.notes[0].startswith(note)
    write_openpose(tmp_path / 'body', walk(joints=25))
    assert read_recording(tmp_path / 'body').layout.name == 'openpose-25'
    (tmp_path / 'body' / 'other_0_keypoints.json').write_text('{}')
    refusal(lambda: read_recording(tmp_path / 'body'), 'frames of 2 videos')


def test_the_person_that_moves_is_kept_not_the_one_with_missing_joints():
    rng, frames = np.random.default_rng(0), walk(30)
    frames[:, 1] = frames[0, 1] * (rng.random((30, 17, 1)) > 0.3)
    clean = clean_keypoints(frames, COCO)
    assert select_bodies(clean, 1, COCO, True, planar=True)[..., 2].all()


@pytest.mark.parametrize('content, part', [
    ([{'image_id': 1}], 'image_id and keypoints'), ({'people': [3]}, 'list of people'), ([], 'no person'),
    ({'people': [{'pose_keypoints_2d': [1, 2]}]}, 'x, y and score'), ({'people': []}, 'no person'),
    ([{'image_id': 1, 'keypoints': [1] * 51}, {'image_id': 1, 'keypoints': [1] * 54}], '17 and 18 joints')], ids=str)
def test_invalid_files(tmp_path, content, part):
    (tmp_path / 'a.json').write_text(json.dumps(content))
    refusal(lambda: list(read_recordings(tmp_path / 'a.json')), tmp_path / 'a.json', part)


def test_augmentation_and_streams_leave_scores_alone():
    batch = pack_clips([clean_keypoints(walk(40), COCO)])
    maker = ClipMaker(16, 'joint', 0, (1., 1.), layout=COCO, keypoints='2d')
    plain, turned = maker.eval_view(batch), maker.train_view(batch, 0, 0)
    full = ClipMaker(16, 'joint', 0, (1., 1.), max_angle=0., layout=COCO).train_view(batch, 0, 0)
    torch.testing.assert_close(turned[:, 2], full[:, 2])
    torch.testing.assert_close(turned[:, :2].norm(dim=1), full[:, :2].norm(dim=1))
    assert not torch.allclose(turned[:, :2], full[:, :2], atol=1e-2)
    for stream in ('bone', 'velocity'):
        derived = ClipMaker(16, stream, 0, layout=COCO, keypoints='2d').derive_stream(plain)
        torch.testing.assert_close(derived[:, 2], plain[:, 2])
        torch.testing.assert_close(derived[:, :2], ClipMaker(16, stream, 0, layout=COCO).derive_stream(plain)[:, :2])


def test_mask_and_target_ignore_scores():
    torch.manual_seed(0)
    model = MAMP(dim_feat=16, decoder_dim_feat=16, depth=1, decoder_depth=1, num_heads=2, num_frames=16, num_joints=17,
                 keypoints='2d')
    bodies, uniform = torch.randn(2, 16, 17, 3), torch.rand(2, 68)
    other = bodies.clone()
    other[..., 2] = torch.rand(2, 16, 17)
    assert model.decoder_pred.out_features == 8
    torch.testing.assert_close(model.prediction_target(bodies, 1), model.prediction_target(other, 1))
    masks = (model.draw_mask(x, .5, .8, uniform) for x in (bodies, other))
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))


def test_from_files_to_a_prediction(tmp_path, capsys):
    """As a user does: a folder of OpenPose's folders and a table; pre-training, fine-tuning, prediction, a picture."""
    rows = ['file,label,split']
    for i in range(8):
        write_openpose(tmp_path / f'clip{i}', walk(10 + i, 1, seed=i))
        rows.append(f'clip{i},{"ab"[i % 2]},{"train" if i < 6 else "test"}')
    (tmp_path / 'labels.csv').write_text('\n'.join(rows))
    prepare = ['--raw', str(tmp_path), '--labels', str(tmp_path / 'labels.csv'), '--out', str(tmp_path / 'out')]
    assert prepare_custom.main([*prepare, '--workers', '1']) == 0
    options = [*SMALL, '--config', str(tmp_path / 'out/custom.yaml'), '--num_frames', '16']
    train('pretrain', [*options, '--decoder_dim_feat', '16', '--decoder_depth', '1'], tmp_path / 'pre')
    train('finetune', [*options, '--finetune', str(tmp_path / 'pre' / LAST), '--save_scores'], tmp_path / 'fine')
    model = str(tmp_path / 'fine' / LAST)
    assert Checkpoint.read(model).args['keypoints'] == '2d'
    scores = read_scores(tmp_path / 'fine/scores.npz')
    expected = dict(zip(scores.name.tolist(), scores.scores.max(1).tolist(), strict=True))
    capsys.readouterr()
    command = ['--checkpoint', model, '--device', 'cpu', '--json', '-']
    assert tools.predict.main([*command, str(tmp_path / 'clip6'), str(tmp_path / 'clip7')]) == 0
    made = {entry['recording'][-5:]: entry['top'][0]['probability']
            for entry in json.loads(capsys.readouterr().out)['recordings']}
    assert made == pytest.approx(expected, abs=1e-4)
    np.save(tmp_path / '3d.npy', np.random.default_rng(0).normal(size=(9, 25, 3)))
    assert tools.predict.main([*command, str(tmp_path / '3d.npy')]) == 2
    picture = tmp_path / 'a.png'
    assert tools.visualize.main(['--checkpoint', str(tmp_path / 'pre' / LAST), '--out', str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def test_projection_of_a_dataset_file(tmp_path):
    members = make_members(6, width=75) | {'name_train': np.array(list('abcdef')), 'name_test': np.array(list('ghij'))}
    write_npz(tmp_path / 'b.npz', **members)
    assert project_2d.main([str(tmp_path / 'b.npz'), '--out', str(tmp_path / 'c.npz'), '--missing', '0.2']) == 0
    dataset = SkeletonDataset(tmp_path / 'c.npz', 'train', 25)
    assert dataset.keypoints == '2d' and dataset.names.tolist() == list('abcdef')
    score = dataset[[(row, 0) for row in range(6)]].frames[..., 2]
    assert 0.15 < (score == 0).float().mean() < 0.25 and score.max() <= 1
