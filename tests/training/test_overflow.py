"""A step is stopped for a norm that overflows, and that is what the message names."""

import pytest
from lightning.pytorch import Callback

from growlm.training import run_plan
from growlm.training.nan_check import NonFiniteError
from tests.training.tiny_run import tiny_config

DENSE = ("~phases.moe", "~phases.wide", "~phases.deep")


class LargeGradients(Callback):
    """Makes every entry so large that its square is infinite, while it is finite itself."""

    def on_after_backward(self, trainer, stage):
        for parameter in stage.model.parameters():
            parameter.grad.fill_(1e30)


def test_a_norm_that_overflows_is_named(tmp_path):
    named = (
        r"phase dense, step 1: the norm of the gradients is inf, too large for its precision: every entry "
        r"of them is finite, and so is the loss, 5\.\d+\. What to do: docs/troubleshooting\.md#nan-and-infinity$"
    )
    with pytest.raises(NonFiniteError, match=named):
        run_plan(tiny_config(tmp_path / "run", *DENSE), [LargeGradients()])
