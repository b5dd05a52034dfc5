"""Joint layouts: what the joints are called, which hangs on which, and which are the same in two layouts.

A layout is told by its name ('kinect-v2'), by a YAML file of the user's, or by the number of joints alone. The file
lists the joints in the order of the data, each with the joint it hangs on, by name or by place (from 0); the root has
none:

    name: stick figure          # otherwise it is called like the file
    joints:
      pelvis:
      chest: pelvis
      head: chest

V joints.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from util.errors import UserError, quote
from util.files import read_yaml

log = logging.getLogger(__name__)

MOST_JOINTS = 1000      # whole-body annotations have 133


class Layout(NamedTuple):
    name: str
    joints: tuple[str, ...]         # V names
    parents: tuple[int, ...]        # V 0-based indices; the root is its own parent

    def as_map(self) -> dict[str, str]:
        """Joint to parent, by name; the root is its own."""
        return {joint: self.joints[parent] for joint, parent in zip(self.joints, self.parents, strict=True)}


def _sides(*parts: str) -> tuple[str, ...]:
    return tuple(f'{side} {part}' for side in ('left', 'right') for part in parts)


_LIMBS = (*_sides('shoulder', 'elbow', 'wrist', 'hand'), *_sides('hip', 'knee', 'ankle', 'foot'))
_COCO = ('nose', *(f'{side} {part}' for part in ('eye', 'ear', 'shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle')
                   for side in ('left', 'right')))

# The makers count joints from 1, and so do the parents written here. COCO's annotators draw a graph with circles, not
# a tree. Of its lines these are kept: eyes on the nose, ears on the eyes, hips on the shoulders of their side, limbs.
# The shoulders hang on the nose: their line to the ears would bring into the bone what is most often hidden.
LAYOUTS = tuple(Layout(name, joints, tuple(parent - 1 for parent in parents)) for name, joints, parents in (
    ('kinect-v2', ('spine base', 'spine', 'neck', 'head', *_LIMBS, 'spine top', *_sides('hand tip', 'thumb')),
     (2, 21, 21, 3, 21, 5, 6, 7, 21, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19, 21, 23, 8, 25, 12)),
    ('kinect-v1', ('hip centre', 'spine', 'shoulder centre', 'head', *_LIMBS),
     (2, 3, 3, 3, 3, 5, 6, 7, 3, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19)),
    ('coco-17', _COCO, (1, 1, 1, 2, 3, 1, 1, 6, 7, 8, 9, 6, 7, 12, 13, 14, 15)),
))

# Names of one place of the body, told by makers differently. Left of the colon: as `plain_name` writes it.
ALIASES = {
    'hip centre': 'spine base',         # Kinect v1's HipCenter is what v2 calls SpineBase: the middle of the pelvis,
    'mid hip': 'spine base',            # half-way between the hips, and so is OpenPose's MidHip,
    'pelvis': 'spine base',             # the root of SMPL and Azure Kinect,
    'hips': 'spine base',               # and the root of most BVH files
    'spine mid': 'spine',               # v2's own spelling of the joint that v1 calls Spine
    'shoulder centre': 'spine top',     # v1's ShoulderCenter is v2's SpineShoulder: between the shoulders, below the
    'spine shoulder': 'spine top',      # neck
    'nose': 'head',                     # COCO has no head; the nose moves with it as one piece, 10 cm from its middle
}
_WORDS = {'l': 'left', 'r': 'right', 'center': 'centre'}


def plain_name(joint: str) -> str:
    """A joint's name however it is spelt: 'LeftElbow', 'elbow_left', 'LElbow' and 'l_elbow' are all 'left elbow'."""
    words = re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+', joint) or [joint]
    words = [_WORDS.get(word.lower(), word.lower()) for word in words]
    return ' '.join(sorted(words, key=lambda word: word not in ('left', 'right')))


def shared_names(layout: Layout) -> list[str]:
    """V names under which the joints are found in other layouts. An alias gives way to a joint that has the name."""
    plain = [plain_name(joint) for joint in layout.joints]
    return [name if ALIASES.get(name, name) in plain else ALIASES[name] for name in plain]


# ---- which layout ----------------------------------------------------------------------------------------------------


def default_layout(num_joints: int) -> Layout:
    """The layout with this number of joints; UserError when none is known."""
    if layout := known_layout(num_joints):
        return layout
    known = ', '.join(f'{len(layout.parents)}: {layout.name}' for layout in LAYOUTS)
    raise UserError(f'no joint layout with {num_joints} joints is known ({known}); correct --num_joints, or give '
                    '--layout a YAML file of your own')


def known_layout(num_joints: int) -> Layout | None:
    """The layout with this number of joints, None when none is known."""
    return next((layout for layout in LAYOUTS if len(layout.parents) == num_joints), None)


def read_layout(given: str | Path) -> Layout:
    """The layout of this name, or of this YAML file; UserError when there is neither, or the file makes no tree."""
    by_name = {layout.name: layout for layout in LAYOUTS}
    if str(given) in by_name:
        return by_name[str(given)]
    path = Path(given)
    if path.suffix.lower() not in ('.yaml', '.yml'):
        raise UserError(f'--layout {given}: give {", ".join(by_name)} or a YAML file of your own')
    content = read_yaml(path, 'a layout', 'correct --layout')
    if odd := [key for key in content if key not in ('name', 'joints')]:
        raise UserError(f'{path}: unknown key {quote(odd[0])}; a layout has a name and joints')
    return make_layout(content.get('name', path.stem), content.get('joints'), str(path))


def find_layout(given: str | None, num_joints: int | None) -> Layout | None:
    """What --layout and --num_joints say together; None where there is only a number, of no layout that is known.

    UserError as `read_layout`, and where the two contradict each other.
    """
    if given is None:
        return known_layout(num_joints)
    layout = read_layout(given)
    if num_joints not in (None, len(layout.joints)):
        raise UserError(f'--layout {given} has {len(layout.joints)} joints, --num_joints says {num_joints}; leave '
                        'one of them out')
    return layout


def make_layout(name, joints, where: str) -> Layout:
    """A layout from a map of joints (in order) to their parents: names, 0-based places, or nothing for the root.

    Raises UserError, naming `where` it comes from, unless names are texts, unique, and hang together as one tree.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f'{where}: name {quote(name)} is no text; put it in quotes')
    if not isinstance(joints, Mapping) or not 1 <= len(joints) <= MOST_JOINTS:
        raise UserError(f'{where}: joints is no map of 1 to {MOST_JOINTS} joints, "joint: parent" each')
    if odd := [joint for joint in joints if not isinstance(joint, str) or not joint.strip() or not joint.isprintable()]:
        raise UserError(f'{where}: the joint {quote(odd[0])} is no text; put its name in quotes')
    names = tuple(joints)
    place = {joint: index for index, joint in enumerate(names)}
    parents = []
    for joint, parent in joints.items():
        if parent is None:
            parents.append(place[joint])
        elif isinstance(parent, str) and parent in place:
            parents.append(place[parent])
        elif isinstance(parent, int) and not isinstance(parent, bool) and 0 <= parent < len(names):
            parents.append(parent)
        else:
            raise UserError(f'{where}: {joint} hangs on {quote(parent)}, which is none of its joints; give the name of '
                            f'one, or its place from 0 to {len(names) - 1}')
    _check_tree(names, parents, where)
    return Layout(name, names, tuple(parents))


def _check_tree(names: Sequence[str], parents: Sequence[int], where: str) -> None:
    roots = [joint for joint, parent in enumerate(parents) if joint == parent]
    if len(roots) != 1:
        told = ', '.join(names[root] for root in roots[:3]) + ', …' * (len(roots) > 3)
        raise UserError(f'{where}: {f"{len(roots)} roots ({told})" if roots else "no root"}; one joint, and one only, '
                        'hangs on nothing')
    reached = {roots[0]}
    for joint in range(len(names)):
        way = [joint]
        while way[-1] not in reached:
            parent = parents[way[-1]]
            if parent in way:
                raise UserError(f'{where}: {" on ".join(names[one] for one in [*way[way.index(parent):], parent][:6])}:'
                                ' joints that hang in a circle; let one of them hang on another joint')
            way.append(parent)
        reached.update(way)


def parents_of(num_joints: int) -> list[int]:
    """0-based parent of every joint of that layout."""
    return list(default_layout(num_joints).parents)


# ---- from one layout to another --------------------------------------------------------------------------------------


def checkpoint_layout(checkpoint, path: str | Path) -> Layout | None:
    """The layout that a checkpoint was trained on: the one it records, or else the default of its number of joints.

    Returns None if neither is known. Raises UserError if the recorded layout does not fit the joint embeddings.
    """
    if checkpoint.layout is None:
        return known_layout(checkpoint.num_joints)
    layout = make_layout(checkpoint.layout.get('name'), checkpoint.layout.get('joints'), f'{path}: its layout')
    if len(layout.joints) != checkpoint.num_joints:
        raise UserError(f'{path}: its layout has {len(layout.joints)} joints, its embeddings {checkpoint.num_joints}; '
                        'use another checkpoint')
    return layout


def check_same_joints(given: Layout | None, own: Layout | None, path: str | Path) -> None:
    """UserError when a checkpoint of layout `given` is to go on with other joints, where both are known."""
    if given and own and len(given.joints) == len(own.joints) and given.joints != own.joints:
        odd = next(pair for pair in zip(given.joints, own.joints, strict=True) if pair[0] != pair[1])
        raise UserError(f'{path}: trained on the joints of {given.name}, these are {own.name} ({odd[0]!r} there is '
                        f'{odd[1]!r} here); give the same --layout, or start from its encoder with --finetune')


def match_joints(given: Layout, own: Layout, path: str | Path) -> list[int | None]:
    """For every joint of `own` the joint of `given` of the same name, None where there is none; logs a line of it.

    Raises UserError when no joint has a namesake.
    """
    there = {}
    for joint, name in enumerate(shared_names(given)):
        there.setdefault(name, joint)
    sources = [there.get(name) for name in shared_names(own)]
    new = [joint for joint, source in zip(own.joints, sources, strict=True) if source is None]
    if len(new) == len(sources):
        raise UserError(f'{path}: none of its joints ({", ".join(given.joints[:3])}, … of {given.name}) is called like '
                        f'one of {own.name} ({", ".join(own.joints[:3])}, …); name the same joints alike in the YAML '
                        'file of --layout')
    log.info('%s: from the layout %s to %s: %d of %d joints taken by name, as initialised: %s', path, given.name,
             own.name, len(sources) - len(new), len(sources), ', '.join(new) or 'none')
    return sources
