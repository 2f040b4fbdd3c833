"""Any causal language model or sequence classifier of the transformers library, from a folder or the hub, float32.

The module is `pretrained` inside a thin one that takes a batch of token numbers (n, length) and gives logits, so that
it trains and is scored like any other; adapters find its layers under `pretrained.`. `new` names the tensors of
`pretrained` that its files lack, such as those of a new head: they were drawn. `source` says where its files are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, float32, nn


class CausalLanguageModel(nn.Module):
    """Logits (n, length, vocabulary) of the token after each position."""

    def __init__(self, pretrained: nn.Module, new: frozenset[str], source: str | None) -> None:
        super().__init__()
        self.pretrained, self.new, self.source = pretrained, new, source

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pretrained(input_ids=x, use_cache=False).logits
        return out


class SequenceClassifier(nn.Module):
    """Logits (n, classes) of whole sequences; tokens of number `padding` are not attended to."""

    def __init__(self, pretrained: nn.Module, padding: int, new: frozenset[str], source: str | None) -> None:
        super().__init__()
        self.pretrained, self.padding, self.new, self.source = pretrained, padding, new, source

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pretrained(input_ids=x, attention_mask=(x != self.padding).long()).logits
        return out


def causal_lm(*, input_shape: tuple[int, ...], classes: int, path: str, revision: str | None = None) -> nn.Module:
    """A causal language model of transformers, from `path`: a folder, or an id on the hub at `revision`.

    Raises ValueError if it cannot be loaded, or its vocabulary or its positions are too few for the data.
    """
    pretrained, new = _load("AutoModelForCausalLM", input_shape, path, revision)
    vocabulary = int(pretrained.config.vocab_size)
    if classes > vocabulary:
        raise ValueError(f"model.path={path}: its vocabulary has {vocabulary} tokens, the data have {classes}")
    return CausalLanguageModel(pretrained, new, path)


def sequence_classifier(
    *, input_shape: tuple[int, ...], classes: int, path: str, revision: str | None = None
) -> nn.Module:
    """A sequence classifier of transformers; its head is new if the model has none for `classes` classes.

    Raises ValueError if it cannot be loaded, has no padding token, or its positions are too few for the data.
    """
    pretrained, new = _load("AutoModelForSequenceClassification", input_shape, path, revision, num_labels=classes)
    padding = pretrained.config.pad_token_id
    if padding is None:
        raise ValueError(f"model.path={path}: its configuration has no pad_token_id, so padding is not known")
    return SequenceClassifier(pretrained, int(padding), new, path)


def _load(
    kind: str, input_shape: tuple[int, ...], path: str, revision: str | None, **options: Any
) -> tuple[Any, frozenset[str]]:
    if len(input_shape) != 1:
        raise ValueError(f"this model takes sequences (length,), the data have {tuple(input_shape)}")
    import transformers

    logs = transformers.utils.logging
    loudness = logs.get_verbosity()
    logs.set_verbosity_error()  # that a new head is new
    logs.disable_progress_bar()
    try:
        model, told = getattr(transformers, kind).from_pretrained(
            path, revision=revision, dtype=float32, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.path={path} cannot be loaded: {why} (a folder with config.json and weights, or an id on the hub)"
        ) from None
    finally:
        logs.set_verbosity(loudness)
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and input_shape[0] > room:
        raise ValueError(f"model.path={path} has {room} positions, the data's sequences {input_shape[0]}")
    return model, frozenset(told["missing_keys"])
