"""Texts: words to shards, the language model, its loss and dropout, exact perplexity, carried state."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from legw_hpc import runlog
from legw_hpc.apps import application
from legw_hpc.apps.ptb_lstm import CONTEXT
from legw_hpc.data.format import INDEX
from legw_hpc.data.loader import evaluation_batches
from legw_hpc.data.shards import Shards, verify
from legw_hpc.data.sources import text
from legw_hpc.errors import InputError
from legw_hpc.models import linear_loss
from legw_hpc.models.linear_loss import linear_cross_entropy
from legw_hpc.models.ptb_lstm import PtbLSTM
from legw_hpc.models.stateless import dropout
from legw_hpc.runlog import read
from tests.conftest import Cli

CPU = torch.device("cpu")
WORDS = 30


def write(folder: Path, **files: str | bytes) -> Path:
    """A tiny text under PTB's names; `valid=b"..."` replaces a file."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in (("train", 150), ("valid", 30), ("test", 40)):
        words = [" ".join(f"w{i}" for i in rng.integers(0, WORDS, 12)) for _ in range(lines)]
        content = files.get(split, "".join(f" {line} \n" for line in words))
        (folder / f"ptb.{split}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture(scope="module")
def shards_of_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,950, 390 and 520 words; a vocabulary of 31."""
    folder = tmp_path_factory.mktemp("text")
    text.convert(write(folder / "source"), folder / "out")
    return folder / "out"


def training(shards: Path, **changed: object) -> list[str]:
    """A command of 12 steps an epoch."""
    words = {
        "data.dir": shards, "data.train_samples": 1950, "data.window": 8, "options.vocabulary": 31, "options.hidden": 12,
        "batch": 20, "micro_batch": 6, "epochs": 2, "threads": 1,
    } | changed  # fmt: skip
    return ["ptb-lstm", *(f"{key}={value}" for key, value in words.items())]


def test_words_become_tokens_by_falling_count(tmp_path: Path) -> None:
    write(tmp_path, train="b a b\nc b\n", valid="a\n", test="b c\n")
    assert text.convert(tmp_path, tmp_path / "out") == {"train": 7, "valid": 2, "test": 3}
    verify(tmp_path / "out")
    words = Shards(tmp_path / "out", "vocabulary").take("word", np.arange(4))
    assert words == [b"b", b"<eos>", b"a", b"c"]
    assert Shards(tmp_path / "out", "train").take("token", np.arange(7)).tolist() == [0, 2, 0, 1, 3, 0, 1]
    assert Shards(tmp_path / "out", "test").take("token", np.arange(3)).tolist() == [0, 3, 1]


BAD = {
    "empty line": ({"valid": "w1\n\nw2\n"}, r"ptb\.valid\.txt: line 2 is empty"),
    "blank line": ({"train": "w1\n  \nw2\n"}, r"ptb\.train\.txt: line 2 is empty"),
    "no final newline": ({"test": "w1\nw2"}, r"ptb\.test\.txt: no newline at the end"),
    "not UTF-8": ({"test": b"w1\nw2 \xff\n"}, r"ptb\.test\.txt: line 2: not UTF-8: byte 0xff"),
    "unknown word": ({"test": "w1\nw2 zebra\n"}, r"ptb\.test\.txt: line 2: 'zebra' is not a word of ptb\.train\.txt"),
    "the end's own word": ({"train": "w1 <eos>\n"}, r"ptb\.train\.txt: line 1 has the word <eos>"),
    "empty file": ({"valid": ""}, r"ptb\.valid\.txt: empty"),
    "byte order mark": ({"train": "\ufeffw1 w2\n"}, r"ptb\.train\.txt: line 1 begins with a byte order mark"),
    "lone CR": ({"train": "w1\r\nw2\rw3\n"}, r"ptb\.train\.txt: line 2 has a carriage return without a newline"),
    "CR line ends": ({"test": "w1\rw2\r"}, r"ptb\.test\.txt: line 1 has a carriage return without a newline"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_refused_in_one_line(name: str, tmp_path: Path, cli: Cli) -> None:
    files, said = BAD[name]
    done = cli("data", "text", "--source", write(tmp_path / "source", **files), "--out", tmp_path / "out")  # type: ignore[arg-type]
    assert done.returncode == 2
    assert re.fullmatch(rf"legw-hpc: .*{said}.*\n", done.stderr)
    assert not (tmp_path / "out").exists()


def test_other_text_under_the_names_of_ptb_is_refused(tmp_path: Path, cli: Cli) -> None:
    done = cli("data", "ptb", "--source", write(tmp_path / "source"), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "MD5" in done.stderr
    assert cli("data", "text", "--source", tmp_path / "nowhere").returncode == 2


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path, shards_of_text: Path, cli: Cli) -> None:
    import h5py

    folder = tmp_path / "text"
    shutil.copytree(shards_of_text, folder)
    with h5py.File(folder / "train-00000.h5", "r+") as file:
        file["token"][77] = 31
    done = cli("train", *training(folder), f"out={tmp_path / 'r'}")
    assert done.returncode == 2
    assert re.search(r"train-00000\.h5.*token of sample 77 is 31, out of range for 31", done.stderr)


def test_the_real_text(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "shared" / "data" / "ptb"
    if not source.is_dir():
        pytest.skip("the Penn Treebank text is not here")
    assert text.convert_ptb(source, tmp_path / "ptb") == {"train": 929589, "valid": 73760, "test": 82430}
    assert len(Shards(tmp_path / "ptb", "vocabulary")) == 10000


def test_the_shapes_of_the_paper() -> None:
    model = PtbLSTM()
    for layer in range(2):
        kernel = torch.cat([model.input_kernels[layer], model.state_kernels[layer]], 1).T
        assert tuple(kernel.shape) == (400, 800)
    assert all(0.09 < p.abs().max() <= 0.1 for p in model.parameters())


def test_it_is_the_lstm_of_torch() -> None:
    torch.manual_seed(0)
    model, reference = PtbLSTM(50, 16), nn.LSTM(16, 16, 2)
    for layer in range(2):
        for name, value in (
            ("weight_ih", model.input_kernels[layer]), ("weight_hh", model.state_kernels[layer]),
            ("bias_ih", model.biases[layer]), ("bias_hh", torch.zeros(64)),
        ):  # fmt: skip
            getattr(reference, f"{name}_l{layer}").data.copy_(value.data)
    tokens = torch.randint(0, 50, (3, 14))
    whole, _ = reference(model.embedding(tokens.t()))
    first, state = model(tokens[:, :6], model.start(3))
    second, _ = model(tokens[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)


@pytest.mark.parametrize("count", [1, 5, 64, 65])
def test_the_loss_in_chunks_is_the_plain_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "CHUNK", 16)
    torch.manual_seed(0)
    h, w, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((count, 7), (11, 7), (11,)))
    targets = torch.randint(0, 11, (count,))
    expected = F.cross_entropy(h @ w.t() + b, targets, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, (h, w, b))
    found = linear_cross_entropy(h, w, b, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, (h, w, b)), wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(h, w, b, targets), expected)


def test_large_logits_do_not_overflow() -> None:
    h, w = torch.full((2, 1), 300.0, requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(h, w, torch.zeros(2, requires_grad=True), torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 600.0
    assert torch.isfinite(w.grad).all()  # type: ignore[arg-type]


def test_dropout_belongs_to_the_row() -> None:
    """The same mask in any micro-batch; the stated share; other rows, layers and steps have others."""
    x, keys = torch.ones(20, 8, 500), torch.arange(8) + 12345
    whole = dropout(x, 0.65, keys, 0)
    assert torch.equal(whole[:, 3:5], dropout(x[:, 3:5], 0.65, keys[3:5], 0))
    kept = whole != 0
    assert kept.float().mean().item() == pytest.approx(0.35, abs=0.005)
    assert whole.unique().tolist() == pytest.approx([0, 1 / 0.35])
    for other in (dropout(x, 0.65, keys, 1), dropout(x, 0.65, keys + 1, 0)):
        both = (kept & (other != 0)).float().mean().item()
        assert both == pytest.approx(0.35**2, abs=0.005)
    flat = kept.float() - 0.35
    for shift, axis in ((1, 0), (1, 1), (1, 2), (7, 2)):
        assert (flat * flat.roll(shift, axis)).mean().abs() < 0.005


def sequential(model: PtbLSTM, tokens: torch.Tensor) -> float:
    """The mean loss of the words one after the other, the state never cut."""
    with torch.no_grad():
        states, _ = model(tokens[None, :-1], model.start(1))
        return F.cross_entropy(model.head(states[:, 0]), tokens[1:]).item()


class Tokens:
    """A text that is in memory."""

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens.numpy()

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, name: str, places: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return self.tokens[places].astype(np.int32)


def scored(model: PtbLSTM, tokens: torch.Tensor, size: int) -> tuple[float, int, list[int]]:
    """The mean loss by so many ranks, the words that were scored, and after how many others the first of each row was."""
    app = application("ptb-lstm", window=8, vocabulary=40, hidden=16)
    sums, places = {"loss": 0.0, "count": 0.0}, []
    for rank in range(size):
        for part in evaluation_batches(
            Tokens(tokens), app.decode, items=app.items(len(tokens)), micro_batch=2, rank=rank, size=size, device=CPU  # type: ignore[arg-type]
        ):  # fmt: skip
            with torch.no_grad():
                for name, value in app.evaluate(model, *part).items():
                    sums[name] += float(value)
            places += part[1].float().argmax(1).tolist()
    return sums["loss"] / sums["count"], int(sums["count"]), places


def text_and_model(words: int) -> tuple[torch.Tensor, PtbLSTM]:
    """A model to whose loss it matters what it has read before, some ten words of it."""
    torch.manual_seed(0)
    model = PtbLSTM(40, 16, init=1.0)
    with torch.no_grad():
        for bias in model.biases:
            bias[16:32] += 2  # of the forget gates
    return torch.randint(0, 40, (words,)), model


@pytest.mark.parametrize("words", [2, 3, 300, 1025, 1026, 3000, 5201])
def test_every_word_is_scored_once_and_after_its_context(words: int) -> None:
    tokens, model = text_and_model(words)
    for size in (1, 3):
        loss, count, places = scored(model, tokens, size)
        assert count == words - 1
        assert loss == pytest.approx(sequential(model, tokens), rel=2e-5)
        begins, *warmed = sorted(places)
        assert begins == 0
        assert all(place >= CONTEXT for place in warmed)


def test_rows_are_evaluated_piece_by_piece() -> None:
    """Else evaluation would take several times the memory of training; the loss is that of whole rows."""
    tokens, model = text_and_model(3000)
    app, lengths = application("ptb-lstm", window=8, vocabulary=40, hidden=16), []
    words, here = app.decode(Tokens(tokens), np.arange(3), None)
    with torch.no_grad():
        states, _ = model(words[:, :-1], model.start(3))
        whole = model.loss(states.transpose(0, 1)[here], words[:, 1:][here])
        model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        assert app.evaluate(model, words, here)["loss"].item() == pytest.approx(whole.item(), rel=1e-6)
    assert max(lengths) == 4 * 8
    assert sum(lengths) == here.shape[1]


def test_without_context_another_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above can fail."""
    monkeypatch.setattr("legw_hpc.apps.ptb_lstm.CONTEXT", 0)
    tokens, model = text_and_model(5201)
    loss, _, places = scored(model, tokens, 1)
    assert places == [0] * len(places)
    assert abs(loss / sequential(model, tokens) - 1) > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_resumes_in_the_middle_of_an_epoch_to_the_bit(
    precision: str, shards_of_text: Path, cli: Cli, tmp_path: Path
) -> None:
    """Carried state and dropout included."""
    words = training(shards_of_text, **{"options.dropout": 0.3, "clip_norm": 0.1, "precision": precision})
    assert cli("train", *words, "out=whole").returncode == 0
    assert cli("train", *words, "out=cut", "max_steps=17").returncode == 0
    assert cli("train", *words, "out=cut").returncode == 0
    whole, cut = (state(tmp_path / name) for name in ("whole", "cut"))
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name]), name
    assert torch.equal(whole["carried"], cut["carried"])
    assert (whole["carried"].shape, whole["carried"].dtype) == ((20, 2, 2, 12), torch.float32)
    assert set(read(tmp_path / "whole")[-1]["metrics"]) == {"perplexity", "loss", "valid_perplexity", "valid_loss"}


def test_the_large_recipe_trains(shards_of_text: Path, cli: Cli, tmp_path: Path) -> None:
    """Its own solver, clipping, dropout and decay; the network as wide as the test can afford."""
    words = [word for word in training(shards_of_text) if not word.startswith(("lr", "options.dropout"))][1:]
    done = cli("train", "ptb-lstm-large", *words, "options.hidden=24", "max_steps=3", "out=r")
    assert done.returncode == 0, done.stderr
    lines = runlog.read(tmp_path / "r")
    assert lines[0]["recipe"]["options"]["dropout"] == 0.65
    assert lines[-1]["steps"] == 3


def test_another_micro_batch_agrees_to_rounding(shards_of_text: Path, cli: Cli, tmp_path: Path) -> None:
    words = training(shards_of_text, **{"options.dropout": 0.3, "clip_norm": 0.1, "max_steps": 30})
    assert cli("train", *words, "out=one").returncode == 0
    assert cli("train", *words, "out=other", "max_steps=17").returncode == 0
    assert cli("train", *words, "out=other", "micro_batch=20").returncode == 0
    one, other = (state(tmp_path / name) for name in ("one", "other"))
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], rtol=1e-4, atol=1e-6)


def state(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return dict(torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True))


OPTIONS = {
    "unknown": ({"options.widht": 3}, "no option 'widht'"),
    "dropout of 1": ({"options.dropout": 1.0}, "dropout must be a number from 0 to below 1, not 1.0"),
    "text": ({"options.hidden": '"wide"'}, "hidden must be a whole number"),
    "half a layer": ({"options.layers": 1.5}, "layers must be a whole number from 1"),
    "no dropout, as a whole number": (
        {"options.dropout": 0, "options.init": 20},
        "init must be a number from 0 to below 10, not 20",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_are_refused(name: str, shards_of_text: Path, cli: Cli) -> None:
    changed, said = OPTIONS[name]
    done = cli("train", *training(shards_of_text, **changed))
    assert done.returncode == 2
    assert said in done.stderr


def test_shards_of_another_vocabulary_are_refused(shards_of_text: Path, cli: Cli) -> None:
    done = cli("train", *training(shards_of_text, **{"options.vocabulary": 30}))
    assert done.returncode == 2
    assert "token" in done.stderr


def test_tokens_without_a_bound_are_refused(shards_of_text: Path, cli: Cli, tmp_path: Path) -> None:
    """Nothing checks their values when the shards are opened: a token out of range would end the training in the loss."""
    folder = tmp_path / "text"
    shutil.copytree(shards_of_text, folder)
    index = json.loads((folder / INDEX).read_text())
    index["splits"]["train"]["fields"]["token"]["classes"] = None
    (folder / INDEX).write_text(json.dumps(index))
    done = cli("train", *training(folder), "out=run")
    assert done.returncode == 2
    assert f"{folder}: train field 'token' declares no number of classes, ptb-lstm wants 31" in done.stderr
    assert not (tmp_path / "run").exists()


def test_input_errors_are_of_one_kind() -> None:
    with pytest.raises(InputError, match="unknown application"):
        application("nothing")
