"""Forward kinematics of a Kinect v2 body of 25 joints.

T frames; positions in metres: x to the camera's left, y up, z away from the camera, which the body at rest faces.
Rotation vectors are in radians.
"""

import numpy as np

JOINTS = 25
TREE = {  # joint: parent (numbered from 1, parents first, root 21) and offset at rest, facing the camera, arms down
    2: (21, (0, -.25, 0)), 1: (2, (0, -.28, 0)), 3: (21, (0, .08, 0)), 4: (3, (0, .14, -.02)),
    5: (21, (-.17, -.03, 0)), 6: (5, (-.03, -.28, 0)), 7: (6, (0, -.25, -.02)), 8: (7, (0, -.07, 0)),
    23: (8, (.03, -.02, -.03)), 22: (23, (-.03, -.07, .02)),
    9: (21, (.17, -.03, 0)), 10: (9, (.03, -.28, 0)), 11: (10, (0, -.25, -.02)), 12: (11, (0, -.07, 0)),
    25: (12, (-.03, -.02, -.03)), 24: (25, (.03, -.07, .02)),
    13: (1, (-.08, -.04, 0)), 14: (13, (0, -.42, 0)), 15: (14, (0, -.40, .02)), 16: (15, (0, -.06, -.12)),
    17: (1, (.08, -.04, 0)), 18: (17, (0, -.42, 0)), 19: (18, (0, -.40, .02)), 20: (19, (0, -.06, -.12)),
}
CHEST, ANKLES = 21, (15, 19)
ARM_JOINTS, LEG_JOINTS = [*range(5, 13), *range(22, 26)], [*range(13, 21)]
MIRRORED = [1, 2, 3, 4, 9, 10, 11, 12, 5, 6, 7, 8, 17, 18, 19, 20, 13, 14, 15, 16, 21, 24, 25, 22, 23]

X, Y, Z = np.eye(3)
CHANNELS = {  # joints and axes that an angle rotates; feet stay flat on the floor and the pelvis level, or nearly so
    'sideways': ((13, -Z), (15, Z), (17, -Z), (19, Z)),  # the hips to the camera's left over the feet
    'forwards': ((13, -X), (15, X), (17, -X), (19, X)),  # the hips forwards over the feet
    'knees': ((13, X), (14, -2 * X), (15, X), (17, X), (18, -2 * X), (19, X)),  # bend, which lowers the hips
    'stance': ((13, -Z), (15, Z), (17, Z), (19, -Z)),  # the feet apart
    'stride': ((13, -X), (15, X), (17, X), (19, -X)),  # the right foot in front of the left one
    'bow': ((21, -X), (13, X), (17, X)),
    'lean': ((21, Z), (1, -Z)),
    'twist': ((21, Y), (1, -Y)),
    'raise': ((9, X), (5, X), (10, .4 * X), (6, .4 * X)),  # both arms forwards
    'turns': ((9, X), (5, -X), (10, .4 * X), (6, -.4 * X)),  # the right arm forwards, the left one back
    'spread': ((9, Z), (5, -Z), (10, .4 * X), (6, .4 * X)),  # both arms outwards
    'wave': ((9, Z), (5, Z), (10, .4 * X), (6, -.4 * X)),  # both arms to the same side
    'left lift': ((5, X),), 'right lift': ((9, X),), 'left spread': ((5, -Z),), 'right spread': ((9, Z),),
    'left elbow': ((6, X),), 'right elbow': ((10, X),),
}


def rotate(vectors: np.ndarray, channel: str, angle: np.ndarray | float) -> None:
    """Add an angle, or one per frame (T,), to the rotation vectors (T, 25, 3) or (25, 3) of a channel, in place."""
    for joint, axis in CHANNELS[channel]:
        vectors[..., joint - 1, :] += np.multiply.outer(angle, axis)


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Convert rotation vectors (..., 3) to matrices (..., 3, 3) by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    cross = np.cross(np.eye(3), vectors[..., None, :])
    return np.eye(3) + np.sinc(angle / np.pi) * cross + np.sinc(angle / (2 * np.pi)) ** 2 / 2 * cross @ cross


def pose(vectors: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Convert joint rotations (T, 25, 3) to positions (T, 25, 3).

    The midpoint of the ankles is above the origin, and the lowest joint is on the floor. `scale` (25, 1) stretches the
    offset of each joint.
    """
    local, joints, world = rotation_matrices(vectors), np.zeros(vectors.shape), np.empty((*vectors.shape, 3))
    world[:, CHEST - 1] = local[:, CHEST - 1]
    for joint, (parent, offset) in TREE.items():
        joints[:, joint - 1] = joints[:, parent - 1] + world[:, parent - 1] @ (scale[joint - 1] * offset)
        world[:, joint - 1] = world[:, parent - 1] @ local[:, joint - 1]
    middle = joints[:, np.array(ANKLES) - 1].mean(axis=1)
    floor = joints[..., 1].min(axis=1)
    return joints - np.stack([middle[:, 0], floor, middle[:, 2]], axis=-1)[:, None]


def mirror(joints: np.ndarray) -> np.ndarray:
    """Exchange left and right in positions (T, 25, 3)."""
    return joints[:, np.array(MIRRORED) - 1] * np.array((-1, 1, 1))
