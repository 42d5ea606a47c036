"""How sure a model was: only the tokens that wrote the answer count."""

from __future__ import annotations

import math

import pytest

from batch_labelstudio.scoring import Token, score


def tokens(*written: tuple[str, float]) -> list[Token]:
    return [Token(text.encode(), math.log(probability)) for text, probability in written]


def test_braces_names_and_quotes_do_not_count():
    made = tokens(
        ('{"', 0.01), ("mood", 0.02), ('": "', 0.03), ("Pos", 0.9), ("itive", 0.4), ('"}', 0.01)
    )
    assert score('{"mood": "Positive"}', made, ["mood"]) == pytest.approx(math.sqrt(0.9 * 0.4))


def test_numbers_and_lists_count_as_they_stand():
    made = tokens(('{"stars":', 0.1), ("4", 0.5), ("}", 0.1))
    assert score('{"stars":4}', made, ["stars"]) == pytest.approx(0.5)


def test_a_token_of_several_questions_counts_once_and_characters_may_be_split():
    text = '{"a":"ü","b":"x"}'
    made = [
        Token(b'{"a":"', 0.0),
        Token("ü".encode()[:1], math.log(0.5)),
        Token("ü".encode()[1:], math.log(0.5)),
        Token(b'","b":"', 0.0),
        Token(b"x", math.log(0.5)),
        Token(b'"}', 0.0),
        Token(b"<end>", -9.0),
    ]
    assert score(text, made, ["a", "b"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "made", "names"),
    [
        ('{"a":"x"}', [], ["a"]),
        ('{"a":"x"}', tokens(("something else", 0.5)), ["a"]),
        ('{"a":"x"}', tokens(('{"a":"x"}', 0.5)), ["b"]),
        ('{"a":"x"}', [Token(b'{"a":"x"}', -math.inf)], ["a"]),
    ],
)
def test_where_nothing_is_known_there_is_no_score(text: str, made: list[Token], names: list[str]):
    assert score(text, made, names) is None
