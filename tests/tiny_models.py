"""Tiny random models, saved the way real ones are."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers import XLMRobertaModel as XLMRModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_model(
    folder: Path,
    *,
    dimensions: int = 32,
    pooling: str = "mean",
    max_tokens: int = 64,
    architecture: str = "bert",
    normalize: bool = True,
    dense: int | None = None,
    seed: int = 0,
) -> Path:
    """Save a random one-layer model with a byte tokeniser as a sentence-transformers folder."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 4 + 256,
        "hidden_size": dimensions,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "initializer_range": 0.3,
        "pad_token_id": 1,
    }
    if architecture == "bert":
        BertModel(BertConfig(max_position_embeddings=max_tokens, **sizes)).save_pretrained(folder)
    else:  # its positions start behind the padding id, so padding must be right
        config = XLMRobertaConfig(max_position_embeddings=max_tokens + 2, **sizes)
        XLMRModel(config).save_pretrained(folder)
    _save_tokenizer(folder, max_tokens)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": dimensions, f"pooling_mode_{_LEGACY[pooling]}": True},
    )
    if dense is not None:
        _save_dense(folder / "2_Dense", dimensions, dense)
        modules.append(("2_Dense", "Dense"))
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    return folder


def save_reranker(folder: Path, *, max_tokens: int = 256, labels: int = 1) -> Path:
    """Save a cross-encoder that ranks by the digit in a passage: 9 before 8, …, before none.

    Its weights are set by hand. Every token looks at all tokens alike and sees the sum of what they
    are; only digits are anything, each a direction of its own, which the head weighs by its value.
    The question must have no digit.
    """
    width = 32
    config = XLMRobertaConfig(
        vocab_size=4 + 256,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=max_tokens + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-9,
        pad_token_id=1,
        num_labels=labels,
    )
    model = XLMRobertaForSequenceClassification(config)
    _save_tokenizer(folder, max_tokens)
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    layer = model.roberta.encoder.layer[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
        for digit in range(10):
            model.roberta.embeddings.word_embeddings.weight[vocabulary[str(digit)], digit] = 1.0
        layer.attention.self.value.weight.copy_(torch.eye(width))
        layer.attention.output.dense.weight.copy_(torch.eye(width))
        model.classifier.dense.weight[0, :10] = 0.01 * torch.arange(1, 11)
        model.classifier.out_proj.weight[:, 0] = 5.0
    model.save_pretrained(folder)
    return folder


def cache_model(cache: Path, name: str, folder: Path) -> Path:
    """Put a folder where the hub's client keeps a downloaded model; returns the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


_LEGACY = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}


def _save_tokenizer(folder: Path, max_tokens: int) -> None:
    special: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*special, *alphabet])}
    inner = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    inner.add_special_tokens([AddedToken(piece, special=True) for piece in special])
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_tokens,
    ).save_pretrained(folder)


def _save_dense(folder: Path, inputs: int, outputs: int) -> None:
    from sentence_transformers.models import Dense

    folder.mkdir()
    Dense(inputs, outputs).save(str(folder))
