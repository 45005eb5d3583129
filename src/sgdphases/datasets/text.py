"""Texts as sequences of whole numbers: splitting into words, a vocabulary, fixed lengths."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

# Token 0 fills short texts up; the words follow in the order of their frequency.
PADDING = 0

_LINE_BREAK = re.compile(r"<br\s*/?>")
# Letters and digits of any alphabet, with apostrophes between them, as in don't.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

RULE = (
    "lower case; HTML line breaks <br /> are spaces; words are runs of letters and digits, "
    "apostrophes within a word included; all else separates words"
)


def split_words(text: str) -> list[str]:
    """Split a text into words, as `RULE` says.

    Example:
        >>> split_words("It's GREAT!<br /><br />10/10")
        ["it's", 'great', '10', '10']
    """
    return _WORD.findall(_LINE_BREAK.sub(" ", text.lower()).replace("’", "'"))


def make_vocabulary(texts: Iterable[str], vocabulary_size: int) -> list[str]:
    """Choose the most frequent words.

    Args:
        texts: The training texts.
        vocabulary_size: Number of tokens, padding and the token of all other words included.

    Returns:
        At most vocabulary_size - 2 words, the most frequent first, those of equal frequency in
        alphabetical order. Word i has token i + 1.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return ordered[: vocabulary_size - 2]


def tokenise(
    texts: Iterable[str], words: Mapping[str, int], vocabulary_size: int, length: int
) -> npt.NDArray[np.unsignedinteger]:
    """Turn texts into tokens.

    Args:
        texts: The texts.
        words: Token of each known word.
        vocabulary_size: Number of tokens; the last stands for every unknown word.
        length: How many words of a text are kept, the first ones; shorter texts are filled up at
            the end with padding.

    Returns:
        Array of shape (texts, length), of the smallest unsigned type that holds the tokens.
    """
    unknown = vocabulary_size - 1
    dtype = token_type(vocabulary_size)
    rows = []
    for text in texts:
        tokens = [words.get(word, unknown) for word in split_words(text)[:length]]
        rows.append(tokens + [PADDING] * (length - len(tokens)))
    return np.array(rows, dtype).reshape(-1, length)


def token_type(vocabulary_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type that holds the tokens."""
    return np.min_scalar_type(vocabulary_size - 1)
