"""How many cases each property is tried on: few and always the same in CI, thousands of new ones by hand.

`DEVIL_PIPE_PROPERTIES=long pytest tests/properties` takes an hour or so; what it finds it prints as a test to keep.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = {
    "deadline": None,  # of a busy machine no timing says anything
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
settings.register_profile("devil-pipe-ci", max_examples=30, derandomize=True, database=None, **_COMMON)
settings.register_profile("devil-pipe-long", max_examples=5000, print_blob=True, **_COMMON)

cases = settings.get_profile(f"devil-pipe-{os.environ.get('DEVIL_PIPE_PROPERTIES', 'ci')}")
"""The decorator of every property; a property that is slow to try takes some of `few`."""

few = settings(cases, max_examples=max(10, cases.max_examples // 3))
