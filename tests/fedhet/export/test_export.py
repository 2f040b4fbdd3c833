"""Exported models: adapters that peft loads with the run's outputs, full weights, model cards, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
import yaml
from peft import PeftModel
from pyarrow import parquet

from fedhet.cli import main
from fedhet.numerics.low_rank import factored, padded
from fedhet.runs.saved_run import Finished

COMMON = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "work.lr=0.01", "workers=0"]


def run(out: Path, *texts: str) -> Path:
    assert main.main(["run", *COMMON, *texts, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "stacked", "strategy=flora", "model.hidden=[24]", "budget.rank=2")


@pytest.fixture
def fedhet(capsys):
    def call(*arguments) -> tuple[int, str, str]:
        code = main.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def outputs(folder: Path) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A run's first module, some inputs, and what its final model says to them."""
    done = Finished.read(folder)
    world = done.world()
    x = world.dataset.x_test[:64]
    return world.model().module, x, done.model(world).predict(x)


def test_an_adapter_is_loaded_by_peft_and_gives_the_runs_outputs(fedhet, stacked, tmp_path):
    out = tmp_path / "adapter"
    code, told, err = fedhet("export", stacked, "--to", "adapter", "--out", out)
    assert (code, err) == (0, "") and told.splitlines()[-1] == str(out)
    first, x, wanted = outputs(stacked)
    plain = first(x).detach()
    model = PeftModel.from_pretrained(first, out).eval()
    assert torch.allclose(model(x), wanted, atol=1e-4) and not torch.allclose(plain, wanted, atol=1e-2)
    assert torch.allclose(model.merge_and_unload()(x), wanted, atol=1e-4)


def test_the_base_of_an_exported_adapter_is_the_initial_model(fedhet, stacked, tmp_path):
    assert fedhet("export", stacked, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    first, x, wanted = outputs(stacked)
    for p in first.parameters():
        torch.nn.init.zeros_(p)
    first.load_state_dict(safetensors.torch.load_file(tmp_path / "a" / "base.safetensors"))
    assert torch.allclose(PeftModel.from_pretrained(first, tmp_path / "a").eval()(x), wanted, atol=1e-4)


def test_warm_adapters_come_back_at_their_own_rank(fedhet, tmp_path):
    folder = run(tmp_path / "run", "strategy=fedit", "model.hidden=[24]", "space.rank=3")
    assert fedhet("export", folder, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 and not config["rank_pattern"]
    tensors = safetensors.torch.load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {3}


@pytest.mark.parametrize("most", [1, 4, 40])
def test_a_fixed_rank_holds_for_every_layer(fedhet, stacked, tmp_path, most):
    assert fedhet("export", stacked, "--to", "adapter", "--out", tmp_path / "a", "--max-rank", most)[0] == 0
    tensors = safetensors.torch.load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {most}
    first, x, wanted = outputs(stacked)
    close = torch.allclose(PeftModel.from_pretrained(first, tmp_path / "a").eval()(x), wanted, atol=1e-4)
    assert close == (most == 40)  # everything fits into 24 hidden units


def test_a_run_that_no_adapter_can_stand_for_says_why_and_what_to_do(fedhet, tmp_path):
    folder = run(tmp_path / "run", "strategy=fedavg", "data=synthetic", "data.samples=120", "partition=iid")
    code, told, err = fedhet("export", folder, "--to", "adapter", "--max-rank", 16, "--out", tmp_path / "a")
    assert code == 2 and str(tmp_path / "a") not in told and not (tmp_path / "a").exists()
    for part in ("biases as well", "names in the model: 1, 3", "strategy=flora", "--to merged"):
        assert part in err
    assert fedhet("export", folder, "--to", "merged", "--out", tmp_path / "a")[0] == 0


def test_merged_weights_are_the_runs(fedhet, stacked, tmp_path):
    code, told, _ = fedhet("export", stacked, "--to", "merged", "--out", tmp_path / "m")
    assert code == 0 and told == f"{tmp_path / 'm'}\n"
    first, x, wanted = outputs(stacked)
    first.load_state_dict(safetensors.torch.load_file(tmp_path / "m" / "model.safetensors"))
    assert torch.equal(first(x), wanted)


def test_the_card_says_where_the_model_comes_from(fedhet, stacked, tmp_path):
    assert fedhet("export", stacked, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    _, head, text = (tmp_path / "a" / "README.md").read_text().split("---\n", 2)
    row = json.loads((stacked / "result.json").read_text())
    assert yaml.safe_load(head) == {"tags": ["lora", "federated-learning", "fedhet", "flora"], "library_name": "peft"}
    assert f"| rounds (versions) | {row['versions']} |" in text and "| clients | 3 |" in text
    assert f"| accuracy | {row['accuracy']:.4f} |" in text
    assert all(f"| {client} | 2 | {row['versions']} |" in text for client in range(3))
    assert "| `1` |" in text and "| `3` |" in text


def test_layers_with_convolutions_and_parameters_trained_whole_are_exported(fedhet, tmp_path):
    folder = run(
        tmp_path / "run", "strategy=flora", "model=resnet8", "model.width=4", "budget.rank=2", "data=synthetic",
        "data.shape=[1,8,8]", "data.samples=120", r"space.targets=[all-linear,'.*path\.[03]']",
        r"space.whole=['.*path\.[14]\.weight']", "partition=iid",
    )  # fmt: skip
    assert fedhet("export", folder, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    first, x, wanted = outputs(folder)
    assert torch.allclose(PeftModel.from_pretrained(first, tmp_path / "a").eval()(x), wanted, atol=1e-3)
    assert "Saved whole" in (tmp_path / "a" / "README.md").read_text()


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A tiny GPT-2, whose layers are stored transposed, adapted on short synthetic sequences."""
    folder = tmp_path_factory.mktemp("language")
    config = transformers.GPT2Config(vocab_size=70, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "base")
    rows = {"text": ["abc defg hij klm nop qrs tuv wxyz " * 6] * 4}
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table(rows), folder / f"{split}-0.parquet")
    return run(
        folder / "run", "strategy=flora", "model=causal_lm", f"model.path={folder / 'base'}", "data=characters",
        f"data.path={folder}", "data.length=12", f"data.cache={folder / 'cache'}", "partition=iid", "budget.rank=2",
        "space.targets=[c_attn]",
    )  # fmt: skip


def test_an_adapter_of_a_transformers_model_goes_onto_that_model(fedhet, language, tmp_path):
    assert fedhet("export", language, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    base = Finished.read(language).cfg["model"]["path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    _, x, wanted = outputs(language)
    plain = model.eval()(x).logits
    assert torch.allclose(PeftModel.from_pretrained(model, tmp_path / "a").eval()(x).logits, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"] == ["c_attn"]
    assert not (tmp_path / "a" / "base.safetensors").exists()


def test_an_adapter_onto_a_finished_runs_model_brings_that_model(fedhet, language, tmp_path):
    cfg = Finished.read(language).cfg
    data = [f"data.{key}={cfg['data'][key]}" for key in ("path", "length", "cache")]
    folder = run(
        tmp_path / "run", "strategy=flora", "data=characters", *data, "partition=iid", "budget.rank=2", "seed=5",
        "space.targets=[c_proj]", "model=checkpoint", f"model.path={language}", "model@model.model=causal_lm",
        f"model.model.path={cfg['model']['path']}",
    )  # fmt: skip
    assert fedhet("export", folder, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    _, x, wanted = outputs(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "base")
    assert torch.allclose(PeftModel.from_pretrained(model, tmp_path / "a").eval()(x).logits, wanted, atol=1e-4)


def test_merged_transformers_models_load_by_themselves(fedhet, language, tmp_path):
    assert fedhet("export", language, "--to", "merged", "--out", tmp_path / "m")[0] == 0
    _, x, wanted = outputs(language)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(model(x).logits, wanted)


def test_an_untrained_new_head_is_exported(fedhet, tmp_path):
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    words = {w: n for n, w in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(tmp_path / "base")
    rows = {"text": ["a b c", "d e f g", "h i", "a a a"] * 6, "label": [0, 1, 1, 0] * 6}
    for split in ("train", "test"):
        parquet.write_table(pyarrow.table(rows), tmp_path / f"{split}-0.parquet")
    folder = run(
        tmp_path / "run", "strategy=flora", "model=sequence_classifier", f"model.path={tmp_path / 'base'}",
        "data=tokens", f"data.tokenizer={tmp_path / 'base'}", f"data.path={tmp_path}", "data.label=label",
        "data.length=6", f"data.cache={tmp_path / 'cache'}", "partition=iid", "budget.rank=2",
        "space.targets=[query,value]",
    )  # fmt: skip
    assert fedhet("export", folder, "--to", "adapter", "--out", tmp_path / "a")[0] == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    _, x, wanted = outputs(folder)
    mask = (x != 0).long()
    other = model.eval()(x, attention_mask=mask).logits  # by a head drawn now
    loaded = PeftModel.from_pretrained(model, tmp_path / "a").eval()
    assert torch.allclose(loaded(x, attention_mask=mask).logits, wanted, atol=1e-5)
    assert not torch.allclose(other, wanted, atol=1e-3)


def test_a_run_that_trained_everything_has_no_adapter(fedhet, tmp_path):
    folder = run(tmp_path / "run", "strategy=fedavg", "model=softmax")
    code, _, err = fedhet("export", folder, "--to", "adapter", "--out", tmp_path / "a")
    assert code == 2 and "--to merged" in err and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "adaptor"], "--to adaptor: use adapter or merged"),
        (["--to", "merged", "--max-rank", "4"], "--max-rank belongs to --to adapter"),
        (["--to", "adapter", "--max-rank", "0"], "max-rank"),
        (["--to", "merged", "data=mnist"], "data.path="),
    ],
)
def test_bad_arguments_write_nothing(fedhet, stacked, tmp_path, arguments, told):
    code, _, err = fedhet("export", stacked, *arguments, "--out", tmp_path / "a")
    assert code == 2 and told in err and not (tmp_path / "a").exists()


def test_a_folder_with_something_in_it_is_left_alone(fedhet, stacked, tmp_path):
    (tmp_path / "kept").write_text("mine")
    code, _, err = fedhet("export", stacked, "--to", "merged", "--out", tmp_path)
    assert code == 2 and "not empty" in err and [p.name for p in tmp_path.iterdir()] == ["kept"]


def noisy(d: int, k: int, rank: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(d, rank, generator=random).double() @ torch.randn(rank, k, generator=random).double()


@pytest.mark.parametrize("shape", [(40, 30), (1100, 1200)])
def test_the_rank_is_what_stands_above_the_floor(shape):
    matrix = noisy(*shape, 5)
    found = factored(matrix, floor=1e-6)
    assert found.rank == 5 and found.lost < 1e-6
    assert torch.allclose((found.left.double() @ found.right.double()), matrix, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 30), (1100, 1200)])
def test_a_cut_loses_what_the_best_approximation_loses(shape):
    matrix = noisy(*shape, 12)
    s = torch.linalg.svdvals(matrix)
    best = float((s[3:].square().sum() / s.square().sum()).sqrt())
    found = factored(matrix, floor=1e-6, most=3)
    assert found.rank == 3 and found.lost == pytest.approx(best, rel=1e-6)
    rest = (matrix - found.left.double() @ found.right.double()).norm() / matrix.norm()
    assert float(rest) == pytest.approx(best, rel=1e-5)


def test_padding_changes_no_product():
    found = factored(noisy(6, 4, 2), floor=1e-6)
    wide = padded(found, 7)
    assert wide.left.shape == (6, 7) and wide.right.shape == (7, 4)
    assert torch.allclose(wide.left @ wide.right, found.left @ found.right, atol=1e-6)
