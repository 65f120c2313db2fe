"""Whether this kernel can confine programs at all: hostile code is run in tests only where it can."""

from __future__ import annotations

import pytest

from rlhf_core.sandbox.check import check_confinement
from rlhf_core.sandbox.limits import Limits, Within

_MISSING = check_confinement(Within(Limits(wall_s=20.0, cpu_s=10, memory_mib=256), is_strict=False))
needs_confinement = pytest.mark.skipif(bool(_MISSING), reason=f"this kernel does not keep programs from {' and '.join(_MISSING)}")
