"""The table of data sets: joints, bodies, classes, splits, licence, and what a second body means."""

from dataclasses import dataclass, field

NTU60_SUBJECTS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
NTU120_SUBJECTS = (*NTU60_SUBJECTS, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84,
                   85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103)
NTU60_RAW = ('nturgb+d_skeletons', 'nturgbd_skeletons_s001_to_s017.zip')
NTU120_RAW = ('nturgb+d_skeletons120', 'nturgb+d_skeletons_120', 'nturgbd_skeletons_s018_to_s032.zip')


@dataclass(frozen=True)
class Protocol:
    """A split of a data set, and the dataset file that holds it."""

    file: str                                   # name without .npz
    key: str                                    # performer, camera, setup, action, subject or view
    train: tuple[int, ...] = ()                 # its training values; all others test. PKU-MMD: from its split files
    counts: tuple[int, int] | None = None       # training and test clips of the full set
    tolerance: float = 0.                       # of the counts, where they are those reported by later work


@dataclass(frozen=True)
class DataSet:
    """Facts of a data set."""

    key: str                            # beginning of its benchmarks' names
    title: str
    classes: int
    joints: int
    bodies: int                         # of a clip
    layout: str                         # a name of feeder/layouts.py
    protocols: dict[str, Protocol]
    licence: str
    second_body: str = 'zeros'          # of clips with a single actor: 'zeros' or 'copy' of the first
    centred: bool = True                # bodies start at the origin
    frames: int | None = None           # of a clip in the dataset file of the full set, padding included
    samples: int | None = None          # of the full set
    setups: int = 0                     # NTU RGB+D: files of later setups belong to another set
    raw: tuple[tuple[str, ...], ...] = ()       # alternative names of each part of the raw files
    folder: str = ''                    # of the dataset files, in data/
    copies: dict[str, tuple[int, int, int]] = field(default_factory=dict)   # repeated clips of the release by file:
    #                                     within train, within test, of training clips in test


RESEARCH = 'research use only, on the terms of its owners'
DATASETS = {dataset.key: dataset for dataset in (
    DataSet('ntu60', 'NTU RGB+D', 60, 25, 2, 'kinect-v2', {
        'xsub': Protocol('NTU60_XSub', 'performer', NTU60_SUBJECTS, (40091, 16487)),
        'xview': Protocol('NTU60_XView', 'camera', (2, 3), (37646, 18932)),
    }, RESEARCH, frames=300, samples=56578, setups=17, raw=(NTU60_RAW,), folder='ntu'),
    DataSet('ntu120', 'NTU RGB+D 120', 120, 25, 2, 'kinect-v2', {
        'xsub': Protocol('NTU120_XSub', 'performer', NTU120_SUBJECTS, (63026, 50919)),
        'xset': Protocol('NTU120_XSet', 'setup', tuple(range(2, 33, 2)), (54468, 59477)),
        # 100 auxiliary classes train, the 20 novel ones, every sixth, are for one-shot recognition
        'oneshot': Protocol('NTU120_OneShot', 'action', tuple(a for a in range(1, 121) if a % 6 != 1)),
    }, RESEARCH, second_body='copy', frames=300, samples=113945, setups=32, raw=(NTU60_RAW, NTU120_RAW),
            folder='ntu120'),
    DataSet('synth', 'synthetic data of data/synthesize.py', 12, 25, 2, 'kinect-v2', {
        'xsub': Protocol('SYNTH_XSub', 'performer', NTU60_SUBJECTS),
        'xview': Protocol('SYNTH_XView', 'camera', (2, 3)),
    }, 'none: generated', setups=17, folder='synthetic'),
    DataSet('pku1', 'PKU-MMD I', 51, 25, 2, 'kinect-v2', {
        'xsub': Protocol('PKUv1_XSub', 'subject', counts=(18841, 2704), tolerance=.01),
        'xview': Protocol('PKUv1_XView', 'view'),
    }, RESEARCH, centred=False, frames=300, folder='pku_v1'),
    DataSet('pku2', 'PKU-MMD II', 51, 25, 2, 'kinect-v2', {
        'xsub': Protocol('PKUv2_XSub', 'subject', counts=(5339, 1613), tolerance=.01),
        'xview': Protocol('PKUv2_XView', 'view'),
    }, RESEARCH, centred=False, frames=300, folder='pku_v2'),
    DataSet('nwucla', 'Northwestern-UCLA', 10, 20, 1, 'kinect-v1', {
        'xview': Protocol('NWUCLA_XView', 'view', (1, 2), (1020, 464)),
        'xsub': Protocol('NWUCLA_XSub', 'subject', (1, 3, 5, 7, 9), (724, 760)),
    }, RESEARCH, frames=201, samples=1484, folder='nwucla',
            copies={'NWUCLA_XView': (0, 0, 95), 'NWUCLA_XSub': (50, 45, 0)}),
)}


def find_dataset(benchmark: str | None) -> DataSet | None:
    """The data set of a benchmark by the beginning of its name ('ntu60_xsub', 'PKUv1_XSub'), None if unknown."""
    name = (benchmark or '').lower().replace('pkuv', 'pku')
    return next((dataset for key, dataset in DATASETS.items() if name.startswith(key)), None)


def find_protocol(file: str) -> tuple[DataSet, Protocol] | None:
    """The data set and protocol that a dataset file holds by its name, None if unknown."""
    return next(((dataset, protocol) for dataset in DATASETS.values() for protocol in dataset.protocols.values()
                 if protocol.file == file), None)
