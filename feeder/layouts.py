"""Joint layouts: what the joints are called and which hangs on which."""

from typing import NamedTuple

from util.errors import UserError


class Layout(NamedTuple):
    name: str
    joints: tuple[str, ...]         # V names
    parents: tuple[int, ...]        # V 0-based indices; the root is its own parent


def _sides(*parts: str) -> tuple[str, ...]:
    return tuple(f'{side} {part}' for side in ('left', 'right') for part in parts)


_LIMBS = (*_sides('shoulder', 'elbow', 'wrist', 'hand'), *_sides('hip', 'knee', 'ankle', 'foot'))

# The makers count joints from 1, and so do the parents written here.
LAYOUTS = tuple(Layout(name, joints, tuple(parent - 1 for parent in parents)) for name, joints, parents in (
    ('Kinect v2', ('spine base', 'spine', 'neck', 'head', *_LIMBS, 'spine top', *_sides('hand tip', 'thumb')),
     (2, 21, 21, 3, 21, 5, 6, 7, 21, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19, 21, 23, 8, 25, 12)),
    ('Kinect v1', ('hip centre', 'spine', 'shoulder centre', 'head', *_LIMBS),
     (2, 3, 3, 3, 3, 5, 6, 7, 3, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19)),
))


def layout_of(num_joints: int) -> Layout:
    """The layout with this number of joints; UserError when none is known."""
    for layout in LAYOUTS:
        if len(layout.parents) == num_joints:
            return layout
    known = ', '.join(f'{len(layout.parents)}: {layout.name}' for layout in LAYOUTS)
    raise UserError(f'no joint layout with {num_joints} joints is known ({known}); correct --num_joints')


def parents_of(num_joints: int) -> list[int]:
    """0-based parent of every joint of that layout."""
    return list(layout_of(num_joints).parents)
