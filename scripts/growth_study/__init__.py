"""Define, train and evaluate the runs of the growth study."""

import growlm  # noqa: F401 - before torch: it sets how threads wait
