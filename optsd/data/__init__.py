"""What a model is asked to draw, and what it is compared with.

captions.py   reads a caption file of COCO's format, strictly
prompts.py    the standard prompts: COCO's for real models, drawn scenes for the shipped one
sets.py       prompt sets of the field, each with its protocol
downloads.py  the files that cannot be shipped: where they come from, their hashes, where they are looked for
coco.py       `optsd coco fetch|verify|prompts`
"""
