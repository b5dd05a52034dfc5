"""Joint layouts: which joint hangs on which."""

from util.errors import UserError

# (joint, parent), 1-based as their makers count them; the root is its own parent.
KINECT_V2 = ((1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
             (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
             (24, 25), (25, 12))
KINECT_V1 = ((1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11),
             (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19))


def parents_of(num_joints: int) -> list[int]:
    """0-based parent of every joint, for a layout known by its number of joints; UserError for any other."""
    for pairs in (KINECT_V2, KINECT_V1):
        if len(pairs) == num_joints:
            return [parent - 1 for _, parent in pairs]
    raise UserError(f'no joint layout with {num_joints} joints is known (25: Kinect v2, 20: Kinect v1); '
                    'bones need one, --stream joint and velocity do not')
