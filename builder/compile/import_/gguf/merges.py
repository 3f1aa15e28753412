"""The merges that a SentencePiece vocabulary implies.

SentencePiece's BPE (Kudo and Richardson, arXiv:1808.06226) merges whichever neighbours make the piece with
the best score. Ranked merges do the same when the pieces are ranked by score and each is reached by every
cut into two pieces.
"""

from collections.abc import Sequence

import numpy as np

from builder.compile.import_.checkpoint import AGAIN
from builder.compile.import_.gguf.header import Header
from builder.errors import FormatError

NORMAL = 1
MAX_PIECE = 256  # characters; the longest in use have 128


def merges_of_scores(header: Header, texts: Sequence[str], kinds: Sequence[int]) -> list[list[str]]:
    """Return pairs of pieces, the one to merge first in front.

    Only normal tokens take part: control and user-defined ones are found in the text before, whole.

    Raises:
        FormatError: `tokenizer.ggml.scores` is missing or does not fit.
    """
    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(texts) or not np.isfinite(scores).all():
        raise FormatError(
            f"{header.file}: tokenizer.ggml.scores are not {len(texts)} finite numbers", hint=AGAIN
        )
    pieces = {text for text, kind in zip(texts, kinds, strict=True) if kind == NORMAL}
    merges: list[list[str]] = []
    # Equal scores: the lower id first, as it was learned first.
    for token in np.argsort(-scores.astype(np.float64), kind="stable"):
        text = texts[token]
        if kinds[token] != NORMAL or not 1 < len(text) <= MAX_PIECE:
            continue
        merges += [
            [text[:cut], text[cut:]]
            for cut in range(len(text) - 1, 0, -1)
            if text[:cut] in pieces and text[cut:] in pieces
        ]
    return merges
