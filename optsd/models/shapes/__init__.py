"""`shapes` and `shapes-dit`: the text-to-image models that ship with the project, and how they are made.

scenes.py     draws scenes and writes their captions (the training data, and the reference images)
networks.py   the architectures: SD v1.5's and SD3's own classes at a small size, a classifier, a small CLIP
train.py      the recipe that gives the committed weights; train_dit.py its last stage, the transformer of `shapes-dit`
data.py       what the recipe trains on
fitting.py    how it fits a network, resumable

How good the models and their judge are: `optsd shapes`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The committed weights: two diffusers folders, `classifier.safetensors`, `clip.safetensors`."""
PIPELINES = {"shapes": WEIGHTS / "pipeline", "shapes-dit": WEIGHTS / "dit"}
"""The models that draw scenes, by name. They share prompts, reference pictures and judges."""
