"""The growth study: which runs it is made of, running them, and what they say."""

import growlm  # noqa: F401 - before torch: it sets how threads wait
