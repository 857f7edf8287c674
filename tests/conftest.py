"""A strict room: float64 at hand, no silent broadcasting between ranks. And a compiler in a hurry.

Nearly all of the suite's time is XLA compiling thousands of tiny programs. Without optimization by LLVM, and with the
older of its two emitters of fused loops (gone from jaxlib 0.11), it takes a third of the processor time (measured on
some of the contracts).
`tests/test_contracts.py` compiles every op in every dtype as users do all the same, and `make test-slow` trains with no
flag at all; `XLA_FLAGS= make test` runs everything so.
"""

import os

from jaxlib.version import __version_info__ as jaxlib_version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0" + (" --xla_cpu_use_fusion_emitters=false" if jaxlib_version < (0, 11) else ""),
)

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
