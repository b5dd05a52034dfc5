"""Class names: how many, in which order, and which list a benchmark gets; metadata beside a dataset file."""

import json

from data.exercises import ACTIONS
from feeder.classes import find_class_names, metadata_path, read_class_names, read_metadata
from tests.conftest import refusal

# Some labels and names as the datasets' authors number them, less one.
NTU = {0: 'drink water', 8: 'standing up (from sitting position)', 42: 'falling', 59: 'walking apart from each other',
       60: 'put on headphone', 71: 'make victory sign', 105: 'hit other person with something', 111: 'high-five'}
PKU = {0: 'bow', 9: 'eat meal/snack', 28: 'put something inside pocket', 50: 'writing'}


def test_lists_are_those_of_the_datasets():
    ntu, pku = find_class_names('ntu120_xsub', None), find_class_names('pku1_xsub', None)
    assert {label: ntu[label] for label in NTU} == NTU and {label: pku[label] for label in PKU} == PKU
    assert find_class_names('nwucla_xsub', 10) == [
        'pick up with one hand', 'pick up with two hands', 'drop trash', 'walk around', 'sit down', 'stand up',
        'donning', 'doffing', 'throw', 'carry']
    assert find_class_names('ntu60_xview', 60) == ntu[:60] and pku == sorted(pku)
    assert find_class_names('synth_xview', 12) == [action.name for action in ACTIONS]
    assert len(ntu) == len(set(ntu)) == 120 and len(pku) == len(set(pku)) == 51
    assert find_class_names('NTU60_XSub', 60) == ntu[:60] and find_class_names(None, 51) == pku
    for benchmark, count in (('mine', 120), (None, None), ('ntu120_xsub', 100)):
        assert find_class_names(benchmark, count) is None


def test_metadata_beside_a_file(tmp_path):
    path = tmp_path / 'mine.npz'
    assert read_metadata(path) == {} and read_class_names(path, 2) is None
    content = {'classes': ['sit', 'stand'], 'centre': True, 'scale': 0.001}
    metadata_path(path).write_text(json.dumps(content))
    assert read_metadata(path) == content and read_class_names(path, 2) == ['sit', 'stand']
    assert read_class_names(path, 3) is None
    for changed in ('[]', '{', json.dumps(content | {'classes': ['sit', ' ']}), json.dumps(content | {'centre': 1}),
                    json.dumps(content | {'scale': 0}), json.dumps(content | {'scale': 1e999})):
        metadata_path(path).write_text(changed)
        refusal(lambda: read_metadata(path), metadata_path(path), 'remove it')
