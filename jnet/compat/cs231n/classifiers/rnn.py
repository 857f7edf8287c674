"""A recurrent network that writes captions."""

from typing import Any

import numpy as np

from jnet.compat.cs231n.layers import affine_backward, affine_forward
from jnet.compat.cs231n.rnn_layers import (
    lstm_backward,
    lstm_forward,
    lstm_step_forward,
    rnn_backward,
    rnn_forward,
    rnn_step_forward,
    temporal_affine_backward,
    temporal_affine_forward,
    temporal_softmax_loss,
    word_embedding_backward,
    word_embedding_forward,
)

__all__ = ["CaptioningRNN"]


class CaptioningRNN:
    """An image's features make the first state; each state and word give scores of the next word.

    `word_to_idx` maps V words to ids, among them `<NULL>` (padding), `<START>` and `<END>`. `cell_type` is "rnn" or
    "lstm". `params`: W_embed `(V, W)`, W_proj `(D, H)`, b_proj, Wx `(W, H or 4H)`, Wh, b, W_vocab `(H, V)`, b_vocab.
    """

    def __init__(
        self,
        word_to_idx: dict[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
    ):
        """Draw the weights in the order W_embed, W_proj, Wx, Wh, W_vocab; biases are 0."""
        if cell_type not in {"rnn", "lstm"}:
            raise ValueError(f'Invalid cell_type "{cell_type}"')
        self.cell_type = cell_type
        self.dtype = dtype
        self.word_to_idx = word_to_idx
        self.idx_to_word = {index: word for word, index in word_to_idx.items()}
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>")
        self._end = word_to_idx.get("<END>")
        vocabulary, gates = len(word_to_idx), 4 if cell_type == "lstm" else 1
        params = {}
        params["W_embed"] = np.random.randn(vocabulary, wordvec_dim) / 100
        params["W_proj"] = np.random.randn(input_dim, hidden_dim) / np.sqrt(input_dim)
        params["b_proj"] = np.zeros(hidden_dim)
        params["Wx"] = np.random.randn(wordvec_dim, gates * hidden_dim) / np.sqrt(wordvec_dim)
        params["Wh"] = np.random.randn(hidden_dim, gates * hidden_dim) / np.sqrt(hidden_dim)
        params["b"] = np.zeros(gates * hidden_dim)
        params["W_vocab"] = np.random.randn(hidden_dim, vocabulary) / np.sqrt(hidden_dim)
        params["b_vocab"] = np.zeros(vocabulary)
        self.params = {name: value.astype(dtype) for name, value in params.items()}

    def loss(self, features: np.ndarray, captions: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
        """Return loss and gradients for features `(N, D)` and captions `(N, T)`: each word foretells the next."""
        words, next_words = captions[:, :-1], captions[:, 1:]
        forward, backward = (rnn_forward, rnn_backward) if self.cell_type == "rnn" else (lstm_forward, lstm_backward)
        p, grads = self.params, {}
        h0, proj_cache = affine_forward(features, p["W_proj"], p["b_proj"])
        embedded, embed_cache = word_embedding_forward(words, p["W_embed"])
        h, cell_cache = forward(embedded, h0, p["Wx"], p["Wh"], p["b"])
        scores, vocab_cache = temporal_affine_forward(h, p["W_vocab"], p["b_vocab"])
        loss, dscores = temporal_softmax_loss(scores, next_words, next_words != self._null)
        dh, grads["W_vocab"], grads["b_vocab"] = temporal_affine_backward(dscores, vocab_cache)
        dembedded, dh0, grads["Wx"], grads["Wh"], grads["b"] = backward(dh, cell_cache)
        grads["W_embed"] = word_embedding_backward(dembedded, embed_cache)
        _, grads["W_proj"], grads["b_proj"] = affine_backward(dh0, proj_cache)
        return loss, grads

    def sample(self, features: np.ndarray, max_length: int = 30) -> np.ndarray:
        """Write captions `(N, max_length)`, int32, for features `(N, D)`: the likeliest word at each step."""
        p = self.params
        captions = np.full((len(features), max_length), self._null, np.int32)
        h, _ = affine_forward(features, p["W_proj"], p["b_proj"])
        c = np.zeros_like(h)
        words = np.full(len(features), self._start)
        for t in range(max_length):
            embedded, _ = word_embedding_forward(words, p["W_embed"])
            if self.cell_type == "rnn":
                h, _ = rnn_step_forward(embedded, h, p["Wx"], p["Wh"], p["b"])
            else:
                h, c, _ = lstm_step_forward(embedded, h, c, p["Wx"], p["Wh"], p["b"])
            scores, _ = affine_forward(h, p["W_vocab"], p["b_vocab"])
            words = np.argmax(scores, axis=1)
            captions[:, t] = words
        return captions
