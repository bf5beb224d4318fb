"""The standard prompts are the same list on every machine, or an error."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.data import captions, prompts
from optsd.errors import BadInput


def test_cocos_captions_give_the_manifests_prompts(coco_captions: Path) -> None:
    made = prompts.coco(coco_captions)
    assert len(made) == 1000
    assert prompts.digest(made) == "77312c16df0a0388304f84f4d1e5ab859174a37e6ee1a46d1c38234011ea64f5"
    assert made[0].text == "a realistic photograph of elephant going after a small animal of prey, natural lighting"


def test_choosing_anew_gives_the_shipped_manifest(coco_captions: Path) -> None:
    manifest, skipped = prompts.choose(captions.read(coco_captions))
    assert manifest == prompts.shipped_manifest()
    assert skipped == {"generic": 1270, "too short": 212, "too long": 3}


def test_the_shipped_manifest_has_one_caption_an_image_and_no_text() -> None:
    manifest = prompts.shipped_manifest()
    assert len({choice.image_id for choice in manifest.choices}) == 1000
    assert {choice.prefix for choice in manifest.choices} == set(range(len(prompts.PREFIXES)))
    assert {choice.suffix for choice in manifest.choices} == set(range(len(prompts.SUFFIXES)))
    rows = json.loads(manifest.to_json())["prompts"]
    assert all(isinstance(value, int) for row in rows for value in row)


def test_a_changed_caption_file_is_not_taken_for_cocos(coco_captions: Path, tmp_path: Path) -> None:
    data = json.loads(coco_captions.read_text(encoding="utf-8"))
    data["annotations"][5]["caption"] += "!"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BadInput, match=r"is not captions_val2017.json: it has 5,000 images"):
        prompts.coco(changed)


def test_another_caption_file_is_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "captions_train2017.json"
    file.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(BadInput, match=r"captions_train2017.json is not captions_val2017.json: it has 0 images"):
        prompts.coco(file)


def test_prompts_that_differ_from_the_manifest_are_an_error(coco_captions: Path, monkeypatch) -> None:
    monkeypatch.setattr(prompts, "clean", str.upper)
    with pytest.raises(BadInput, match="differ from the manifest's"):
        prompts.coco(coco_captions)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  A  dog\n on a   sofa . ", "a dog on a sofa"),
        ("A MAN ON A HORSE", "a man on a horse"),
        ("Two men, walking!!", "two men, walking"),
        ("TV on a stand", "TV on a stand"),
        ("", ""),
    ],
)
def test_cleaning(caption: str, cleaned: str) -> None:
    assert prompts.clean(caption) == cleaned


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=80))
def test_cleaning_twice_changes_nothing_more(caption: str) -> None:
    once = prompts.clean(caption)
    # A text whose small letters have no capitals of their own may need a second look; COCO's have none such.
    if once.isascii():
        assert prompts.clean(once) == once


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("A dog that runs along the beach with a stick", ""),
        ("A dog runs.", "too short"),
        ("A picture of a dog that runs along the beach", "generic"),
        ("A close up of a dog that runs along the beach", "generic"),
        ("There are dogs that run along the beach today", "generic"),
        ("A black and white photo of a dog on the beach", "generic"),
        ("A dog that takes a picture of a man on the beach", ""),
        ("x" * 10_000_000, "too long"),
        ("A dog that runs along the beach with a \x00 stick", "not printable"),
        ("A dog that runs along the beach with a \ud800 stick", "not printable"),
    ],
)
def test_why_a_caption_makes_no_prompt(caption: str, reason: str) -> None:
    assert prompts.why_skipped(caption) == reason


def test_choosing_skips_counts_and_never_repeats() -> None:
    same = "A dog that runs along the beach with a stick"
    rows = captions.check(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(6)],
            "annotations": [
                {"id": 0, "image_id": 0, "caption": same},
                {"id": 1, "image_id": 1, "caption": same.upper()},
                {"id": 2, "image_id": 2, "caption": "x" * 1000},
                {"id": 3, "image_id": 3, "caption": "A dog"},
                {"id": 4, "image_id": 4, "caption": "A cat that sleeps on a red sofa near the wall"},
            ],
        },
        "test",
    )
    manifest, skipped = prompts.choose(rows, count=3)
    assert skipped == {"too long": 1, "too short": 1}
    assert len(manifest.choices) == 2
    assert prompts.choose(rows, count=1)[0].choices == manifest.choices[:1]


def test_the_shapes_prompts_are_held_out_unique_and_pinned() -> None:
    from optsd.quality.objects import parse

    made, pictures = prompts.shapes()
    assert prompts.digest(list(made)) == "7799b71a363235fbaeac7ea2feea33e8b95deba4b76ae4320009853a2964f8a0"
    assert pictures.shape == (1000, 64, 64, 3)
    assert len({prompt.text for prompt in made}) == 1000
    assert all(parse(prompt.text).held_out for prompt in made)
