"""`shapes`: the text-to-image model that ships with the project, and how it is made.

scenes.py    draws scenes and writes their captions (the training data, and the reference images)
networks.py  the architectures: SD v1.5's own classes at a small size, a classifier, a small CLIP
train.py     the recipe that gives the committed weights

How good the model and its judge are: `optsd shapes`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The committed weights: `pipeline/` (a diffusers folder), `classifier.safetensors`, `clip.safetensors`."""
