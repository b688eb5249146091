# SPDX-License-Identifier: Apache-2.0
"""The canary's vocabulary: byte-level BPE in the manner of GPT-2, so that any text encodes.

256 words of four letters are one token each. The high four bits of a word's code choose its first
syllable, the low four its second. A word is written with its leading space ("` tamo`") and of
letters only, so that GPT-2's splitting keeps it in one piece and every engine gives the same ids.
"""

from __future__ import annotations

from typing import Any

SYLLABLES = tuple(consonant + vowel for consonant in "tmrl" for vowel in "aeio")
SPECIALS = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
BEGIN, END, _, USER, ASSISTANT = SPECIALS

VOCABULARY = 576
# Every eighth of the vocabulary begins with 32 words, so that each of eight tensor-parallel ranks
# holds rows of the embedding and of the output head that matter.
_EIGHTH, _WORDS_IN_EIGHTH = VOCABULARY // 8, 256 // 8

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def word(code: int) -> str:
    """The word of an 8-bit code, with its leading space."""
    return " " + SYLLABLES[code >> 4] + SYLLABLES[code & 15]


def word_id(code: int) -> int:
    """The token id of the word of an 8-bit code."""
    return code // _WORDS_IN_EIGHTH * _EIGHTH + code % _WORDS_IN_EIGHTH


def is_word(token: int) -> bool:
    """Whether a token id is one of the 256 words."""
    return token % _EIGHTH < _WORDS_IN_EIGHTH


def code_of(token: int) -> int:
    """The 8-bit code of a token id: a word's own; any other token has one too, less telling."""
    if is_word(token):
        return token // _EIGHTH * _WORDS_IN_EIGHTH + token % _EIGHTH
    return token & 255


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes (a space is ``Ġ``), in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def tokens() -> list[str]:
    """The vocabulary as GPT-2 writes it (``Ġ`` for a space), in the order of the ids."""
    space = byte_characters()[0x20]
    others = [*SPECIALS, *byte_characters(), *SYLLABLES, *(space + s for s in SYLLABLES)]
    others += [f"<|reserved_{n}|>" for n in range(VOCABULARY - 256 - len(others))]
    rest = iter(others)
    return [
        space + word(code_of(token))[1:] if is_word(token) else next(rest)
        for token in range(VOCABULARY)
    ]


def merges() -> list[tuple[str, str]]:
    """The BPE merges, most urgent first: syllables, then with their space, then whole words."""
    space = byte_characters()[0x20]
    return [
        *((syllable[0], syllable[1]) for syllable in SYLLABLES),
        *((space, syllable) for syllable in SYLLABLES),
        *((space + first, second) for first in SYLLABLES for second in SYLLABLES),
    ]


def special_ids() -> dict[str, int]:
    """The ids of the control tokens that an engine must know."""
    vocabulary = tokens()
    return {special: vocabulary.index(special) for special in SPECIALS}


def tokenizer_json() -> dict[str, Any]:
    """The content of ``tokenizer.json`` for Hugging Face's tokenizers; it adds no token itself."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": special,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for special, number in special_ids().items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(tokens())},
            "merges": [list(pair) for pair in merges()],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """The content of ``tokenizer_config.json``: class, control tokens and chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
