"""The course's recurrent layers and the captioning network on them."""

import numpy as np
import pytest

from jnet.compat.cs231n import rnn_layers
from jnet.compat.cs231n.captioning_solver import CaptioningSolver
from jnet.compat.cs231n.classifiers.rnn import CaptioningRNN
from jnet.compat.cs231n.coco_utils import decode_captions, load_coco_data, sample_coco_minibatch
from jnet.compat.cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array

WORDS = ["<NULL>", "<START>", "<END>", "a", "cat", "sat"]
INDEX = {word: index for index, word in enumerate(WORDS)}


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def close(got, want, tolerance=1e-7):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(initial=0), 1e-3))


def test_a_sequence_is_its_steps():
    x, h, Wx, Wh, b = draw(3, 4, 5), draw(3, 2), draw(5, 2), draw(2, 2), draw(2)
    states, _ = rnn_layers.rnn_forward(x, h, Wx, Wh, b)
    for t in range(4):
        close(rnn_layers.rnn_step_forward(x[:, t], h, Wx, Wh, b)[0], np.tanh(x[:, t] @ Wx + h @ Wh + b), 1e-14)
        h = np.tanh(x[:, t] @ Wx + h @ Wh + b)
        close(states[:, t], h, 1e-14)
    h, Wx, Wh, b = draw(3, 2), draw(5, 8), draw(2, 8), draw(8)
    states, _ = rnn_layers.lstm_forward(x, h, Wx, Wh, b)
    c = np.zeros((3, 2))
    for t in range(4):
        i, f, o, g = np.split(x[:, t] @ Wx + h @ Wh + b, 4, axis=1)
        expected_c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h, c, _ = rnn_layers.lstm_step_forward(x[:, t], h, c, Wx, Wh, b)
        close(c, expected_c, 1e-14)
        close(h, np.tanh(expected_c) / (1 + np.exp(-o)), 1e-14)
        close(states[:, t], h, 1e-14)


def test_lstm_step_backward_hears_both_outputs():
    arrays = [draw(*shape, seed=i) for i, shape in enumerate([(3, 4), (3, 2), (3, 2), (4, 8), (2, 8), (8,)])]
    _, _, cache = rnn_layers.lstm_step_forward(*arrays)
    dh, dc = draw(3, 2, seed=8), draw(3, 2, seed=9)
    grads = rnn_layers.lstm_step_backward(dh, dc, cache)
    for array, grad in zip(arrays, grads, strict=True):
        numerical = sum(
            eval_numerical_gradient_array(lambda _, k=k: rnn_layers.lstm_step_forward(*arrays)[k], array, d)
            for k, d in enumerate((dh, dc))
        )
        close(grad, numerical)


def test_word_embedding_adds_up_repeated_words():
    ids, W = np.array([[0, 2, 2], [1, 0, 2]]), draw(4, 3)
    out, cache = rnn_layers.word_embedding_forward(ids, W)
    np.testing.assert_array_equal(out, W[ids])
    dout, dW = draw(2, 3, 3), np.zeros((4, 3))
    np.add.at(dW, ids, dout)
    close(rnn_layers.word_embedding_backward(dout, cache), dW, 1e-14)
    with pytest.raises(ValueError, match=r"x\[1, 0\] is 4; labels must be from 0 to 3"):
        rnn_layers.word_embedding_forward(np.array([[0], [4]]), W)


def test_sigmoid_is_right_far_out():
    np.testing.assert_array_equal(rnn_layers.sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_temporal_softmax_loss_divides_by_the_batch_alone(capsys):
    x, y, mask = draw(3, 4, 5), np.arange(12).reshape(3, 4) % 5, np.arange(12).reshape(3, 4) % 3 > 0
    y[~mask] = 99  # what is masked may be anything
    loss, dx = rnn_layers.temporal_softmax_loss(x, y, mask, verbose=True)
    assert "dx_flat" in capsys.readouterr().out
    log_p = x - np.log(np.exp(x).sum(axis=2, keepdims=True))
    close(loss, -sum(log_p[n, t, y[n, t]] for n, t in np.argwhere(mask)) / 3, 1e-14)
    close(dx, eval_numerical_gradient(lambda x: rnn_layers.temporal_softmax_loss(x, y, mask)[0], x, verbose=False))
    assert not dx[~mask].any()
    with pytest.raises(ValueError, match=r"y\[0, 1\] is 99"):
        rnn_layers.temporal_softmax_loss(x, np.full((3, 4), 99), mask)


@pytest.mark.parametrize(("cell_type", "recorded"), [("rnn", 9.83235591003), ("lstm", 9.82445935443)])
def test_captioning_loss_as_recorded(cell_type, recorded):
    sizes = {"input_dim": 20, "wordvec_dim": 30, "hidden_dim": 40, "dtype": np.float64}
    model = CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, cell_type=cell_type, **sizes)
    for name, value in model.params.items():
        model.params[name] = np.linspace(-1.4, 1.3, num=value.size).reshape(value.shape)
    features = np.linspace({"rnn": -1.5, "lstm": -0.5}[cell_type], {"rnn": 0.3, "lstm": 1.7}[cell_type], num=200)
    loss, _ = model.loss(features.reshape(10, 20), np.arange(130).reshape(10, 13) % 3)
    close(loss, recorded, 1e-12)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_captioning_gradients(cell_type):
    np.random.seed(0)
    model = CaptioningRNN(INDEX, input_dim=3, wordvec_dim=2, hidden_dim=2, cell_type=cell_type, dtype=np.float64)
    assert [*model.params] == ["W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab"]
    features, captions = draw(3, 3), np.array([[1, 3, 4, 2], [1, 4, 2, 0], [1, 5, 5, 2]])
    _, grads = model.loss(features, captions)
    for name, grad in grads.items():
        close(
            grad, eval_numerical_gradient(lambda _: model.loss(features, captions)[0], model.params[name], False), 1e-6
        )
    written = model.sample(features, max_length=6)
    assert written.shape == (3, 6) and written.dtype == np.int32
    with pytest.raises(ValueError, match='Invalid cell_type "gru"'):
        CaptioningRNN(INDEX, cell_type="gru")


def test_captioning_solver_learns_its_captions(capsys):
    np.random.seed(0)
    captions = np.array([[1, 3, 4, 2, 0], [1, 3, 5, 2, 0]])
    data = {"train_captions": captions, "train_image_idxs": np.arange(2), "train_features": np.eye(2, dtype=np.float32)}
    data["train_urls"] = np.array(["one", "two"])
    model = CaptioningRNN(INDEX, input_dim=2, wordvec_dim=4, hidden_dim=8, cell_type="lstm")
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        num_epochs=40,
        batch_size=2,
        optim_config={"learning_rate": 0.05},
        lr_decay=0.99,
    )
    solver.train()
    assert "(Iteration 1 / 40) loss: " in capsys.readouterr().out
    assert len(solver.loss_history) == 40 and solver.loss_history[-1] < 0.2 < solver.loss_history[0]
    assert decode_captions(model.sample(data["train_features"], 4), WORDS) == ["a cat <END>", "a sat <END>"]
    drawn, features, urls = sample_coco_minibatch(data, batch_size=5)
    assert drawn.shape == (5, 5) and features.shape == (5, 2) and set(urls) <= {"one", "two"}
    assert decode_captions(captions[0], WORDS) == "<START> a cat <END>"


def test_missing_captions_are_named(tmp_path):
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=r"coco2014_captions\.h5|h5py"):
        load_coco_data(tmp_path)
