"""The engine gives what sentence-transformers gives, whatever the batch."""

import json
import random
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import save_model, write_json

from embedworker.errors import ConfigurationError, ModelError
from embedworker.model import BUNDLED_MODEL, Encoder, Tokens, open_encoder, torch_encoder
from embedworker.model.cpu import has_bfloat16
from embedworker.model.torch_encoder import TorchEncoder

ENGINES = ["torch", "openvino"]
PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: "}
TEXTS = [
    "서울에서 부산까지 기차로 얼마나 걸려?",
    "The quick brown fox jumps over the lazy dog.",
    "",
    "   ",
    "😀😀😀 👨‍👩‍👧‍👦",
    "passage: 이미 앞말이 있는 글",
    "query: already prefixed",
    "가나다라 " * 30,
    "a",
    "<s> </s> <pad> <mask>",
    "줄\n바꿈\tand\ttabs",
]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sum(one * other, axis=1)


def tiny(folder: Path, **options: object) -> TorchEncoder:
    encoder = open_encoder(str(folder), dtype="float32", device="cpu", **PREFIXES, **options)  # type: ignore[arg-type]  # options are of several types
    assert isinstance(encoder, TorchEncoder)
    return encoder


@pytest.fixture(params=ENGINES)
def encoder(request: pytest.FixtureRequest, tiny_model: Path) -> TorchEncoder:
    encoder = tiny(tiny_model, engine=request.param)
    assert str(encoder.notes["engine"]).lower().startswith(request.param)
    return encoder


@pytest.fixture(scope="module")
def openvino_encoder(bundled_model: Path) -> Encoder:
    assert bundled_model.is_dir()
    return open_encoder(BUNDLED_MODEL, dtype="float32", engine="openvino")


@pytest.mark.model
@pytest.mark.parametrize("engine", ["bundled_encoder", "openvino_encoder"])
@pytest.mark.slow
def test_the_bundled_model_equals_sentence_transformers(
    request: pytest.FixtureRequest, engine: str, bundled_model: Path
) -> None:
    bundled_encoder: Encoder = request.getfixturevalue(engine)
    plain = SentenceTransformer(str(bundled_model), device="cpu")
    for prefix, ours in (
        ("passage: ", bundled_encoder.encode_passages(TEXTS)),
        ("query: ", bundled_encoder.encode_queries(TEXTS)),
    ):
        theirs = plain.encode([prefix + text for text in TEXTS], normalize_embeddings=True)
        assert ours.dtype == np.float32
        assert ours.shape == (len(TEXTS), 384)
        np.testing.assert_allclose(cosines(ours, theirs), 1, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    cut = "가나다라마바사 " * 300
    theirs = plain.encode(["passage: " + cut], normalize_embeddings=True)
    np.testing.assert_allclose(
        cosines(bundled_encoder.encode_passages([cut]), theirs), 1, atol=1e-4
    )


@pytest.mark.model
@pytest.mark.slow
def test_a_text_alone_and_among_31_others(bundled_encoder: Encoder) -> None:
    texts = [f"{text[:20]} {i}" for i, text in enumerate((TEXTS * 3)[:32])]
    tokens = bundled_encoder.tokenize_passages(texts)
    together = bundled_encoder.encode_tokens(tokens)
    alone = np.concatenate([bundled_encoder.encode_tokens([t]) for t in tokens])
    np.testing.assert_allclose(cosines(together, alone), 1, atol=1e-4)


@pytest.mark.model
def test_the_bundled_model_reads_decomposed_korean(bundled_encoder: Encoder) -> None:
    text = "서울특별시 청계천에서 한글을 쓰다"
    one, other = bundled_encoder.encode_passages([text, unicodedata.normalize("NFD", text)])
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dense", [None, 16])
@pytest.mark.slow
def test_every_module_of_a_model_counts(
    tmp_path: Path,
    architecture: str,
    pooling: str,
    normalize: bool,
    dense: int | None,
    engine: str,
) -> None:
    folder = save_model(
        tmp_path / "model",
        architecture=architecture,
        pooling=pooling,
        normalize=normalize,
        dense=dense,
    )
    encoder = tiny(folder, engine=engine)
    plain = SentenceTransformer(str(folder), device="cpu")
    theirs = plain.encode(["passage: " + text for text in TEXTS], normalize_embeddings=True)
    ours = encoder.encode_passages(TEXTS)
    assert ours.shape == (len(TEXTS), dense or 32)
    np.testing.assert_allclose(cosines(ours, theirs), 1, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_pads_on_the_left(tmp_path: Path, engine: str) -> None:
    folder = save_model(tmp_path / "model", architecture="bert")  # positions count the padding
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "padding_side": "left"})
    plain = SentenceTransformer(str(folder), device="cpu")
    texts = ["a", "bcdefgh"]
    theirs = plain.encode(["passage: " + text for text in texts], normalize_embeddings=True)
    encoder = tiny(folder, engine=engine)
    ours = encoder.encode_tokens(encoder.tokenize_passages(texts))
    np.testing.assert_allclose(cosines(ours, theirs), 1, atol=1e-4)


@pytest.mark.parametrize("text", ["hello", "passage: hello", "passage: passage: hello", "query: x"])
def test_the_prefix_is_added_exactly_once(
    encoder: TorchEncoder, tiny_model: Path, text: str
) -> None:
    ids = [ord(c) for c in "passage: " + text]  # only to count: one byte is one token here
    (tokens,) = encoder.tokenize_passages([text])
    assert len(tokens) == len(ids) + 2
    (as_query,) = encoder.encode_queries([text])
    (as_passage,) = encoder.encode_passages([text])
    plain = SentenceTransformer(str(tiny_model), device="cpu")
    for vector, prefix in ((as_query, "query: "), (as_passage, "passage: ")):
        expected = plain.encode(prefix + text, normalize_embeddings=True)
        assert vector @ expected == pytest.approx(1, abs=1e-4)
    assert as_query @ as_passage < 0.9999


def test_long_texts_are_cut_behind_the_prefix_and_counted(encoder: TorchEncoder) -> None:
    short, exact, long = encoder.tokenize_passages(["x", "x" * 53, "x" * 54])
    assert (len(short), short.total, short.truncated) == (12, 12, False)
    assert (len(exact), exact.total, exact.truncated) == (64, 64, False)
    assert (len(long), long.total, long.truncated) == (64, 65, True)
    assert long.ids[:10] == short.ids[:10]
    assert long.ids[-1] == short.ids[-1]  # </s> stays


def test_very_long_texts_are_read_in_pieces(
    encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["가나다 " * 100, "b", "c" * 500, "", "d" * 30]
    whole = encoder.tokenize_passages(texts)
    monkeypatch.setattr(torch_encoder, "CHARACTERS_AT_ONCE", 100)
    sizes: list[int] = []
    encode = encoder._encode_texts

    def watched(batch: list[str]) -> object:
        sizes.append(sum(map(len, batch)))
        return encode(batch)

    monkeypatch.setattr(encoder, "_encode_texts", watched)
    assert encoder.tokenize_passages(texts) == whole
    assert max(sizes) <= 100


@pytest.mark.model
def test_a_long_text_that_is_nearly_all_space(
    bundled_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "시작" + " " * 500 + "끝 " * 600
    (whole,) = bundled_encoder.tokenize_passages([text])
    monkeypatch.setattr(torch_encoder, "CHARACTERS_AT_ONCE", 100)
    (pieces,) = bundled_encoder.tokenize_passages([text])
    assert pieces == whole
    assert whole.truncated


@pytest.mark.parametrize("text", ["😀" * 40, "한글만 있는 글", "👨‍👩‍👧‍👦", "ㅋㅋㅋㅋ"])
def test_text_without_ascii_is_kept(encoder: TorchEncoder, text: str) -> None:
    empty, full = encoder.tokenize_passages(["", text])
    assert full.total == empty.total + len(text.encode())
    one, other = encoder.encode_passages(["", text])
    assert one @ other < 0.999


def test_rows_come_back_in_the_order_given(encoder: TorchEncoder) -> None:
    texts = ["x" * (i * 7 % 40) + str(i) for i in range(50)]
    shuffled = texts.copy()
    random.Random(1).shuffle(shuffled)
    one = dict(zip(texts, encoder.encode_passages(texts), strict=True))
    for text, vector in zip(shuffled, encoder.encode_passages(shuffled), strict=True):
        assert one[text] @ vector == pytest.approx(1, abs=1e-5)


def test_no_batch_exceeds_the_budget(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny(tiny_model, token_budget=128)
    widths: list[int] = []
    encode = encoder.encode_tokens

    def watched(batch: list[Tokens]) -> object:
        widths.append(len(batch) * max(map(len, batch)))
        return encode(batch)

    monkeypatch.setattr(encoder, "encode_tokens", watched)
    encoder.encode_passages(["x" * (i % 30) for i in range(60)])
    assert len(widths) > 10
    assert max(widths) <= 128


def test_nothing_gives_nothing(encoder: TorchEncoder) -> None:
    assert encoder.tokenize_passages([]) == []
    assert encoder.encode_passages([]).shape == (0, 32)
    assert encoder.encode_queries([]).shape == (0, 32)
    assert encoder.encode_tokens([]).shape == (0, 32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_vector_without_direction_names_its_text(
    encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def broken(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vectors = torch.ones(len(features["input_ids"]), 32)
        vectors[2] = value
        return {"sentence_embedding": vectors}

    monkeypatch.setattr(encoder._model, "forward", broken)
    with pytest.raises(ModelError, match="index 2 of a batch of 3"):
        encoder.encode_tokens(encoder.tokenize_passages(["a", "b", "c"]))


def test_out_of_memory_is_a_memory_error(
    encoder: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = encoder.tokenize_passages(["a", "b"])
    for error, expected in (
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("something else"), RuntimeError),
    ):

        def broken(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(encoder._model, "forward", broken)
        with pytest.raises(expected):
            encoder.encode_tokens(tokens)


def test_a_lone_surrogate_is_named(encoder: TorchEncoder) -> None:
    with pytest.raises(ModelError, match=r"index 1 is not valid Unicode .* at character 2"):
        encoder.encode_queries(["fine", "ab\ud800"])


def test_threads_do_not_disturb_each_other(encoder: TorchEncoder) -> None:
    # Setting truncation on a shared tokeniser while another thread reads it fails ("Already
    # borrowed"); ours is only ever read.
    texts = ["x" * (i % 60) for i in range(64)]
    expected = encoder.encode_passages(texts)
    results: list[np.ndarray] = []

    def work() -> None:
        results.extend(encoder.encode_passages(texts) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 20
    for result in results:
        np.testing.assert_allclose(cosines(result, expected), 1, atol=1e-5)


def resident() -> int:
    """Kilobytes this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
def test_a_long_run_in_threads_keeps_its_size(encoder: TorchEncoder) -> None:
    """Batches of ever other shapes, from several threads: memory does not grow with them."""
    chosen = random.Random(5)
    texts = ["가나다라 " * chosen.randint(1, 40) for _ in range(256)]

    def work(rounds: int) -> None:
        for _ in range(rounds):
            encoder.encode_passages(chosen.sample(texts, 32))

    def all_work(rounds: int) -> None:
        threads = [threading.Thread(target=work, args=(rounds,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)

    all_work(30)  # arenas and caches have their size then
    before = resident()
    all_work(150)
    grown = resident() - before
    assert grown < 40_000, f"{grown} kB in 600 batches of 32"


def test_openvino_says_what_it_computes_with(tiny_model: Path) -> None:
    exact = tiny(tiny_model, engine="openvino")
    asked = open_encoder(
        str(tiny_model), dtype="bfloat16", device="cpu", engine="openvino", **PREFIXES
    )
    assert exact.notes["dtype"] == "float32"
    # Where the processor has no bfloat16 it is not imitated.
    assert asked.notes["dtype"] == ("bfloat16" if has_bfloat16() else "float32")
    assert exact.fingerprint == asked.fingerprint == tiny(tiny_model).fingerprint
    vectors = asked.encode_passages(TEXTS)
    np.testing.assert_allclose(cosines(vectors, exact.encode_passages(TEXTS)), 1, atol=2e-3)


def test_openvino_is_for_processors(tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"EMBEDWORKER_DEVICE=cpu or EMBEDWORKER_ENGINE"):
        open_encoder(str(tiny_model), device="cuda", engine="openvino", **PREFIXES)


def test_openvino_is_an_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=r"pip install 'embedworker\[openvino\]'"):
        tiny(tiny_model, engine="openvino")


def test_half_precision_points_the_same_way(tiny_model: Path) -> None:
    exact = tiny(tiny_model)
    half = open_encoder(str(tiny_model), dtype="bfloat16", device="cpu", **PREFIXES)
    assert (exact.notes["dtype"], half.notes["dtype"]) == ("float32", "bfloat16")
    assert exact.fingerprint == half.fingerprint
    vectors = half.encode_passages(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(cosines(vectors, exact.encode_passages(TEXTS)), 1, atol=2e-3)


@pytest.mark.parametrize("level", ["AVX2", "avx512_core_vnni"])
def test_a_cap_on_the_instruction_set_takes_bfloat16_away(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert has_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", level)
    assert not has_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert has_bfloat16()
