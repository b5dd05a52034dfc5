"""Joint layouts: names of the joints, their parents, and which joints of two layouts are the same.

A layout is chosen by name ('kinect-v2'), by a YAML file, or by the number of joints alone. The file lists the joints in
the order of the data, each with its parent by name or by index (counted from 0); the root has none:

    name: stick figure          # default: the name of the file
    joints:
      pelvis:
      chest: pelvis
      head: chest

V is the number of joints.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from util.errors import UserError, quote
from util.files import read_yaml

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    name: str
    joints: tuple[str, ...]         # V names
    parents: tuple[int, ...]        # V indices; the root is its own parent

    def as_map(self) -> dict[str, str]:
        """Return a map from each joint to its parent, by name; the root is its own parent."""
        return {joint: self.joints[parent] for joint, parent in zip(self.joints, self.parents, strict=True)}


@cache
def known_layouts() -> tuple[Layout, ...]:
    """Return the layouts in layouts.yaml."""
    path = Path(__file__).with_suffix('.yaml')
    layouts = yaml.safe_load(path.read_text(encoding='utf-8'))
    return tuple(make_layout(name, joints, str(path)) for name, joints in layouts.items())


# Different names for the same part of the body. Keys are in the form that `plain_name` returns, without the side.
ALIASES = {
    'hip centre': 'spine base',         # Kinect v1's HipCenter and v2's SpineBase: the middle of the pelvis,
    'mid hip': 'spine base',            # also OpenPose's MidHip, half-way between the hips,
    'pelvis': 'spine base',             # the root of SMPL and Azure Kinect,
    'hips': 'spine base',               # and the root of most BVH files
    'spine mid': 'spine',               # v2's own spelling of the joint that v1 calls Spine
    'spine navel': 'spine',             # Azure Kinect
    'spine 2': 'spine',                 # SMPL; in BVH files, where it is higher, Spine exists, too
    'shoulder centre': 'spine top',     # v1's ShoulderCenter and v2's SpineShoulder: between the shoulders, below the
    'spine shoulder': 'spine top',      # neck
    'mid shoulder': 'spine top',        # OpenPose calls it the neck
    'thorax': 'spine top', 'spine chest': 'spine top', 'spine 3': 'spine top',      # Human3.6M, Azure Kinect, SMPL
    'nose': 'head', 'eye': 'head', 'eye inner': 'head', 'eye outer': 'head', 'ear': 'head', 'mouth': 'head',
    'index': 'hand', 'pinky': 'hand',   # MediaPipe's knuckles
    'foot index': 'foot', 'big toe': 'foot',        # Kinect's foot is the tip of the foot
}
# BVH files name joints after the bones that begin there: LeftForeArm is the elbow, LeftShoulder the collar bone. Spaces
# are removed.
BONES = {
    'shoulder': 'collar', 'arm': 'shoulder', 'upperarm': 'shoulder', 'forearm': 'elbow', 'lowerarm': 'elbow',
    'hand': 'wrist', 'upleg': 'hip', 'upperleg': 'hip', 'thigh': 'hip', 'leg': 'knee', 'lowerleg': 'knee',
    'shin': 'knee', 'calf': 'knee', 'foot': 'ankle', 'toe': 'foot', 'toebase': 'foot', 'ball': 'foot',
}
_WORDS = {'l': 'left', 'r': 'right', 'center': 'centre'}


def plain_name(joint: str) -> str:
    """Normalise a joint's name: 'LeftElbow', 'elbow_left', 'LElbow' and 'mixamorig:l_elbow' become 'left elbow'."""
    joint = joint.rpartition(':')[2] or joint
    words = re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+', joint) or [joint]
    words = [_WORDS.get(word.lower(), word.lower()) for word in words]
    return ' '.join(sorted(words, key=lambda word: word not in ('left', 'right')))


def shared_names(layout: Layout) -> list[str]:
    """Return V names for matching joints across layouts; aliases are replaced unless the common name is in use."""
    sides, parts = zip(*(re.fullmatch(r'(left |right |)(.*)', plain_name(joint)).groups() for joint in layout.joints),
                       strict=True)
    bones = [part.replace(' ', '') for part in parts]
    if 'forearm' in bones or 'lowerarm' in bones:
        parts = [BONES.get(bone, part) for bone, part in zip(bones, parts, strict=True)]
    names = []
    for side, part in zip(sides, parts, strict=True):
        common = ALIASES.get(part, part)
        if part == common or common in parts:
            names.append(side + part)
        else:
            names.append(side + common if common in ('hand', 'foot') else common)
    return names


# ---- choose a layout -------------------------------------------------------------------------------------------------


def known_layout(num_joints: int) -> Layout | None:
    """Return the layout with this number of joints, or None."""
    return next((layout for layout in known_layouts() if len(layout.joints) == num_joints), None)


def default_layout(num_joints: int) -> Layout:
    """Return the layout with this number of joints; raises UserError if it is not known."""
    if layout := known_layout(num_joints):
        return layout
    known = ', '.join(f'{len(layout.joints)}: {layout.name}' for layout in known_layouts())
    raise UserError(f'no joint layout with {num_joints} joints is known ({known}); correct --num_joints, or set '
                    '--layout to a YAML file')


def read_layout(source: str | Path) -> Layout:
    """Return the layout of a name or YAML file; raises UserError for an unknown name or an invalid file."""
    layouts = {layout.name: layout for layout in known_layouts()}
    if str(source) in layouts:
        return layouts[str(source)]
    path = Path(source)
    if path.suffix.lower() not in ('.yaml', '.yml'):
        raise UserError(f'--layout {source}: unknown layout; choose one of {", ".join(layouts)}, or a YAML file')
    content = read_yaml(path, 'a layout', 'correct --layout')
    if unknown := [key for key in content if key not in ('name', 'joints')]:
        raise UserError(f'{path}: unknown key {quote(unknown[0])}; the valid keys are name and joints')
    return make_layout(content.get('name', path.stem), content.get('joints'), str(path))


def find_layout(source: str | None, num_joints: int | None) -> Layout | None:
    """Return the layout for --layout and --num_joints, or None if only the number is set and no layout has it.

    Raises UserError as `read_layout` does, and if the two options contradict each other.
    """
    if source is None:
        return known_layout(num_joints)
    layout = read_layout(source)
    if num_joints not in (None, len(layout.joints)):
        raise UserError(f'--layout {source} has {len(layout.joints)} joints, but --num_joints is {num_joints}; omit '
                        'one of them')
    return layout


def make_layout(name, joints, source: str) -> Layout:
    """Make a layout from an ordered map of joints to their parents: names, indices, or None for the root.

    Raises a UserError that begins with `source` if a name is not a string or not unique, or if the joints do not form
    one tree.
    """
    if not isinstance(joints, Mapping) or not joints:
        raise UserError(f'{source}: joints must be a mapping of joints to their parents')
    for text in (name, *joints):
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise UserError(f'{source}: the name {quote(text)} must be a printable string; put numbers in quotes')
    index = {joint: i for i, joint in enumerate(joints)}
    parents = []
    for joint, parent in joints.items():
        parent = index[joint] if parent is None else index.get(parent, parent) if isinstance(parent, str) else parent
        if type(parent) is not int or not 0 <= parent < len(index):
            raise UserError(f'{source}: the parent of {joint} is {quote(parent)}, which is not a joint; specify the '
                            f'name of a joint, or an index from 0 to {len(index) - 1}')
        parents.append(parent)
    _check_tree(tuple(joints), parents, source)
    return Layout(name, tuple(joints), tuple(parents))


def _check_tree(joints: tuple[str, ...], parents: list[int], source: str) -> None:
    """Raise UserError unless the chain of parents of every joint ends at one and the same root."""
    ends = set()
    for joint in range(len(joints)):
        for _ in joints:
            joint = parents[joint]
        ends.add(joint)
    if len(ends) != 1 or any(parents[end] != end for end in ends):
        roots = ', '.join(name for i, name in enumerate(joints) if parents[i] == i) or 'none'
        raise UserError(f'{source}: the joints do not form a tree with one root (joints without a parent: {roots}); '
                        'specify a parent for every joint except the root, without cycles')


# ---- from one layout to another --------------------------------------------------------------------------------------


def checkpoint_layout(checkpoint, path: str | Path) -> Layout | None:
    """Return the layout that a checkpoint was trained on: the recorded one, or else the one with its number of joints.

    Returns None if neither is known. Raises UserError if the recorded layout does not fit the joint embeddings.
    """
    if checkpoint.layout is None:
        return known_layout(checkpoint.num_joints)
    layout = make_layout(checkpoint.layout.get('name'), checkpoint.layout.get('joints'), f'{path}: recorded layout')
    if len(layout.joints) != checkpoint.num_joints:
        raise UserError(f'{path}: the recorded layout has {len(layout.joints)} joints, but the joint embeddings have '
                        f'{checkpoint.num_joints}; use another checkpoint')
    return layout


def check_same_joints(trained: Layout | None, current: Layout | None, path: str | Path) -> None:
    """Raise UserError if both layouts are known and have equally many joints with different names."""
    if trained and current and len(trained.joints) == len(current.joints) and trained.joints != current.joints:
        before, now = next(pair for pair in zip(trained.joints, current.joints, strict=True) if pair[0] != pair[1])
        raise UserError(f'{path}: trained with the joints of {trained.name}, but the layout is now {current.name} '
                        f'(joint {now!r} was {before!r}); use the same --layout, or start from the encoder with '
                        '--finetune')


def match_joints(source: Layout, target: Layout, path: str | Path) -> list[int | None]:
    """Return for each joint of `target` the index of the joint of `source` with the same name, or None.

    Logs a summary. Raises a UserError that begins with the checkpoint's `path` if no joint matches.
    """
    indices = {name: i for i, name in reversed(list(enumerate(shared_names(source))))}      # the first of equal names
    matches = [indices.get(name) for name in shared_names(target)]
    new = [joint for joint, match in zip(target.joints, matches, strict=True) if match is None]
    if len(new) == len(matches):
        raise UserError(f'{path}: no joint of its layout {source.name} ({", ".join(source.joints[:3])}, …) has the '
                        f'same name as a joint of {target.name} ({", ".join(target.joints[:3])}, …); use the same '
                        'names in the YAML file of --layout')
    log.info('%s: from the layout %s to %s: %d of %d joints matched by name; newly initialised: %s', path, source.name,
             target.name, len(matches) - len(new), len(matches), ', '.join(new) or 'none')
    return matches
