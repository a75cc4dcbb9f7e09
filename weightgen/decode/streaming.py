"""Text of an answer, piece by piece, while it is made."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase, TextStreamer


class TextPieces(TextStreamer):
    """Hands every finished piece of the answer to a function; the prompt is left out.

    Args:
        tokenizer: turns tokens into text.
        on_text: called with each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass the piece on."""
        if text:
            self.on_text(text)
