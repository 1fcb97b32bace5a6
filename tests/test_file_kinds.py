"""Files of weights as people have them: what each is, by its content, and which of a folder's are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ard.core.errors import InputError
from ard.core.file_kinds import TRANSFORMERS_STEMS, WeightFiles, WeightsKind, kind_of_weights, weight_files
from ard.core.model_folder import load_weights, read_weights

STEM = "diffusion_pytorch_model"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2700000000\n"


def write(path: Path, *, old: bool = False) -> Path:
    tensors = {"weight": torch.ones(40, 40)}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_are_known_by_their_content(tmp_path: Path, suffix: str) -> None:
    kind = kind_of_weights(write(tmp_path / f"a{suffix}").rename(tmp_path / "nameless"))
    assert kind is (WeightsKind.SAFETENSORS if suffix == ".safetensors" else WeightsKind.ZIP)
    assert kind_of_weights(write(tmp_path / "old.pt", old=True)) is WeightsKind.PICKLE


def cut(suffix: str, kept: int) -> Callable[[Path], bytes]:
    return lambda folder: write(folder / f"whole{suffix}").read_bytes()[:kept]


NO_WEIGHTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a pointer": (lambda _: POINTER, "is a git-LFS pointer, which stands for a file: fetch the file itself"),
    "a page": (lambda _: b"\n<!DOCTYPE html><html>Sign in", "is a web page, which was saved in place of the file"),
    "an old page": (lambda _: b"<HTML><body>404", "is a web page"),
    "nothing": (lambda _: b"", "is damaged or half-written: it is empty"),
    "another format": (lambda _: b"GGUF" + bytes(99), "is a GGUF file, which is not read"),
    "noise": (lambda _: b"hello " * 99, "is damaged or half-written, or no file of weights"),
    "half of its tensors": (cut(".safetensors", 2000), "is cut off, 2000 of 64"),
    "half of its header": (cut(".safetensors", 20), "is cut off, 20 of"),
    "half of a torch file": (cut(".pt", 2000), "is cut off, its end is not there"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_was_fetched_in_place_of_weights_is_named(tmp_path: Path, case: str) -> None:
    content, words = NO_WEIGHTS[case]
    path = tmp_path / "weights.bin"
    path.write_bytes(content(tmp_path))
    with pytest.raises(InputError) as refusal:
        kind_of_weights(path)
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "none.pt", "does not exist")):
        with pytest.raises(InputError, match=words):
            kind_of_weights(path)


def test_our_own_reader_names_a_pointer_too(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(InputError, match="is a git-LFS pointer"):
        read_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_where_they_are_loaded(tmp_path: Path, value: float) -> None:
    network = nn.Linear(3, 2)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights["bias"][1] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors has NaN or infinity in bias; its training went wrong"):
        load_weights(network, tmp_path / "model.safetensors")


def index(folder: Path, name: str, *parts: str) -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"tensor {part}": part for part in parts}}))
    for part in parts:
        (folder / part).touch()


def test_full_precision_comes_before_a_variant_and_safetensors_before_bin(tmp_path: Path) -> None:
    names = [
        f"{STEM}.safetensors",
        f"{STEM}.bin",
        f"{STEM}.bf16.safetensors",
        f"{STEM}.fp16.safetensors",
        f"{STEM}.fp16.bin",
    ]
    for name in names:
        (tmp_path / name).touch()
    for name in names:
        variant = name.split(".")[1] if name.count(".") == 2 else ""
        assert weight_files(tmp_path) == WeightFiles((tmp_path / name,), variant)
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"has no weights; allowed: {STEM}.safetensors, in several files"):
        weight_files(tmp_path)


SHARDED = {
    f"{STEM}.safetensors.index.json": (f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors"),
    f"{STEM}.bin.index.json": (f"{STEM}-00001-of-00002.bin", f"{STEM}-00002-of-00002.bin"),
    f"{STEM}.safetensors.index.fp16.json": (
        f"{STEM}.fp16-00001-of-00002.safetensors",
        f"{STEM}.fp16-00002-of-00002.safetensors",
    ),
    "model.safetensors.index.json": ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "pytorch_model.bin.index.fp16.json": ("pytorch_model.fp16-00001-of-00001.bin",),
}


@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_found_by_their_index_and_a_missing_one_is_named(tmp_path: Path, name: str) -> None:
    index(tmp_path, name, *SHARDED[name])
    stems = (STEM,) if name.startswith(STEM) else TRANSFORMERS_STEMS
    found = weight_files(tmp_path, stems)
    assert [path.name for path in found.paths] == list(SHARDED[name])
    assert found.variant == ("fp16" if "fp16" in name else "")
    found.paths[0].unlink()
    with pytest.raises(InputError, match=f"lacks {found.paths[0].name}, which {name} names; fetch all parts"):
        weight_files(tmp_path, stems)


@pytest.mark.parametrize("mapping", [None, {}, {"a": "../outside.bin"}, {"a": 3}])
def test_an_index_that_names_no_files_beside_it_is_damaged(tmp_path: Path, mapping: object) -> None:
    (tmp_path / f"{STEM}.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    with pytest.raises(InputError, match="is damaged: weight_map names a file beside it"):
        weight_files(tmp_path)
