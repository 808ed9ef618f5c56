"""Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) that draws the same text.

A draft, the same model in eight bits, proposes some tokens, each in the time that a quarter of the
bytes takes to read. The model then computes the logits after all of them at once, which reads its
weights once. Proposals are drawn with the keys of the real draws, so they are nearly always what
the model draws; where one is not, the logits behind it are thrown away. Every token is drawn from
the model's own logits, so the text does not depend on the draft. Both share one cache: what the
draft has written of a position, the model writes over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.decode_one import SingleStep
from nanogpt_cli.sampling.weights import Draft

# Draws the token that follows some new tokens of a text, from logits (V,).
Draw = Callable[[Any, Sequence[int]], int]


class Speculation:
    """The logits of one text, computed ahead of it.

    Args:
        decoder: the model with its cache, of which the text has slot 0.
        draft: its weights in eight bits, and the times that decide how many tokens it proposes.
    """

    def __init__(self, decoder: Decoder, draft: Draft) -> None:
        self.decoder, self.pace = decoder, draft.pace
        self._step = SingleStep(draft.weights)
        self._ahead: list[tuple[int, int, Any]] = []  # (length, token, logits after it)
        self._right = self._asked = 0
        self._length = self.pace.length()

    @property
    def helps(self) -> bool:
        """Whether passes are still faster than steps, as far as the draft has been right."""
        return bool(self._ahead) or self._length > 1

    def logits(self, token: int, length: int, most: int, draw: Draw) -> Any:
        """Logits (V,) after a token.

        Args:
            token: the text's last token.
            length: number of positions before it.
            most: tokens that the text may still get, this one included.
            draw: draws the proposals.
        """
        if self._ahead:
            proposed = self._ahead.pop(0)
            right = proposed[:2] == (length, token)
            self._asked += 1
            self._right += right
            if right:
                return proposed[2]
            self._ahead = []
        self._length = self.pace.length(self._right, self._asked)
        tokens = self._propose(token, length, most, draw)
        rows = self.decoder.extend(0, tokens, length).numpy()
        self._ahead = [(length + n, tokens[n], rows[n]) for n in range(1, len(tokens))]
        return rows[0]

    @torch.inference_mode()
    def _propose(self, token: int, length: int, most: int, draw: Draw) -> list[int]:
        """The token and what probably follows."""
        cache = self.decoder.stored(0)
        factor = self.decoder.config.multipliers.output
        tokens = [token]
        for n in range(min(self._length, most, self.decoder.config.block_size - length) - 1):
            logits = self._step(tokens[-1], length + n, cache)[0].numpy() * factor
            tokens.append(draw(logits, tokens[1:]))
        return tokens
