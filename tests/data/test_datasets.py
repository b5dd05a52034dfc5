"""The table of datasets against the published protocols."""

from data.datasets import DATASETS, find_protocol
from data.prepare_nwucla import parse_clip_name

# Training subjects, cameras and setups in the papers of NTU RGB+D 60 (Shahroudy 2016) and 120 (Liu 2019).
TRAIN = {
    'NTU60_XSub': [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38],
    'NTU60_XView': [2, 3],
    'NTU120_XSub': [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52,
                    53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98,
                    100, 103],
    'NTU120_XSet': [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32],
    'NTU120_OneShot': sorted(set(range(1, 121)) - {1, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73, 79, 85, 91, 97,
                                                   103, 109, 115})}


def test_protocols_are_the_published_ones():
    for file, train in TRAIN.items():
        assert list(find_protocol(file)[1].train) == train
    for key, total in (('ntu60', 56578), ('ntu120', 113945), ('nwucla', 1484)):
        counts = [protocol.counts for protocol in DATASETS[key].protocols.values() if protocol.counts]
        assert len(counts) == 2 and all(sum(pair) == DATASETS[key].samples == total for pair in counts)


def test_validation_splits_never_hold_the_test_view():
    for name, splits in (('validation', {'s01v01': 'train', 's01v02': 'train', 's03v01': 'test', 's03v02': 'test'}),
                         ('validation_view', {'s01v01': 'train', 's01v02': None, 's03v01': None, 's03v02': 'test'})):
        for sample, split in (splits | {'s01v03': None, 's03v03': None}).items():
            facts = parse_clip_name(f'a01_{sample[:3]}_e00_{sample[3:]}')
            assert DATASETS['nwucla'].protocols[name].split(facts) == split
