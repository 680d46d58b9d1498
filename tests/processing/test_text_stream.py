"""Characters out of bytes as they arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl2.processing.text_stream import TextStream, Utf8, clean_up


def feed(chunks: list[bytes], *, every_byte: bool) -> str:
    utf8 = Utf8(mark_every_byte=every_byte)
    return "".join([utf8.add(chunk) for chunk in chunks]) + utf8.finish()


@given(data=st.binary(max_size=40), cut=st.integers(0, 40))
def test_chunks_decode_like_the_whole(data, cut):
    assert feed([data[:cut], data[cut:]], every_byte=False) == data.decode(errors="replace")


@given(data=st.binary(max_size=40))
def test_marking_every_byte_does_not_depend_on_the_chunks(data):
    single = [data[i : i + 1] for i in range(len(data))]
    assert feed(single, every_byte=True) == feed([data], every_byte=True)


def test_a_broken_sequence_gives_one_mark_or_one_per_byte():
    broken = "🐼".encode()[:3] + b"a"
    assert feed([broken], every_byte=False) == "\ufffda"
    assert feed([broken], every_byte=True) == "\ufffd\ufffd\ufffda"


@given(texts=st.lists(st.text(" n'tvrsme.,x", max_size=4), max_size=12))
def test_cleaned_deltas_add_up_to_the_cleaned_text(texts):
    stream = stream_of(texts, clean_up_spaces=True)
    deltas = [stream.add(token_id) for token_id in range(len(texts))]
    assert "".join(deltas) + stream.finish() == clean_up("".join(texts))


def test_the_first_space_is_dropped_once():
    stream = stream_of([" a", " b"], drop_first_space=True)
    assert stream.add(0) + stream.add(1) + stream.finish() == "a b"


def test_an_added_token_ends_an_unfinished_character():
    stream = stream_of(["é", "<ref>"], whole={1})
    stream._token_bytes = [b"\xc3", b"<ref>"].__getitem__
    assert stream.add(0) == ""
    assert stream.add(1) == "\ufffd<ref>"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("Hello , you .", "Hello, you."), ("do n't", "don't"), ("it 's a ' b", "it's a'b")],
)
def test_spaces_before_punctuation_go(text, cleaned):
    assert clean_up(text) == cleaned


def stream_of(texts: list[str], **differences) -> TextStream:
    options = {"drop_first_space": False, "clean_up_spaces": False, "whole": set()} | differences
    return TextStream(
        lambda token_id: texts[token_id].encode(),
        skipped=(),
        utf8=Utf8(mark_every_byte=False),
        **options,
    )
