"""Grade a student's pair and name the mistake.

`grade("batchnorm", batchnorm_forward, batchnorm_backward)` runs a pair in the course's form, NumPy or JAX, on a few
small inputs. Where a result is wrong it is compared with the results that the usual mistakes give; the one that fits in
every case is named, with a sentence and the line of the derivation to read again. What fits none is reported as
unknown, with its pattern. Conventions in which right solutions differ (the slope of relu at 0, ties of a maximum, the
form of the cache) are not judged.

>>> def affine_forward(x, w, b):
...     return x.reshape(len(x), -1) @ w + b, (x, w)
>>> def affine_backward(dout, cache):
...     x, w = cache
...     return (dout @ w.T).reshape(x.shape), x.reshape(len(x), -1).T @ dout, dout.mean(0)
>>> report = grade("affine", affine_forward, affine_backward)
>>> report.ok, report.mistakes[0].gradient, report.mistakes[0].name
(False, 'db', 'averaged-over-the-batch')
"""

from collections.abc import Callable
from typing import Any

from jnet.grading.dense import AFFINE, DROPOUT, RELU
from jnet.grading.judging import judge
from jnet.grading.loss import SOFTMAX_LOSS, SVM_LOSS
from jnet.grading.normalization import BATCHNORM, LAYERNORM, SPATIAL_BATCHNORM, SPATIAL_GROUPNORM
from jnet.grading.record import Exercise, Grade, Mistake
from jnet.grading.sheet import main
from jnet.grading.windows import CONV, MAX_POOL

__all__ = ["EXERCISES", "Grade", "Mistake", "grade", "main"]

EXERCISES: dict[str, Exercise] = {
    exercise.op: exercise
    for exercise in (
        AFFINE, RELU, BATCHNORM, LAYERNORM, DROPOUT, CONV, MAX_POOL, SPATIAL_BATCHNORM, SPATIAL_GROUPNORM, SOFTMAX_LOSS,
        SVM_LOSS,
    )
}  # fmt: skip
"""Every op that can be graded, by name."""


def grade(op: str, forward: Callable[..., Any], backward: Callable[..., Any] | None = None, *, seed: int = 0) -> Grade:
    """Grade a pair `forward(*args) -> (out, cache)`, `backward(dout, cache) -> gradients` of the course.

    `op` is one of `affine, relu, batchnorm, layernorm, dropout, conv, max_pool, spatial_batchnorm, spatial_groupnorm,
    softmax_loss, svm_loss`; arguments, settings and layouts (NCHW) are the course's. A loss is one function
    `(x, y) -> (loss, dx)`, given as `forward`. `seed` draws the inputs.

    Whatever the functions do, raise, return or overwrite is told in the `Grade`; a ValueError means that `grade` itself
    was called wrongly.
    """
    if op not in EXERCISES:
        raise ValueError(f"op must be one of {', '.join(EXERCISES)}, got {op!r}")
    exercise = EXERCISES[op]
    if exercise.is_loss == (backward is not None):
        wanted = "None: a loss is one function (x, y) -> (loss, dx)" if exercise.is_loss else "a function"
        raise ValueError(f"backward must be {wanted}, got {backward!r}")
    return judge(exercise, forward, backward, seed)
