"""How good the images are, and what they lost against the baseline's.

store.py      where images are kept, keyed by everything that made them
generate.py   the images of a variant, drawn or taken from the store
reference.py  the real pictures, read as untrusted files
features.py   the networks that judge: the standard ones, and the shipped model's own
objects.py    are the objects asked for in the picture?
metrics.py    FID, KID, IS, SSIM, PSNR and their bootstraps: arrays in, figures out
measure.py    all metrics of a variant, as records
session.py    all of it for one model: one call a variant
"""
