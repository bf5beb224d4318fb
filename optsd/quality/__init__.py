"""How good the images are, and what they lost against the baseline's.

store.py      where images and readings are kept, keyed by everything that made them
generate.py   the images of a variant, drawn or taken from the store
pictures.py   a set of pictures, loaded part by part
reference.py  the real pictures, read as untrusted files
features.py   the networks that judge: the standard ones, and the shipped model's own
readings.py   what they read in pictures, once: in the store beside the pictures
objects.py    are the objects asked for in the picture?
pixels.py     SSIM, PSNR
metrics.py    FID, KID, IS and their bootstraps: rows of numbers in, figures out
measure.py    all metrics of a variant, as records
audits.py     what each metric says of pictures that are wrong in a known way; does a run look like those?
scale.py      time and memory of the metrics, to 30,000 pictures
session.py    all of it for one model: one call a variant
"""
