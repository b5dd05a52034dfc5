"""Class names: how many, in which order, and which list a benchmark gets."""

import pytest

from data.synthesize import ACTIONS
from feeder.classes import find_class_names

# Labels and names as the data sets' makers number them (their numbers, from 1, less one).
NTU = {0: 'drink water', 5: 'pickup', 8: 'standing up (from sitting position)', 9: 'clapping', 22: 'hand waving',
       27: 'make a phone call/answer phone', 42: 'falling', 49: 'punching/slapping other person', 57: 'handshaking',
       59: 'walking apart from each other', 60: 'put on headphone', 71: 'make victory sign', 79: 'squat down',
       95: 'cross arms', 98: 'running on the spot', 102: 'yawn', 105: 'hit other person with something',
       111: 'high-five', 119: 'finger-guessing game (playing rock-paper-scissors)'}
NWUCLA = ['pick up with one hand', 'pick up with two hands', 'drop trash', 'walk around', 'sit down', 'stand up',
          'donning', 'doffing', 'throw', 'carry']


def test_ntu():
    names = find_class_names('ntu120_xsub', 120)
    assert {label: names[label] for label in NTU} == NTU
    assert find_class_names('ntu60_xview', 60) == names[:60]
    two_people = [i for i, name in enumerate(names) if 'other' in name]
    assert all(49 <= i < 60 or i >= 105 for i in two_people) and len(two_people) > 15


def test_pku_is_in_alphabetical_order_and_made_of_ntus_actions():
    names = find_class_names('pku1_xsub', 51)
    assert names == sorted(names) and (names[0], names[9], names[28], names[50]) == (
        'bow', 'eat meal/snack', 'put something inside pocket', 'writing')
    elsewhere = set(names) - set(find_class_names('ntu120_xset', 120))
    assert elsewhere == {'bow', 'put something inside pocket', 'standing up', 'take out something from pocket'}


def test_the_small_sets():
    assert find_class_names('nwucla_xsub', 10) == NWUCLA
    assert find_class_names('synth_xview', 12) == [action.name for action in ACTIONS]


@pytest.mark.parametrize('benchmark, count', [('ntu120_xsub', 120), ('ntu60_xsub', 60), ('pku2_xview', 51),
                                              ('nwucla_xview', 10), ('synth_xsub', 12)])
def test_every_class_has_a_name_of_its_own(benchmark, count):
    names = find_class_names(benchmark, count)
    assert len(names) == len(set(names)) == count and names == find_class_names(benchmark, None)
    assert all(isinstance(name, str) and name == name.strip() and name for name in names)


@pytest.mark.parametrize('benchmark, count, like', [
    ('NTU60_XSub', 60, 'ntu60_xsub'), ('PKUv2_XSub', 51, 'pku1_xsub'), ('SYNTH_XView', 12, 'synth_xsub'),
    ('mine', 120, 'ntu120_xsub'), ('mine', 60, 'ntu60_xsub'), (None, 51, 'pku1_xsub'),
    ('mine', 10, None), ('mine', 12, None), ('mine', 7, None), (None, None, None), ('mine', None, None),
    ('ntu120_xsub', 100, None), ('ntu60_xsub', 120, None), ('nwucla_xview', 60, None),
])
def test_whose_names_they_are(benchmark, count, like):
    assert find_class_names(benchmark, count) == (like and find_class_names(like, count))
