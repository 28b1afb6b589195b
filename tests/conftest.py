"""What all tests share: one thread, how hypothesis reports, the tiny models of tests/model."""

import hypothesis
import torch

# Tiny products gain nothing from a second thread, and where cores are shared its waiting costs minutes.
torch.set_num_threads(1)

# No deadline: the first example of a test pays for torch's own start.
hypothesis.settings.register_profile("growlm", print_blob=True, deadline=None)
hypothesis.settings.load_profile("growlm")
