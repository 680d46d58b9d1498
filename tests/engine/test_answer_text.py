"""The text of an answer ends before its stop text, however tokens cut it."""

from hypothesis import given
from hypothesis import strategies as st

from internvl2.engine.answer_text import AnswerText


class Pieces:
    """A streaming decoder that gives prepared texts, and keeps the last one back."""

    def __init__(self, texts: list[str], tail: str = "") -> None:
        self.texts = texts
        self.tail = tail

    def add(self, token_id: int) -> str:
        return self.texts[token_id]

    def finish(self) -> str:
        return self.tail


def deltas(texts, stops, *, tail="", include_stop=False) -> list[str]:
    text = AnswerText(Pieces(texts, tail), tuple(stops), include_stop)
    parts = []
    for index in range(len(texts)):
        parts.append(text.add(index, True))
        if text.is_stopped:
            break
    return [*parts, text.finish(True)]


def test_text_without_stops_passes_at_once():
    assert deltas(["a", "b"], [], tail="c") == ["a", "b", "c"]


def test_a_stop_text_may_span_tokens_and_is_not_returned():
    assert deltas(["one E", "N", "D two"], ["END"]) == ["one ", "", "", ""]


def test_what_turns_out_not_to_be_a_stop_text_is_released():
    assert deltas(["E", "N", "T"], ["END"]) == ["", "", "ENT", ""]


def test_a_stop_text_that_never_completes_is_released_at_the_end():
    assert deltas(["E", "N"], ["END"]) == ["", "", "EN"]


def test_the_stop_text_is_kept_when_asked_for():
    assert "".join(deltas(["a.", "b"], ["."], include_stop=True)) == "a."


def test_the_end_of_the_stream_is_searched_too():
    assert "".join(deltas(["ab"], ["bX"], tail="X")) == "a"


def test_stop_texts_do_not_count_before_min_tokens():
    text = AnswerText(Pieces(["a.", "b.", "c"]), (".",), False)
    assert [text.add(0, False), text.add(1, True), text.is_stopped] == ["a.", "b", True]


@given(
    texts=st.lists(st.text("ab", max_size=3), max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_cutting_pieces_equals_cutting_the_whole_at_the_first_stop_to_complete(texts, stops):
    whole = "".join(texts)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    found = "".join(deltas(texts, stops))
    if not ends:
        assert found == whole
    else:
        assert whole.startswith(found)
        assert any(whole[len(found) :].startswith(stop) for stop in stops)
        assert not any(stop in found for stop in stops)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_overlapping_stop_texts_end_the_answer_alike_in_tokens_of_any_size(text, stops):
    whole = "".join(deltas([text], stops))
    assert "".join(deltas(list(text), stops)) == whole
    assert "".join(deltas([text[:5], text[5:]], stops)) == whole
