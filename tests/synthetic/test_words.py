"""The words that are written into pictures: none that is unfit for a demonstration."""

import zlib

import pytest

from internvl2.synthetic.words import Split, english

UNFIT = """
    0040840c 02388a23 0408cf09 04d5c45a 050d8c43 05cc0f29 0601ecbb 062fc8de 07295669 0c7206a1
    10181690 104ac33f 1387f6fe 144fb097 186d72d8 18821ac5 1a63d69e 1c23dabc 1c711c57 1c8600e3
    1cf35681 1dc20809 2078a254 25bb0b5a 2c399cb7 2f424725 326d7d6b 3503155f 353fd713 37f42487
    3978ffd7 3ad04b30 3dbf7a3b 3ea44940 43aae773 43eb7a3e 46b6cf53 47c02d3b 4a9bc55b 4e024b86
    520ebbe1 5216b6bb 560c6468 58f666ad 5af64758 5c64ddbd 61044a7a 61448318 617b856b 6181b58a
    62d67f60 6933a7e6 694d36b5 6b63e1fc 6c12ed31 6ceaec99 6e9564c6 7044fcbe 7212aee2 730be205
    73143541 73411015 73fe0531 756db035 75f1cb2c 79ba0979 7b4a72b6 7ede2b51 800f7917 80537544
    88cd836e 89ea2523 8be122a5 92e97d45 94cecee3 9559c34b 9697633d 983fac12 985d45b5 98958143
    98af8331 9d3de6a2 9e44fa61 a0ba99cd a64c47ea a9f573ac ab0788bb b31c6964 b5b7361d b6ece8f5
    b781e726 ba8ea518 baf555e4 bb80fa3d be6b1335 bef3a4b6 bf11c5bf c063859c c4be7d3a c5cd1356
    c6d6d592 c87dd419 c99be575 cc614ca6 cce9d60c cfbfc5de d05df2ac d0acbf24 d16fbe0b d875dec5
    d8c90407 d8ede3c3 d913a39e da2c39da dbdf24bd ddfd0fb0 dfec8b58 e04888c2 e185b64b e747d52e
    e7e697c9 e7fddcb2 e8d73970 eaf32497 ed254924 efa269f7 f4ced0f3 f9741949 f9835dcc fd5d2f3d
"""
"""CRC-32 of 130 words about sex, violence, drugs, contempt and faith, which need not stand here."""


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_word_is_unfit_for_a_demonstration(split: Split):
    found = [word for word in english(split) if f"{zlib.crc32(word.encode()):08x}" in UNFIT.split()]
    assert found == []


def test_enough_words_are_left():
    assert len(english("train")) > 8000
    assert len(english("test")) > 1500
