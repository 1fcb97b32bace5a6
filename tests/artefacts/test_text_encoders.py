"""Text encoders as people have them: any form of weights and tokenizer is read, what cannot be is told at the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.files import read_json, write_json
from ard.text.encoder import find_text_encoder, num_cut, open_tokenizer, text_encoder

Made = Callable[..., str]
CPU = torch.device("cpu")
SENTENCES = ("a red cat sits on the mat", "the dog and the house of the blue man", "with a fox in it")
SIZES = {"d_model": 10, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 60}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with a vocabulary of SentencePiece, and both forms of it. Tests leave it as it is."""
    import sentencepiece
    import transformers

    folder = tmp_path_factory.mktemp("t5")
    (folder / "words.txt").write_text("\n".join(SENTENCES * 20))
    marks = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"), model_prefix=str(folder / "spiece"), vocab_size=32, **marks
    )
    for name in ("words.txt", "spiece.vocab"):
        (folder / name).unlink()
    transformers.T5TokenizerFast.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    network = transformers.T5EncoderModel(transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu"))
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(published, tmp_path / "t5"))


def encoded(folder: Path, texts: tuple[str, ...] = (*SENTENCES, "")) -> list[Tensor]:
    with text_encoder(find_text_encoder(folder, max_tokens=60, precision="float32"), CPU) as encode:
        return encode(texts)


def keep(folder: Path, *names: str) -> None:
    """Of the tokenizer's files only these."""
    for name in {"spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} - {*names}:
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "names",
    [
        ("tokenizer.json",),
        ("spiece.model",),
        ("spiece.model", "tokenizer_config.json"),
        ("tokenizer.json", "tokenizer_config.json"),
        ("spiece.model", "tokenizer.json"),
    ],
    ids=" ".join,
)
def test_a_tokenizer_is_read_from_whichever_of_its_files_are_there(
    names: tuple[str, ...], published: Path, folder: Path
) -> None:
    keep(folder, *names)
    for ours, wanted in zip(encoded(folder), encoded(published), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(
    "saved",
    [
        {"variant": "fp16"},
        {"max_shard_size": "1KB"},
        {"max_shard_size": "1KB", "variant": "fp16"},
        "pickled",
        "pipeline",
    ],
    ids=str,
)
def test_an_encoder_is_read_however_it_was_saved(saved: Any, published: Path, folder: Path, tmp_path: Path) -> None:
    import transformers

    network = transformers.T5EncoderModel.from_pretrained(published)
    (folder / "model.safetensors").unlink()
    if saved == "pickled":
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    elif saved == "pipeline":
        folder = tmp_path / "pipeline"
        shutil.copytree(published, folder / "text_encoder")
        shutil.copytree(published, folder / "tokenizer")
        (folder / "model_index.json").write_text("{}")
    else:
        network.save_pretrained(folder, **saved)
    for ours, wanted in zip(encoded(folder), encoded(published), strict=True):
        assert torch.equal(ours, wanted)


def remove_the_vocabulary(folder: Path) -> None:
    keep(folder, "tokenizer_config.json")


def remove_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def empty_the_vocabulary(folder: Path) -> None:
    """As transformers saves a T5Tokenizer that was made without its file."""
    keep(folder, "tokenizer.json", "tokenizer_config.json")
    plain = read_json(folder / "tokenizer.json")
    plain["model"]["vocab"] = [[piece, 0.0] for piece, _ in plain["model"]["vocab"][:4]]
    write_json(folder / "tokenizer.json", plain)


def damage_sentencepiece(folder: Path) -> None:
    keep(folder, "spiece.model")
    (folder / "spiece.model").write_bytes(b"no model")


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})


def writing(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocabulary": (remove_the_vocabulary, "has no tokenizer: no tokenizer.json and no spiece.model"),
    "an empty vocabulary": (empty_the_vocabulary, "blue, cat, dog, house and other words are all the same to it"),
    "a vocabulary of another encoder": (setting(vocab_size=12), "is of another encoder: it has the token"),
    "8 bits": (
        setting(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "has weights of few bits, which need the package bitsandbytes; install it, or give --encoder",
    ),
    "bits of an unknown kind": (setting(quantization_config=8), "quantization_config is 8; an object with"),
    "a tokenizer that is no JSON": (writing("tokenizer.json", b"\x00\xff{{"), "has no tokenizer: "),
    "a tokenizer of nothing": (writing("tokenizer.json", b"[]"), "has no tokenizer: "),
    "a damaged SentencePiece": (damage_sentencepiece, "has no tokenizer: "),
    "a git-LFS pointer": (
        writing("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a git-LFS pointer",
    ),
    "a web page": (writing("model.safetensors", b"<!DOCTYPE html><html>"), "model.safetensors is a web page"),
    "no weights": (remove_the_weights, "has no weights; allowed: model.safetensors"),
    "a huge width": (setting(d_model=10**15), "d_model is 1000000000000000; a whole number from 1"),
    "no width": (setting(d_model=None), "d_model is None; a whole number from 1"),
    "many layers": (setting(num_layers=10**9), "num_layers is 1000000000; a whole number from 1"),
    "heads in words": (setting(num_heads="two"), "num_heads is 'two'; a whole number from 1"),
    "an unknown activation": (setting(feed_forward_proj="gated-x-y"), "has no tokenizer: Class validation error"),
    "another width than the weights'": (setting(d_model=12), "or has it in another shape; give --encoder"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_encoder_that_cannot_be_used_is_refused_in_one_line(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, told = REFUSALS[case]
    spoil(folder)
    with pytest.raises(InputError) as refusal:
        encoded(folder)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600
    assert capfd.readouterr().err == ""


TOKENIZER_DAMAGES = {
    ("tokenizer.json", "model"): (None, [], {}, "x", {"type": "Unigram", "vocab": []}, {"type": "X"}),
    ("tokenizer.json", "added_tokens"): ([3], {"a": 1}, "x"),
    ("tokenizer.json", "post_processor"): ({"type": "X"}, 3),
    ("tokenizer_config.json", "tokenizer_class"): (3, "NoSuchTokenizer", []),
    ("tokenizer_config.json", "extra_ids"): ("x", -1, {}),
    ("tokenizer_config.json", "eos_token"): ([], 3, {"a": 1}),
}


@pytest.mark.parametrize("place", TOKENIZER_DAMAGES, ids=" ".join)
def test_a_damaged_tokenizer_is_read_or_told_in_one_line(place: tuple[str, str], folder: Path) -> None:
    name, field = place
    whole = json.loads((folder / name).read_text())  # With a length of 31 digits, which is transformers' own.
    for value in TOKENIZER_DAMAGES[place]:
        write_json(folder / name, {**whole, field: value})
        told, found = outcome(folder)
        assert "\n" not in told
        if told:
            assert str(folder) in told
        else:
            assert len({str(one.tolist()) for one in found}) == len(SENTENCES)


def outcome(folder: Path) -> tuple[str, list[Tensor]]:
    """The refusal, or what was encoded."""
    try:
        return "", encoded(folder, SENTENCES)
    except InputError as error:
        return str(error), []


def test_prompts_that_are_cut_are_counted(folder: Path) -> None:
    tokenizer = open_tokenizer(find_text_encoder(folder, max_tokens=20, precision="float32"))
    lengths = [len(one) for one in encoded(folder, SENTENCES)]
    texts = [*SENTENCES, SENTENCES[0], ""]
    for most in (1, min(lengths), max(lengths) - 1, max(lengths)):
        assert num_cut(tokenizer, texts, max_tokens=most) == sum(n > most for n in [*lengths, lengths[0], 1])


def test_the_command_tells_what_was_cut_and_what_is_empty(folder: Path, tmp_path: Path, made: Made) -> None:
    (tmp_path / "p.csv").write_text("prompt\n" + "\n".join([*SENTENCES, '""', "a cat"]))
    words = [
        "text",
        "encode",
        "--prompts",
        tmp_path / "p.csv",
        "--encoder",
        folder,
        "--max-tokens",
        8,
        "--device",
        "cpu",
    ]
    told = "5 prompts, 5 different ones; 3 of 5 prompts were cut at 8 tokens; 1 of 5 prompts are empty"
    plan = json.loads(made(*words, "--out", tmp_path / "text", "--dry-run"))
    assert plan["prompts"] == told
    assert told in made(*words, "--out", tmp_path / "text")
    assert told in made(*words, "--out", tmp_path / "text")
