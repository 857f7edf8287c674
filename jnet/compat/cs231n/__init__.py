"""The modules of the CS231n course, under the course's names, on jnet's formulas.

A notebook of the course runs when `cs231n` in its imports becomes `jnet.compat.cs231n`: NumPy in and NumPy out, images
`(N, C, H, W)`, filters `(F, C, HH, WW)`, the course's parameter dictionaries, errors and random draws.
"""
