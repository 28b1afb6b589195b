"""The speed that tests take this machine to have, since measuring it takes longer than a short run."""

from growlm.planner import calibration
from growlm.planner.calibration import Calibration

SPEED = Calibration(
    half_flops=2e11, single_flops=1e11, other_bytes=1e10, fresh_bytes=3e9, again_bytes=1e10,
    adamw_entries=3e8, call=5e-6,
)  # fmt: skip
measure_really = calibration.measure_calibration


def use_stand_in_speed():
    """Replace the measurement in this process, and in those that are forked from it."""
    calibration.measure_calibration = lambda machine: SPEED
