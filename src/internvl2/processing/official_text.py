"""What the official slow tokenizers decode to, spaces around special tokens included.

Transformers 4.37.2 (`PreTrainedTokenizer._decode`, and `convert_tokens_to_string` of InternLM2 and
Llama). Only comparisons with the official code need it; answers come from `Tokenizer.decode`.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import groupby

from internvl2.processing.subwords import SPACE, SentencePieceSubwords
from internvl2.processing.text_stream import Utf8, clean_up
from internvl2.processing.tokenizer import Tokenizer


def official_text(
    tokenizer: Tokenizer, token_ids: Iterable[int], skipped: Collection[int] = frozenset()
) -> str:
    """The official `tokenizer.decode(ids)` without the tokens in `skipped`."""
    kept = [token_id for token_id in token_ids if token_id not in skipped]
    if not isinstance(tokenizer.subwords, SentencePieceSubwords):
        stream = tokenizer.stream(skip_special=False)
        return "".join([stream.add(token_id) for token_id in kept]) + stream.finish()
    text = " ".join(_sentencepiece_parts(tokenizer, tokenizer.subwords, kept))
    return clean_up(text) if tokenizer.files.clean_up_spaces else text


def _sentencepiece_parts(
    tokenizer: Tokenizer, subwords: SentencePieceSubwords, token_ids: list[int]
) -> Iterator[str]:
    apart = _set_apart(tokenizer)
    named = _named_ids(tokenizer)
    groups = [(alone, list(ids)) for alone, ids in groupby(token_ids, key=apart.__contains__)]
    for index, (alone, ids) in enumerate(groups, start=1):
        if alone:
            yield from (tokenizer.token_bytes(token_id).decode() for token_id in ids)
            continue
        text = _run_text(tokenizer, subwords, ids, named)
        if text or index == len(groups):
            yield text


def _set_apart(tokenizer: Tokenizer) -> set[int]:
    """Added tokens that are joined to their neighbours with a space."""
    named = _named_ids(tokenizer)
    apart = {token.id for token in tokenizer.added.values() if token.id not in named}
    for text in tokenizer.files.additional_special:
        token_id = tokenizer.id_of(text)
        if token_id is not None and token_id >= tokenizer.subwords.size:
            apart.add(token_id)
    return apart


def _named_ids(tokenizer: Tokenizer) -> set[int]:
    texts = [*tokenizer.files.named.values(), *tokenizer.files.additional_special]
    return {token_id for token_id in map(tokenizer.id_of, texts) if token_id is not None}


def _run_text(
    tokenizer: Tokenizer, subwords: SentencePieceSubwords, token_ids: list[int], named: set[int]
) -> str:
    llama = tokenizer.is_llama
    text, plain, after_special = "", [], False
    for index, token_id in enumerate(token_ids):
        if token_id not in named:
            plain.append(token_id)
            after_special = False
            continue
        if not after_special and (not llama or (index and tokenizer.files.legacy)):
            text += " "
        text += (
            _plain_text(subwords, plain, tokenizer.spaces_every_run)
            + tokenizer.token_bytes(token_id).decode()
        )
        plain, after_special = [], True
    text += _plain_text(subwords, plain, tokenizer.spaces_every_run)
    starts_with_space = token_ids[0] not in named and subwords.piece(token_ids[0]).startswith(SPACE)
    return text.removeprefix(" ") if llama and starts_with_space else text


def _plain_text(subwords: SentencePieceSubwords, token_ids: list[int], spaced: bool) -> str:
    utf8 = Utf8(mark_every_byte=True)
    parts = []
    for token_id in token_ids:
        data = subwords.bytes_of(token_id)
        parts.append(
            utf8.add(data) if subwords.is_byte(token_id) else utf8.finish() + data.decode()
        )
    text = "".join(parts) + utf8.finish()
    return text.removeprefix(" ") if spaced else text
