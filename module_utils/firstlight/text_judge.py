# SPDX-License-Identifier: Apache-2.0
"""A judge of garbage: whether a text can be the answer of a model that is served right.

Wrong weights, a kernel that computes nonsense or a broken tokenizer still answer HTTP 200; the
text gives them away. The judge knows no model, so it only says what no sound model does, and it
says of each fault whether it is enough to fail an endpoint. Every threshold was set between texts
that sound models write (prose, lists, code, tables, poems, several languages) and what engines
wrote whose weights were random, overflowed, damaged or zeroed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from typing import Dict, List, Tuple, Union

Fault = Dict[str, Union[str, bool]]
"""``{kind, found, wanted, alone}``; ``alone`` is whether it is enough to fail an endpoint."""

KINDS = ("repetition", "entropy", "encoding", "language", "control")

NEVER_ALONE = ("entropy", "language")
"""How a text reads depends on the model and its prompt as well."""

LIMIT = 16384
"""Characters that are judged: the first and the last half of it. Bounds the time."""

LOOP_LENGTH = 24
"""A loop is judged from this many characters on: ``Ha ha ha ha!`` and a rule under a title are
shorter than that, or are less of their text than ``LOOP_SHARE``."""

LOOP_TIMES = 4
"""How often in a row a unit stands before it is a loop. A refrain is said twice or three times."""

LOOP_SHARE = 0.5
"""How much of the text a loop takes. Engines that lost their weights loop to the end of the answer;
the rows of dashes of the tables and the lines of the poems among the good texts stay under 0.2."""

TOKEN_BYTES = 16
"""Up to this many bytes of one word the unit of a loop is a token, which no sound model loops on.
Small sound models do loop on phrases and sentences where decoding is greedy, so a longer unit is
not enough to fail an endpoint."""

GRAMS = 24
"""From how many word triples on their variety is judged."""

VARIETY = 0.25
"""Share of the word triples that are different. Loops with a word changed here and there have up
to 0.2; of the good texts rows of JSON have the least with 0.5, then a poem with a refrain."""

ENTROPY_LENGTH = 64
"""Characters from which on the entropy is judged: fewer cannot reach 6 bits."""

ENTROPY_BITS = (2.0, 5.4)
"""Bits per character of text that is ASCII: of the good texts prose has 4.0 to 4.5, code and tables
3.5 to 4.7, counting 2.8 to 3.1; base64 and random bytes have over 5.6, two letters under 1."""

ENTROPY_ASCII = 0.9
"""Share of ASCII from which on the bits are comparable: large alphabets have more by nature."""

WORD_LENGTH = 40
"""Over this mean length, a text has no words. A list of German compounds has 23; a text in a script
without spaces is not ASCII, so it is not judged by this."""

INVALID_ALONE = 3
"""So many characters that cannot be decoded fail an endpoint alone; a real model may have learned
to write a U+FFFD or two."""

SCRIPTS = 4
"""So many scripts in one text, with ``SCRIPT_CHANGES``, are tokens drawn at random: wrong weights
under a vocabulary of many languages wrote 4 into 24 tokens and 5 to 9 into 128. Two are Chinese
with a product's name in it; a list of greetings has more, and never two in a word."""

SCRIPT_CHANGES = 3
"""Changes of the script inside of a word from which on ``SCRIPTS`` counts."""

TOGETHER = 3
"""Kinds of faults in one text that are no coincidence: then each that says more than how the text
reads is enough to fail an endpoint."""

LATIN_SHARE = 0.5
"""Share of Latin letters among the letters of an English answer. Quotes of other languages stay
over 0.7."""

LETTERS = 20
"""Letters from which on the script is judged."""

WORDS = 20
"""Words in sentences from which on their language is judged."""

COMMON_SHARE = 0.08
"""Share of words that are among the most common of English: 0.36 to 0.52 in the good texts in it;
French and German have up to 0.04, tokens at random up to 0.03."""

SIGNS_SHARE = 0.3
"""Signs of code and tables per word from which on a line is not of sentences."""

_ENGLISH = (
    "a about after all also an and are as at be because been but by can could did do for from"
    " had has have he her him his how i if in into is it its just like me more my no not of on"
    " one or our out over she so some such than that the their them then there these they this"
    " to two up us was we were what when where which who will with would you your")

COMMON = {"en": frozenset(_ENGLISH.split())}
"""Words that sentences of a language cannot do without, by language. Another is not judged."""

_SPACES = "\t\n\r\f"
# What a cut may leave of a last character: at most three of its bytes.
_CUT = 3
# The characters that the bytes 0x80 to 0xbf become where UTF-8 is read as Windows-1252 or Latin-1.
_REST = "[\u0080-\u00bf%s]" % "".join(
    re.escape(bytes([code]).decode("cp1252", "ignore")) for code in range(0x80, 0xa0))
_MOJIBAKE = re.compile(
    # Accented letters and Cyrillic; dashes and quotes; CJK; emoji. Only leads that no language has
    # before such a sign: a closing quote may follow the German sharp s or a French e.
    "[\u00c2\u00c3\u00d0\u00d1]%(rest)s|\u00e2\u20ac|(?:[\u00e4-\u00e9]%(rest)s{2}){2,}|\u00f0\u0178"
    % {"rest": _REST})
_RAW_TOKENS = re.compile(
    # How byte-level BPE, SentencePiece and its byte fallback write a space and a byte inside.
    "[\u0120\u010a]|\u2581|<0x[0-9A-Fa-f]{2}>")
# One text has them all: Japanese, or Korean with Han letters.
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO",
               "IDEOGRAPHIC"}
# Scripts without spaces between words count by the character.
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W\\d_]+(?:['\u2019][^\\W\\d_]+)*"
                   "|\\d+|_+|[^\\w\\s]+")
_SIGNS = re.compile(r"[|{}()\[\]=;<>_/\\]")
_LETTERS = re.compile("[^\\W\\d_]+")


def faults(text: str, language: str = "en", expected_bytes_invalid: int = 0) -> List[Fault]:
    """What is wrong with a text that a model wrote; nothing where it can be sound.

    An empty text has nothing to judge, which is for the caller to say.

    :param text: the answer. At most :data:`LIMIT` characters of it are judged.
    :param language: ISO 639-1 code of the language that the prompt was in and asked for. Of one
        that is not in :data:`COMMON`, such as an empty text, the language is not judged.
    :param expected_bytes_invalid: how many signs of bytes that are no UTF-8 are nobody's fault.
        Those at the very end never are: the limit of tokens may cut a character.
    :returns: at most one fault of each kind.
    """
    if len(text) > LIMIT:
        text = text[: LIMIT // 2] + text[-(LIMIT // 2):]
    if not text:
        return []
    found = [one for one in (
        _control(text),
        _encoding(text, expected_bytes_invalid),
        _repetition(text),
        _entropy(text),
        _language(text, language),
    ) if one]
    if len(found) < TOGETHER:
        return found
    return [dict(one, alone=one["kind"] not in NEVER_ALONE) for one in found]


def _fault(kind: str, found: str, wanted: str, alone: bool) -> Fault:
    return {"kind": kind, "found": found, "wanted": wanted, "alone": alone}


def _control(text: str) -> Fault:
    """Characters that are no text: NUL, escape, the C1 controls, noncharacters."""
    seen = Counter(
        one for one in text
        if (unicodedata.category(one) == "Cc" and one not in _SPACES)
        or ord(one) & 0xfffe == 0xfffe or 0xfdd0 <= ord(one) <= 0xfdef)
    if not seen:
        return {}
    names = ", ".join("U+%04X" % ord(one) for one, _ in seen.most_common(3))
    return _fault("control", "%d control characters (%s)" % (sum(seen.values()), names),
                  "text without control characters", True)


def _encoding(text: str, expected: int) -> Fault:
    """Bytes that were no UTF-8, UTF-8 read as something else, tokens that were not decoded."""
    whole = text.rstrip("\ufffd")
    # A text of nothing else was not cut in a last character.
    tail = len(text) - len(whole)
    invalid = text.count("\ufffd") - (min(tail, _CUT) if whole else 0)
    lone = sum(0xd800 <= ord(one) <= 0xdfff for one in text)
    mojibake = len(_MOJIBAKE.findall(text))
    raw = len(_RAW_TOKENS.findall(text))
    said = [
        "%d %s" % (count, what) for count, what in (
            (invalid, "U+FFFD, for bytes that are no UTF-8"),
            (lone, "lone surrogates"),
            (mojibake, "signs of UTF-8 that was read as Windows-1252"),
            (raw, "signs of tokens that were not decoded"),
        ) if count]
    total = invalid + lone + mojibake + raw - max(expected, 0)
    scripts = _mixed_scripts(text)
    if scripts:
        said.append("words of letters of %s" % ", ".join(scripts))
        total = max(total, INVALID_ALONE)
    if total <= 0:
        return {}
    return _fault("encoding", "%s in %d characters" % (", ".join(said), len(text)),
                  "text in UTF-8", total >= INVALID_ALONE)


def _mixed_scripts(text: str) -> List[str]:
    """The scripts of a text whose words are of several at once, or none."""
    seen = set()
    changes = 0
    before = ""
    for one in text:
        if one.isalpha():
            script = unicodedata.name(one, "OTHER").split()[0]
            script = "EAST ASIAN" if script in _EAST_ASIAN else script
            seen.add(script)
            changes += bool(before) and script != before
            before = script
        elif not unicodedata.combining(one):
            before = ""
    return sorted(seen) if len(seen) >= SCRIPTS and changes >= SCRIPT_CHANGES else []


def _repetition(text: str) -> Fault:
    """One unit over and over, or the same few words in turn."""
    wanted = "text that goes on, not one unit over and over"
    if not text.strip():
        return _fault("repetition", "%d characters, all whitespace" % len(text), wanted, True)
    text = text.strip()
    # A loop goes to the end of the text, or begins it and something ends it.
    for one in (text[::-1], text):
        unit, length = _loop(one)
        if unit:
            shown = one[:unit] if one is text else one[:unit][::-1]
            return _fault(
                "repetition",
                "%r %d times in a row, %d%% of the text"
                % (shown[:60], length // unit, 100 * length // len(text)),
                wanted, _is_token(shown))
    words = _WORD.findall(text.lower())
    triples = list(zip(words, words[1:], words[2:]))
    if len(triples) >= GRAMS and len(set(triples)) < VARIETY * len(triples):
        most = Counter(triples).most_common(1)[0]
        return _fault(
            "repetition", "%d of %d word triples are different, %r stands there %d times"
            % (len(set(triples)), len(triples), " ".join(most[0])[:60], most[1]),
            wanted, len(set(words)) <= 2)
    return {}


def _is_token(unit: str) -> bool:
    return (len(unit.split()) <= 1
            and len(unit.encode("utf-8", "surrogatepass")) <= TOKEN_BYTES)


def _loop(text: str) -> Tuple[int, int]:
    """The unit that the text begins with again and again, and how long that goes on.

    :returns: the lengths in characters of the unit and of all its repeats; zeros for no loop.
    """
    least = max(LOOP_LENGTH, LOOP_SHARE * len(text))
    same = _common_with_start(text)
    for unit in range(1, len(text) // LOOP_TIMES + 1):
        length = unit + same[unit]
        if length >= least and length >= LOOP_TIMES * unit:
            return unit, length
    return 0, 0


def _common_with_start(text: str) -> List[int]:
    """For each place, how many characters from there on are those of the start (Z function)."""
    length = len(text)
    same = [0] * length
    left = right = 0
    for place in range(1, length):
        reach = min(right - place, same[place - left]) if place < right else 0
        while place + reach < length and text[reach] == text[place + reach]:
            reach += 1
        same[place] = reach
        if place + reach > right:
            left, right = place, place + reach
    return same


def _entropy(text: str) -> Fault:
    """Letters that are too even, or too few, to be words."""
    # What indents a code is none of its letters.
    dense = " ".join(text.split())
    plain = sum(one < "\x80" for one in dense)
    if len(dense) < ENTROPY_LENGTH or plain < ENTROPY_ASCII * len(dense):
        return {}
    least, most = ENTROPY_BITS
    bits = _bits(dense)
    words = dense.split()
    mean = sum(map(len, words)) / len(words)
    if least <= bits <= most and mean <= WORD_LENGTH:
        return {}
    return _fault(
        "entropy", "%.1f bits per character, words of %d characters in the mean" % (bits, mean),
        "%g to %g bits, words of at most %d" % (least, most, WORD_LENGTH), False)


def _bits(text: str) -> float:
    """Shannon entropy of the characters, in bits."""
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values())


def _language(text: str, language: str) -> Fault:
    """Another script than the language has, or sentences without any of its common words."""
    common = COMMON.get(language)
    if not common:
        return {}
    letters = "".join(_LETTERS.findall(text))
    latin = sum(_is_latin(one) for one in letters)
    if len(letters) >= LETTERS and latin < LATIN_SHARE * len(letters):
        return _fault("language", "%d of %d letters are Latin" % (latin, len(letters)),
                      "an answer in the language %r" % language, False)
    words = [word.lower() for line in text.splitlines() if _is_prose(line)
             for word in _LETTERS.findall(line)]
    known = sum(word in common for word in words)
    if len(words) >= WORDS and known < COMMON_SHARE * len(words):
        return _fault("language", "%d of %d words are common ones of the language %r"
                      % (known, len(words), language),
                      "at least %d%%" % (100 * COMMON_SHARE), False)
    return {}


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or 0x1e00 <= ord(letter) <= 0x1eff


def _is_prose(line: str) -> bool:
    """Whether a line is of sentences: rows of tables and lines of code are of no language."""
    words = _LETTERS.findall(line)
    signs = len(_SIGNS.findall(line))
    return len(words) >= 5 and signs < SIGNS_SHARE * len(words) and not line.startswith("    ")
