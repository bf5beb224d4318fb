from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.models.tokenizer import byte_level_tokenizer


def test_known_words_are_one_token_and_all_else_is_bytes(tmp_path: Path) -> None:
    tokens = byte_level_tokenizer(tmp_path, ("circle", "cross", "square"), 16)
    assert len(tokens.tokenize("a circle")) == 2
    assert len(tokens.tokenize("dog")) == 3
    assert len(tokens("x" * 99, truncation=True).input_ids) == 16


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_any_text_has_tokens_of_the_vocabulary(tmp_path_factory, text: str) -> None:
    tokens = byte_level_tokenizer(tmp_path_factory.getbasetemp() / "tokens", (), 77)
    ids = tokens(text, truncation=True).input_ids
    assert all(0 <= number < len(tokens) for number in ids)
    assert ids[0] == tokens.bos_token_id
