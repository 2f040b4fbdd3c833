"""Base models for adapters: decoders with named projections, transformers' models from a folder, checkpoints."""

from __future__ import annotations

from functools import partial

import pytest
import safetensors.torch
import torch
import transformers

from clients.models.build import build
from clients.models.checkpoint import checkpoint
from clients.models.decoder import char_decoder
from clients.models.flops import forward_flops
from clients.models.pretrained import causal_lm, sequence_classifier
from clients.models.vision import mlp

TEXT = (12,)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a tiny Llama of random weights."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def tokens(n: int = 3, classes: int = 40) -> torch.Tensor:
    return torch.randint(1, classes, (n, *TEXT), generator=torch.Generator().manual_seed(0))


def test_the_decoder_looks_back_only_and_at_everything_before():
    model = char_decoder(input_shape=TEXT, classes=9, width=8, heads=2, depth=2).eval()
    x = tokens(1, 9)
    before = model(x)
    for at in range(TEXT[0]):
        changed = x.clone()
        changed[0, at] = (x[0, at] + 1) % 9
        moved = (model(changed) != before).any(-1)[0]
        assert not moved[:at].any() and moved[at:].all()


def test_the_decoder_is_torchs_own_encoder_with_the_same_weights():
    """The layer of torch, pre-norm and causal, given the same projections."""
    model = char_decoder(input_shape=TEXT, classes=9, width=8, heads=2, depth=1).eval()
    block = model.blocks[0]
    layer = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    ours = [block.attention.q_proj, block.attention.k_proj, block.attention.v_proj]
    layer.self_attn.in_proj_weight.data = torch.cat([p.weight for p in ours]).detach()
    layer.self_attn.in_proj_bias.data = torch.cat([p.bias for p in ours]).detach()
    layer.self_attn.out_proj.load_state_dict(block.attention.o_proj.state_dict())
    layer.linear1.load_state_dict(block.up.state_dict())
    layer.linear2.load_state_dict(block.down.state_dict())
    h = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.triu(torch.ones(12, 12, dtype=torch.bool), 1)
    assert torch.allclose(block(h), layer(h, src_mask=mask), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"width": 9, "heads": 2}, "width=9"), ({"depth": 0}, "depth=0"), ({"input_shape": (1, 8, 8)}, "sequences")],
)
def test_impossible_decoders_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        char_decoder(**{"input_shape": TEXT, "classes": 9, **arguments})


def test_a_language_model_gives_what_transformers_gives(llama):
    model = causal_lm(input_shape=TEXT, classes=40, path=llama).eval()
    again = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    x = tokens()
    assert model(x).shape == (3, 12, 40) and torch.equal(model(x), again(x).logits)


def test_a_language_model_trains_in_our_flat_storage(llama):
    model = build(partial(causal_lm, path=llama), TEXT, 40, seed=0)
    x = tokens(8)
    losses = []
    for _ in range(5):
        losses.append(float(model.gradient(x[:, :-1], x[:, 1:])))
        model.params.add_(model.grad, alpha=-0.5)
    assert losses[-1] < losses[0] and forward_flops(model.module, TEXT) > 0


def test_padding_does_not_change_what_a_classifier_says(bert):
    model = build(partial(sequence_classifier, path=bert), TEXT, 3, seed=0).module.eval()
    x = tokens(2)
    x[:, 8:] = 0
    assert model(x).shape == (2, 3)
    assert torch.allclose(model(x), model(x[:, :8]), atol=1e-5)


def test_a_new_head_is_the_same_for_the_same_seed(bert):
    heads = [
        build(partial(sequence_classifier, path=bert), TEXT, 3, seed).tree()["pretrained.classifier.weight"].clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"classes": 41}, "40 tokens, the data have 41"),
        ({"input_shape": (33,)}, "32 positions, the data's sequences 33"),
        ({"input_shape": (3, 4, 4)}, r"sequences \(length,\)"),
    ],
)
def test_data_that_do_not_fit_a_language_model_are_named(llama, arguments, told):
    with pytest.raises(ValueError, match=told):
        causal_lm(**{"input_shape": TEXT, "classes": 40, "path": llama, **arguments})


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path, llama):
    with pytest.raises(ValueError, match=r"cannot be loaded: .*config\.json") as caught:
        causal_lm(input_shape=TEXT, classes=40, path=str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no pad_token_id"):
        sequence_classifier(input_shape=TEXT, classes=2, path=llama)


def test_a_checkpoint_starts_from_the_files_weights(tmp_path):
    source = mlp(input_shape=(4,), classes=3, hidden=[5])
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        made = checkpoint(input_shape=(4,), classes=3, path=str(path), model=partial(mlp, hidden=[5]))
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), source.parameters(), strict=True))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (partial(mlp, hidden=[6]), r"1\.weight has shape \(5, 4\) in the file, \(6, 4\)"),
        (partial(mlp, hidden=[5, 3]), "the file has no tensor '5.weight'"),
        (char_decoder, "no tensor"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path, other, told):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(mlp(input_shape=(4,), classes=3, hidden=[5]).state_dict(), path)
    with pytest.raises(ValueError, match=told):
        checkpoint(input_shape=(4,), classes=3, path=str(path), model=other)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        checkpoint(input_shape=(4,), classes=3, path=str(tmp_path / "absent"), model=mlp)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken"):
        checkpoint(input_shape=(4,), classes=3, path=str(tmp_path), model=mlp)
