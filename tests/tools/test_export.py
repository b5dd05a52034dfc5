"""Exported files against PyTorch: same numbers, any number of clips, and no file that does not hold to it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tools.export
from feeder.augment import ClipMaker
from feeder.classes import find_class_names
from feeder.dataset import SkeletonDataset
from model_transformer import ActionTransformer, SkeletonEncoder
from tests.conftest import NUM_TEST, refusal, train
from tests.tools.test_predict import save_model
from tools import export_formats as export
from tools.export_formats import ExportError
from util.checkpoint import LAST

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
SIZE = {'dim_feat': 16, 'depth': 2, 'num_heads': 2, 'num_frames': 16, 'num_joints': 5}


@pytest.fixture(scope='module')
def runs(tiny, tiny_pretrain, tmp_path_factory) -> dict[str, str]:
    """A pre-trained model and a classifier on the tiny set."""
    folder = tmp_path_factory.mktemp('runs')
    train('pretrain', tiny_pretrain, folder / 'pretrain')
    train('finetune', [*tiny, '--lr', '1e-2', '--epochs', '4'], folder / 'finetune')
    return {stage: str(folder / stage / LAST) for stage in ('pretrain', 'finetune')}


@pytest.fixture(scope='module')
def exported(runs, tmp_path_factory) -> Path:
    """The fine-tuned classifier as ft.onnx and ft.pt2."""
    folder = tmp_path_factory.mktemp('exported')
    tools.export.main(['--checkpoint', runs['finetune'], '--onnx', str(folder / 'ft.onnx'), '--pt2',
                      str(folder / 'ft.pt2')])
    return folder


@pytest.fixture
def clips(tiny_npz) -> torch.Tensor:
    """Test clips as network input (B, C, T, V, M)."""
    batch = SkeletonDataset(tiny_npz, 'test', 5)[[(row, 0) for row in range(NUM_TEST)]]
    return ClipMaker(16, 'joint', 0).eval_view(batch).contiguous()


def load_float64(model, path):
    model.load_state_dict(torch.load(path, weights_only=True)['model'], strict=False)      # without the decoder
    return model.double().eval()


def run_onnx(path, clips) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    parts = clips.split([1, 5, len(clips) - 6])
    return np.concatenate([session.run(None, {'clips': part.numpy()})[0] for part in parts])


def assert_same(made, right):
    assert made.shape == right.shape and made.dtype == np.float32
    assert (np.linalg.norm(made - right, axis=1) < 1e-4 * np.linalg.norm(right, axis=1)).all()


@torch.inference_mode()
def test_a_trained_classifier_gives_the_same_logits(runs, exported, clips):
    clips = torch.cat([clips, clips[:1] * 0])       # of two bodies, one body and none
    right = load_float64(ActionTransformer(3, 'finetune', **SIZE), runs['finetune'])(clips.double()).numpy()
    assert len(set(right.argmax(1))) > 1 and np.ptp(right) > 1
    program, parts = torch.export.load(exported / 'ft.pt2').module(), clips.split([1, 5, len(clips) - 6])
    for made in (run_onnx(exported / 'ft.onnx', clips), torch.cat([*map(program, parts)]).numpy()):
        assert_same(made, right)
        assert (made.argmax(1) == right.argmax(1)).all()


def test_a_file_says_what_it_is(runs, exported, tmp_path):
    model = onnx.load(exported / 'ft.onnx')
    onnx.checker.check_model(model, full_check=True)
    axes = {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)}
    assert axes == {'clips': ['batch', 3, 16, 5, 2], 'logits': ['batch', 3]}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    in_pt2 = {export.METADATA: ''}
    torch.export.load(exported / 'ft.pt2', extra_files=in_pt2)
    assert facts.items() >= {'what': 'classifier', 'stream': 'joint', 'num_frames': '16', 'num_bodies': '2',
                             'benchmark': 'TINY', 'method': 'scratch', 'checkpoint': runs['finetune']}.items()
    held = json.loads(in_pt2[export.METADATA])
    assert {name: value if isinstance(value, str) else json.dumps(value) for name, value in held.items()} == facts
    assert held['classes'] == [f'class {i}' for i in range(3)] and held['centred'] == 'yes'
    assert sorted(os.listdir(exported)) == ['ft.onnx', 'ft.pt2'], 'weights inside, nothing beside'
    path = save_model(tmp_path / 'c.pth', 20, 10, 'nwucla_xview')
    tools.export.main(['--checkpoint', str(path), '--pt2', str(tmp_path / 'm.pt2')])
    torch.export.load(tmp_path / 'm.pt2', extra_files=in_pt2)
    held = json.loads(in_pt2[export.METADATA])
    assert held['classes'] == find_class_names('nwucla_xview', 10) and held['layout'] == 'kinect-v1'


@torch.inference_mode()
def test_an_encoder_of_pretraining_gives_the_same_mean_features(runs, clips, tiny_npz, tmp_path, capsys):
    tools.export.main(['--checkpoint', runs['pretrain'], '--onnx', str(tmp_path / 'e.onnx'), '--data_path',
                      str(tiny_npz)])
    said = capsys.readouterr().out
    assert f'test clips 0, 2, 5, 7, 10, 12 of {tiny_npz}' in said and 'features (batch, 16)' in said
    model = load_float64(SkeletonEncoder(**SIZE), runs['pretrain'])
    assert_same(run_onnx(tmp_path / 'e.onnx', clips), model.features(clips.double()).mean((1, 2, 3)).numpy())


def test_a_program_that_computes_something_else_is_caught(runs, tmp_path, monkeypatch):
    """One body left out: random walks show it, though one of the two is empty in half of them."""
    (tmp_path / 'm.pt2').write_bytes(b'old')
    monkeypatch.setattr(export.Deployed, 'forward', lambda self, clips: self.model(
        torch.cat([clips[..., :1], clips[..., :1] * 0], dim=4)) + (0 if torch.compiler.is_exporting() else 1))
    with pytest.raises(ExportError, match='differs from PyTorch') as error:
        tools.export.main(['--checkpoint', runs['finetune'], '--pt2', str(tmp_path / 'm.pt2')])
    assert error.value.exit_code == 1
    assert (tmp_path / 'm.pt2').read_bytes() == b'old' and os.listdir(tmp_path) == ['m.pt2']


@pytest.mark.parametrize('made, part', [([4., np.nan], 'not finite'), ([4.00001, 4.], 'different class')])
def test_verification_reports_the_difference(made, part):
    right, clips = np.array([[4., 4.00001]]), np.zeros((1, 3, 4, 5, 1), np.float32)
    assert export.verify(Path('f'), lambda path: lambda clips: right, 'classifier', [clips], [right]) == 0
    with pytest.raises(ExportError, match=part):
        export.verify(Path('f'), lambda path: lambda clips: np.array([made]), 'classifier', [clips], [right])


def test_bad_input_is_one_line_and_leaves_nothing(runs, tiny_npz, tmp_path, monkeypatch):
    def refuse(options, *parts):
        refusal(lambda: tools.export.main([str(option) for option in options]), *parts)
        assert not os.listdir(tmp_path / 'out')

    (tmp_path / 'out').mkdir()
    out, tuned, pretrained = tmp_path / 'out/m.onnx', runs['finetune'], runs['pretrain']
    refuse(['--checkpoint', pretrained, '--onnx', out, '--what', 'classifier'], pretrained, '--what encoder')
    refuse(['--checkpoint', tuned, '--onnx', tuned], 'is also an input')
    refuse(['--checkpoint', tuned, '--pt2', out, '--data_path', tiny_npz, '--num_bodies', '1'], 'have 2')
    torch.save(torch.load(tuned, weights_only=True) | {'bodies': 'two'}, tmp_path / 'spoilt.pth')
    refuse(['--checkpoint', tmp_path / 'spoilt.pth', '--pt2', out], 'spoilt.pth', "'bodies'")
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    refuse(['--checkpoint', tuned, '--onnx', out, '--pt2', tmp_path / 'out/m.pt2'], 'onnxscript', 'pip install')
