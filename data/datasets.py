"""The table of datasets: layout, bodies, classes, splits, licence, and the second body of clips with one person.

To add a dataset, add an entry here and a data/prepare_*.py that reads its raw files. The names of its classes are in
feeder/classes.yaml.
"""

from dataclasses import dataclass

from feeder.layouts import read_layout

NTU60_SUBJECTS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
NTU120_SUBJECTS = (*NTU60_SUBJECTS, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84,
                   85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103)
VALIDATION_SUBJECTS = (1, 2, 4, 5, 7, 8, 10)    # of NW-UCLA; 3, 6 and 9 are used to choose settings
NTU60_RAW = 'nturgbd_raw/nturgb+d_skeletons', 'nturgbd_raw/nturgbd_skeletons_s001_to_s017.zip'
NTU120_RAW = ('nturgbd_raw/nturgb+d_skeletons120', 'nturgbd_raw/nturgb+d_skeletons_120',
              'nturgbd_raw/nturgbd_skeletons_s018_to_s032.zip')


@dataclass(frozen=True)
class Protocol:
    """A split of a dataset, and the dataset file that holds it."""

    file: str                                   # name without .npz
    key: str                                    # the fact that decides: a field of the parsed sample name
    train: tuple[int, ...] = ()                 # training values, in the order of the file; PKU-MMD: in its split files
    views: tuple[tuple[int, ...], tuple[int, ...]] | None = None    # views of training and test clips, without others
    default: bool = True                        # written unless --protocol selects others
    counts: tuple[int, int] | None = None       # training and test clips of the full set
    tolerance: float = 0.                       # relative, if counts are only known from later work
    copies: tuple[int, int, int] = (0, 0, 0)    # copied clips in the release: in training, in test, training in test

    def split(self, facts) -> str | None:
        """Return 'train' or 'test' for a sample with these facts (attributes), or None if the protocol omits it."""
        is_test = getattr(facts, self.key) not in self.train
        if self.views and facts.view not in self.views[is_test]:
            return None
        return 'test' if is_test else 'train'


@dataclass(frozen=True)
class DataSet:
    """Facts of a dataset."""

    key: str                            # beginning of its benchmarks' names
    title: str
    classes: int
    bodies: int                         # per clip
    layout: str                         # name in feeder/layouts.yaml
    folder: str                         # of its dataset files, in data/
    protocols: dict[str, Protocol]      # by name on the command line
    licence: str = 'research use only, on the terms of its owners'
    second_body: str = 'zeros'          # if there is one person: 'zeros', or a 'copy' of the first body
    centred: bool = True                # clips start at the origin
    frames: int | None = None           # of a clip in the dataset file of the full set, padding included
    samples: int | None = None          # of the full set
    setups: int = 0                     # NTU RGB+D: samples of later setups belong to another dataset
    raw: tuple[tuple[str, ...], ...] = ()       # raw files, relative to data/: alternative names for each part

    @property
    def joints(self) -> int:
        return len(read_layout(self.layout).joints)

    @property
    def width(self) -> int:
        """Numbers per frame."""
        return 3 * self.joints * self.bodies


DATASETS = {dataset.key: dataset for dataset in (
    DataSet('ntu60', 'NTU RGB+D', 60, 2, 'kinect-v2', 'ntu', {
        'xsub': Protocol('NTU60_XSub', 'performer', NTU60_SUBJECTS, counts=(40091, 16487)),
        'xview': Protocol('NTU60_XView', 'camera', (2, 3), counts=(37646, 18932)),
    }, frames=300, samples=56578, setups=17, raw=(NTU60_RAW,)),
    DataSet('ntu120', 'NTU RGB+D 120', 120, 2, 'kinect-v2', 'ntu120', {
        'xsub': Protocol('NTU120_XSub', 'performer', NTU120_SUBJECTS, counts=(63026, 50919)),
        'xset': Protocol('NTU120_XSet', 'setup', tuple(range(2, 33, 2)), counts=(54468, 59477)),
        # 100 auxiliary classes train, the 20 novel ones, every sixth, are for one-shot recognition
        'oneshot': Protocol('NTU120_OneShot', 'action', tuple(a for a in range(1, 121) if a % 6 != 1), default=False),
    }, second_body='copy', frames=300, samples=113945, setups=32, raw=(NTU60_RAW, NTU120_RAW)),
    DataSet('synth', 'Synthetic data of data/synthesize.py', 12, 2, 'kinect-v2', 'synthetic', {
        'xsub': Protocol('SYNTH_XSub', 'performer', NTU60_SUBJECTS),
        'xview': Protocol('SYNTH_XView', 'camera', (2, 3)),
    }, licence='none', setups=17),
    DataSet('pku1', 'PKU-MMD I', 51, 2, 'kinect-v2', 'pku_v1', {
        'xsub': Protocol('PKUv1_XSub', 'subject', counts=(18841, 2704), tolerance=.01),
        'xview': Protocol('PKUv1_XView', 'view'),
    }, centred=False, frames=300, raw=(('pku_raw/v1',),)),
    DataSet('pku2', 'PKU-MMD II', 51, 2, 'kinect-v2', 'pku_v2', {
        'xsub': Protocol('PKUv2_XSub', 'subject', counts=(5339, 1613), tolerance=.01),
        'xview': Protocol('PKUv2_XView', 'view'),
    }, centred=False, frames=300, raw=(('pku_raw/v2',),)),
    DataSet('nwucla', 'Northwestern-UCLA Multiview Action 3D', 10, 1, 'kinect-v1', 'nwucla', {
        'xview': Protocol('NWUCLA_XView', 'view', (1, 2), counts=(1020, 464), copies=(0, 0, 95)),
        'xsub': Protocol('NWUCLA_XSub', 'subject', (1, 3, 5, 7, 9), counts=(724, 760), copies=(50, 45, 0)),
        'validation': Protocol('NWUCLA_Validation', 'subject', VALIDATION_SUBJECTS, ((1, 2), (1, 2)), default=False),
        'validation_view': Protocol('NWUCLA_ValidationView', 'subject', VALIDATION_SUBJECTS, ((1,), (2,)),
                                    default=False),
    }, frames=201, samples=1484),
)}


def find_dataset(benchmark: str | None) -> DataSet | None:
    """Find the dataset of a benchmark from the beginning of its name ('ntu60_xsub', 'PKUv1_XSub'); None if unknown."""
    name = (benchmark or '').lower().replace('pkuv', 'pku')
    return next((dataset for key, dataset in DATASETS.items() if name.startswith(key)), None)


def find_protocol(file: str) -> tuple[DataSet, Protocol] | None:
    """Find the dataset and protocol of a dataset file from its name without .npz; None if unknown."""
    return next(((dataset, protocol) for dataset in DATASETS.values() for protocol in dataset.protocols.values()
                 if protocol.file == file), None)
