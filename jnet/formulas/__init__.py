"""The mathematics of jnet: for each op a `forward` and the `backward` derived from it by hand, one family a file.

A forward returns `(out, cache)`; its backward takes the cotangent of `out` and that cache and returns the cotangents of
the arguments. Static arguments (stride, eps) are keywords of both. `jnet.custom_vjp` binds each pair into an op.
"""
