"""Text from prompts to pictures: files of prompts, encoded prompts, a teacher and a student that read them."""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.cli import run
from ard.core.errors import InputError, MissingExtraError
from ard.evaluation.images import LabelSampling, open_student
from ard.methods.collapse import FEWEST_PER_LABEL, probe_from, within_label_spread
from ard.methods.regression import given_by
from ard.networks.condition import Prompts, padded
from ard.networks.transformer import Transformer
from ard.pipeline import ARDPipeline, _check_text, student_model
from ard.student.folder import load_card, load_student
from ard.student.sampling import sample
from ard.student.student import StateKind
from ard.teacher.teacher import load_teacher, noise_for_seeds, solve_pf_ode
from ard.text.encoded import EncodedText, encode_prompts, load_text_manifest, text_hash
from ard.text.encoder import find_text_encoder, text_encoder
from ard.text.prompts import MAX_CHARACTERS, read_prompts
from ard.training.loop import TrainConfig
from ard.trajectories.manifest import load_manifest
from ard.trajectories.reader import TrajectoryReader

Made = Callable[..., str]
Refused = Callable[..., str]
CPU = torch.device("cpu")
WORDS = ("a", "red", "blue", "cat", "dog", "sits", "on", "the", "mat")
PROMPTS = ("A red cat", "a blue dog sits on the mat", "the mat ", "a red cat")
WIDTH = 10


def save_encoder(encoder: Path, tokenizer: Path, *, seed: int = 0) -> None:
    """A tiny random T5 and a tokenizer of whole words that ends every text, as transformers saves them."""
    import tokenizers
    import transformers

    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    fast.save_pretrained(tokenizer)
    torch.manual_seed(seed)
    shape = {"d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=len(vocabulary), feed_forward_proj="gated-gelu", **shape)
    transformers.T5EncoderModel(config).save_pretrained(encoder)


@torch.no_grad()
def save_transformer(folder: Path, **changes: Any) -> None:
    import diffusers

    shape = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2}
    shape |= {"sample_size": 8, "patch_size": 4, "caption_channels": WIDTH}
    network = diffusers.PixArtTransformer2DModel(**{**shape, **changes})
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        scale = 0.7 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, autoencoder_folder: Path) -> Path:
    """A PixArtAlphaPipeline with everything in it, random. Tests leave it as it is."""
    import diffusers

    folder = tmp_path_factory.mktemp("pixart")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    save_encoder(folder / "text_encoder", folder / "tokenizer")
    save_transformer(folder / "transformer")
    diffusers.DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    shutil.copytree(autoencoder_folder, folder / "vae")
    return folder


COLLECT = ["--num", 9, "--num-teacher-steps", 4, "--num-steps", 2, "--batch-size", 4, "--shard-size", 4]
COLLECT += ["--cfg-scale", 4.5, "--dtype", "float32", "--device", "cpu"]
TRAINING = ["--iterations", 3, "--batch-size", 4, "--warmup", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, pipeline: Path, made: Made) -> Path:
    """A folder with prompts.txt, text, teacher, store and student."""
    root = tmp_path_factory.mktemp("text")
    (root / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    words = ["text", "encode", "--prompts", root / "prompts.txt", "--encoder", pipeline, "--device", "cpu"]
    made(*words, "--out", root / "text")
    assert "text of width 10" in made("teacher", "import", pipeline, "--out", root / "teacher")
    words = ["collect", "--teacher", root / "teacher", "--text", root / "text", "--workers", 1, *COLLECT]
    made(*words, "--out", root / "store")
    made("distill", "--trajectories", root / "store", "--out", root / "student", *TRAINING)
    return root


@pytest.fixture
def root(originals: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(originals, tmp_path / "made"))


@pytest.fixture
def prompts(root: Path) -> Path:
    return root / "prompts.txt"


@pytest.fixture
def encode_options(prompts: Path, pipeline: Path) -> list[object]:
    return ["text", "encode", "--prompts", prompts, "--encoder", pipeline, "--device", "cpu"]


@pytest.fixture
def text(root: Path) -> Path:
    """The prompts, encoded."""
    return root / "text"


class TestPrompts:
    """Where prompts come from."""

    def test_a_text_file_has_one_per_line(self, prompts: Path) -> None:
        assert read_prompts(prompts) == PROMPTS
        prompts.write_bytes("erster\r\nzwölf".encode())
        assert read_prompts(prompts) == ("erster", "zwölf")

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("p.txt", 'a cat\n\nzwölf, "sie"\n'),
            ("p.TXT", 'a cat\r\n\r\nzwölf, "sie"'),
            ("p.csv", 'caption,prompt\nno,a cat\nno,\nno,"zwölf, ""sie"""\n'),
            ("p.csv", 'prompt\r\na cat\r\n""\r\n"zwölf, ""sie"""'),
            ("p.tsv", 'id\tprompt\n1\ta cat\n2\t\n3\t"zwölf, ""sie"""\n'),
            ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": ""}\n{"prompt": "zwölf, \\"sie\\""}'),
        ],
    )
    def test_a_mark_at_the_start_is_dropped_and_an_empty_prompt_is_one(
        self, name: str, content: str, mark: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(mark + content.encode())
        assert read_prompts(tmp_path / name) == ("a cat", "", 'zwölf, "sie"')

    @pytest.mark.parametrize("key", ["prompt", "text", "caption"])
    def test_json_lines_have_it_under_a_key(self, key: str, tmp_path: Path) -> None:
        lines = [json.dumps({key: prompt, "other": 1}) for prompt in PROMPTS]
        (tmp_path / "p.jsonl").write_text("\n".join(lines))
        assert read_prompts(tmp_path / "p.jsonl") == PROMPTS

    def test_the_first_key_wins(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text(json.dumps({"caption": "no", "prompt": "yes"}))
        assert read_prompts(tmp_path / "p.jsonl") == ("yes",)

    @pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
    def test_a_mark_before_the_first_prompt_is_no_part_of_it(self, name: str, tmp_path: Path) -> None:
        content = "a cat\n" if name == "p.txt" else json.dumps({"prompt": "a cat"})
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read_prompts(tmp_path / name) == ("a cat",)

    def test_a_data_set_on_disk_has_a_column(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        found = datasets.Dataset.from_dict({"image": [1, 2, 3, 4], "caption": list(PROMPTS)})
        found.save_to_disk(str(tmp_path / "set"))
        assert read_prompts(tmp_path / "set") == PROMPTS
        datasets.DatasetDict({"train": found}).save_to_disk(str(tmp_path / "splits"))
        with pytest.raises(InputError, match=r"several splits; name the folder of one of them: .*splits/train"):
            read_prompts(tmp_path / "splits")
        found.remove_columns("caption").save_to_disk(str(tmp_path / "none"))
        with pytest.raises(InputError, match="has the columns image; one called prompt, text or caption is needed"):
            read_prompts(tmp_path / "none")

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("p.txt", "", r"p\.txt holds no prompts"),
            ("p.txt", "a cat\n" + "x" * 10_000, rf"line 2, has 10000 characters; at most {MAX_CHARACTERS}"),
            ("p.jsonl", '{"prompt": "a cat"}\n{"image": 3}', r"line 2, has no text under prompt, text or caption"),
            ("p.jsonl", '{"prompt": 3}', r"line 1, has no text under"),
            ("p.jsonl", "a cat", r"line 1, is not JSON"),
            ("p.csv", "", r"p\.csv has the columns none; one called prompt, text or caption"),
            ("p.csv", "a cat\n", r"has the columns a cat; one called prompt, text or caption is needed"),
            ("p.csv", "image,prompt\n1\n", r"line 2, has no prompt: it ends before that column"),
            ("p.csv", 'prompt\n"a cat', r"is no row of a table \(unexpected end of data\)"),
            ("p.csv", "prompt\n", r"p\.csv holds no prompts"),
            ("p.docx", "a cat", r"ends in \.docx; allowed: \.txt"),
            ("missing.txt", None, r"missing\.txt does not exist"),
        ],
    )
    def test_what_holds_no_prompts_is_refused_and_the_line_named(
        self, name: str, content: str | None, words: str, tmp_path: Path
    ) -> None:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=words):
            read_prompts(tmp_path / name)

    def test_a_folder_that_is_no_data_set_and_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(InputError, match="is no data set that datasets saved to disk"):
            read_prompts(tmp_path)
        (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="is no text in UTF-8"):
            read_prompts(tmp_path / "p.txt")


def encoded_by_transformers(folder: Path, prompt: str, *, max_length: int = 120) -> tuple[Tensor, Tensor]:
    """T5's output for a prompt padded to the full length, as PixArt's pipelines call it, and the mask."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    given = tokenizer(
        [prompt.lower().strip()], padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(given.input_ids, attention_mask=given.attention_mask)[0][0], given.attention_mask[0].bool()


class TestEncode:
    """ard text encode."""

    def test_it_keeps_what_pixarts_pipelines_read(self, text: Path, pipeline: Path) -> None:
        opened = EncodedText(text)
        given = opened.condition(torch.tensor([1, 0, 3, 2]))
        assert (len(opened), len(given)) == (4, 4)
        for row, prompt in enumerate([PROMPTS[1], PROMPTS[0], PROMPTS[3], PROMPTS[2]]):
            wanted, mask = encoded_by_transformers(pipeline, prompt)
            ours = given.tokens[row][given.mask[row]]
            assert ours.dtype is torch.bfloat16
            torch.testing.assert_close(ours.float(), wanted[mask], rtol=2**-8, atol=1e-6)
        wanted, mask = encoded_by_transformers(pipeline, "")
        torch.testing.assert_close(given.null.float(), wanted[mask], rtol=2**-8, atol=1e-6)
        assert given.mask.shape == (4, 120)

    def test_each_different_prompt_is_kept_once_under_its_hash_without_padding(self, text: Path) -> None:
        tensors = load_file(text / "text-000000.safetensors")
        lengths = {text_hash(prompt): count for prompt, count in {"": 1, "a red cat": 4, "the mat": 3}.items()}
        lengths[text_hash("a blue dog sits on the mat")] = 8
        assert {name: len(tensor) for name, tensor in tensors.items()} == lengths
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}

    def test_a_prompt_is_cut_to_the_tokens_that_are_read(
        self, encode_options: list[object], tmp_path: Path, made: Made
    ) -> None:
        made(*encode_options, "--max-tokens", 3, "--out", tmp_path / "short")
        given = EncodedText(tmp_path / "short").condition(torch.arange(4))
        assert given.mask.sum(1).tolist() == [3, 3, 3, 3]

    def test_the_same_command_again_says_that_it_is_there(
        self, encode_options: list[object], text: Path, made: Made, contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        before = contents(text)
        assert "is there already: 4 prompts, 3 different ones" in made(*encode_options, "--out", text)
        assert contents(text) == before

    @pytest.mark.slow
    def test_a_killed_run_goes_on_to_the_same_bits(
        self, tmp_path: Path, pipeline: Path, made: Made, killed: Callable[..., None], contents: Any
    ) -> None:
        path = tmp_path / "many.txt"
        path.write_text("\n".join(f"a cat {word} {other}" for word in WORDS for other in WORDS))
        words = ["text", "encode", "--prompts", path, "--encoder", pipeline, "--device", "cpu", "--out"]
        made(*words, tmp_path / "whole")
        killed(["os.fsync:5"], *words, tmp_path / "parts")  # Two for the list, two for the first file.
        assert (tmp_path / "parts/text-000000.safetensors").exists()
        with pytest.raises(InputError, match="run the same ard text encode command again"):
            EncodedText(tmp_path / "parts")
        made(*words, tmp_path / "parts")
        assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
        assert len(contents(tmp_path / "parts")) == 3

    def test_only_what_is_missing_or_damaged_is_encoded(self, text: Path) -> None:
        asked: list[list[str]] = []
        before = (text / "text-000000.safetensors").read_bytes()
        (text / "text-000000.safetensors").write_bytes(before[:100])
        opened = load_text_manifest(text)[0]

        def encode(texts: Any) -> list[Tensor]:
            asked.append(list(texts))
            return [torch.zeros(1, WIDTH, dtype=torch.bfloat16) for _ in texts]

        encode_prompts(text, opened, encode, progress=lambda _: None)
        encode_prompts(text, opened, encode, progress=lambda _: None)
        assert asked == [["", "a red cat", "a blue dog sits on the mat", "the mat"]]
        change(text / "text.json", prompts=["a cat"])
        encode_prompts(text, dataclasses.replace(opened, prompts=("a cat",)), encode, progress=lambda _: None)
        assert asked[1:] == [["", "a cat"]]

    def test_what_a_kill_in_the_first_write_leaves_is_removed(
        self, encode_options: list[object], text: Path, tmp_path: Path, made: Made, leftover: Any, dead: int
    ) -> None:
        (tmp_path / "new").mkdir()
        leftover(tmp_path / "new", dead)
        made(*encode_options, "--out", tmp_path / "new")
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["text-000000.safetensors", "text.json"]
        assert torch.equal(EncodedText(tmp_path / "new")._null, EncodedText(text)._null)

    def test_a_flipped_bit_is_found_when_it_is_read(self, text: Path) -> None:
        data = bytearray((text / "text-000000.safetensors").read_bytes())
        data[-1] ^= 1
        (text / "text-000000.safetensors").write_bytes(data)
        with pytest.raises(InputError, match=r"text-000000\.safetensors is damaged: .* run the same ard text encode"):
            EncodedText(text)

    def test_a_folder_of_version_0_1_0_which_has_no_checksums_is_read(
        self, encode_options: list[object], text: Path, made: Made
    ) -> None:
        new = EncodedText(text).condition(torch.arange(4))
        encoder, tensors = load_text_manifest(text)[0].encoder, load_file(text / "text-000000.safetensors")
        (text / "text-000000.safetensors").unlink()
        save_file(tensors, text / "text-000000.safetensors", {"encoder": encoder})
        plain = json.loads((text / "text.json").read_text())
        plain.pop("shards")
        (text / "text.json").write_text(json.dumps(plain))
        old = EncodedText(text).condition(torch.arange(4))
        assert all(torch.equal(getattr(old, field), getattr(new, field)) for field in ("tokens", "mask"))
        assert "is there already" in made(*encode_options, "--out", text)

    def test_the_encoder_is_freed_at_the_end(self, pipeline: Path) -> None:
        card = find_text_encoder(pipeline, max_tokens=None, precision="float32")
        assert card.max_tokens == 120
        with text_encoder(card, CPU) as encode:
            assert encode(["a cat"])[0].shape == (3, WIDTH)
        with pytest.raises(RuntimeError, match="meta"):
            encode(["a cat"])

    def test_bits_do_not_depend_on_the_prompts_of_other_groups(self, pipeline: Path) -> None:
        texts = [f"a {word}" for word in WORDS * 4]
        with text_encoder(find_text_encoder(pipeline, max_tokens=None, precision="float32"), CPU) as encode:
            whole, part = encode(texts), encode(texts[16:])
        assert all(torch.equal(one, other) for one, other in zip(whole[16:], part, strict=True))

    def test_a_folder_with_other_prompts_or_another_encoder_is_left_alone(
        self, encode_options: list[object], text: Path, prompts: Path, tmp_path: Path, refused: Refused
    ) -> None:
        other = tmp_path / "other"
        save_encoder(other, other, seed=1)
        words = ["--encoder", other, "--max-tokens", 120, "--out", text]
        assert "holds other encoded prompts (encoder " in refused(*encode_options, *words)
        assert "holds other encoded prompts (encoder " in refused(*encode_options, "--max-tokens", 60, "--out", text)
        prompts.write_text("a cat\n")
        assert "holds other encoded prompts (prompts ['A red cat', " in refused(*encode_options, "--out", text)
        assert "holds other files and no text.json" in refused(*encode_options, "--out", other)

    def test_a_full_disk_is_told_in_one_line_and_the_command_goes_on_later(
        self,
        encode_options: list[object],
        tmp_path: Path,
        refused: Refused,
        made: Made,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "No space left on device" in refused(*encode_options, "--out", tmp_path / "text")
        made(*encode_options, "--out", tmp_path / "text")
        assert len(EncodedText(tmp_path / "text")) == 4

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda folder: change(folder / "text_encoder/config.json", model_type="bert"), "holds a bert; --encoder"),
            (
                lambda folder: change(folder / "text_encoder/config.json", relative_attention_max_distance="a"),
                "cannot be loaded: ",
            ),
            (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer does not exist"),
            (
                lambda folder: change(folder / "model_index.json", _class_name="Other"),
                "add --max-tokens, 120 for PixArt",
            ),
            (lambda folder: shrink(folder / "text_encoder/model.safetensors"), "lacks encoder."),
            (lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{}"), "has no tokenizer: "),
        ],
    )
    def test_an_encoder_that_cannot_be_used_is_refused(
        self,
        spoil: Callable[[Path], object],
        words: str,
        prompts: Path,
        pipeline: Path,
        tmp_path: Path,
        refused: Refused,
    ) -> None:
        parts = ("model_index.json", "text_encoder", "tokenizer")
        folder = tmp_path / "pipeline"
        shutil.copytree(pipeline, folder, ignore=lambda _, names: [name for name in names if name in TOP - {*parts}])
        spoil(folder)
        line = refused("text", "encode", "--prompts", prompts, "--encoder", folder, "--out", tmp_path / "new")
        assert words in line

    @pytest.mark.parametrize("missing", ["sentencepiece", "protobuf"])
    def test_a_vocabulary_that_needs_another_package_says_which(
        self, missing: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        for name in ("sentencepiece", "protobuf"):
            monkeypatch.setattr(transformers.utils, f"is_{name}_available", lambda name=name: name != missing)
        (tmp_path / "spiece.model").write_bytes(b"")
        card = find_text_encoder(pipeline, max_tokens=None, precision="float32")
        with (
            pytest.raises(MissingExtraError, match=rf"package {missing}, .* pip install '.\[text\]'"),
            text_encoder(dataclasses.replace(card, tokenizer=tmp_path), CPU),
        ):
            pass

    def test_packages_that_are_not_installed_are_named(
        self, encode_options: list[object], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = ["--out", tmp_path / "new"]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "transformers", None)
            line = refused(*encode_options, *out)
            assert "this needs the package transformers" in line
            assert "[text]" in line
        monkeypatch.setitem(sys.modules, "datasets", None)
        line = refused(*encode_options, "--prompts", tmp_path, *out)
        assert "this needs the package datasets" in line
        assert "[data]" in line


TOP = {"transformer", "scheduler", "vae", "model_index.json", "text_encoder", "tokenizer"}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shrink(path: Path) -> None:
    weights = load_file(path)
    weights.pop(next(name for name in weights if name.endswith("layer_norm.weight")))
    save_file(weights, path, {"format": "pt"})


class TestCommands:
    """From a PixArt pipeline to a student's pictures."""

    def test_a_trajectory_is_the_guided_teachers_for_its_prompt(self, root: Path) -> None:
        manifest, reader = (
            load_manifest(root / "store")[0],
            TrajectoryReader(root / "store", state=StateKind.X_T, num_steps=2),
        )
        assert (manifest.num_classes, manifest.num_conditions) == (0, 4)
        assert reader.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
        loaded, noise = load_teacher(root / "teacher", CPU), noise_for_seeds(range(4, 8), (4, 8, 8))
        given = EncodedText(root / "text").condition(torch.arange(4))
        wanted = solve_pf_ode(loaded, noise, given, ode=manifest.ode, kept=manifest.kept).x_t
        found = reader.read(torch.arange(4, 8)).states
        assert torch.equal(found, wanted)
        assert torch.equal(reader.condition(reader.labels[4:8]).tokens, given.tokens)
        assert (wanted[0, -1] - wanted[1, -1]).abs().max() > 1e-3

    @pytest.mark.parametrize("model", ["student", "teacher"])
    def test_prompts_given_now_are_drawn_as_if_they_had_been_encoded_before(
        self, model: str, root: Path, tmp_path: Path, made: Made, pipeline: Path
    ) -> None:
        drawing = ["sample", f"--{model}", root / model, "--vae", pipeline / "vae", "--device", "cpu"]
        drawing += ["--num-teacher-steps", 3] if model == "teacher" else []
        given = ["--prompt", PROMPTS[2], PROMPTS[0], "--text-encoder", pipeline]
        made(*drawing, *given, "--out", tmp_path / "given.npz")
        made(
            *drawing,
            "--text",
            root / "text",
            "--labels",
            "2,0",
            "--seeds",
            "1000000-1000001",
            "--out",
            tmp_path / "b.npz",
        )
        with np.load(tmp_path / "given.npz") as ours, np.load(tmp_path / "b.npz") as theirs:
            assert ours["labels"].tolist() == [0, 1]
            assert np.array_equal(ours["arr_0"], theirs["arr_0"])
        made(*drawing, *given, "--out", tmp_path / "folder")
        record = json.loads((tmp_path / "folder/samples.json").read_text())
        assert record["labels"] == {"0": PROMPTS[2], "1": PROMPTS[0]}

    def test_a_sheet_has_the_prompts_below_its_pictures(
        self, root: Path, tmp_path: Path, made: Made, pipeline: Path
    ) -> None:
        options = ["--vae", pipeline / "vae", "--seeds", "0-3", "--out", tmp_path / "a.png", "--device", "cpu"]
        made("sample", "--student", root / "student", *options)
        with Image.open(tmp_path / "a.png") as page:
            assert page.height > 2 + 128 + 2, "there is a line of text"

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--prompt", "a cat"], "--prompt needs --text-encoder"),
            (["--prompt", "a cat", "--text", "TEXT"], "two sources of prompts"),
            (["--prompt", "a cat", "--text-encoder", "OTHER"], "is not the text encoder that"),
            (["--prompt", "x" * 10_000, "--text-encoder", "PIPELINE"], "has 10000 characters"),
            (["--labels", "a red cat"], "'a red cat' is no number or range"),
        ],
        ids=["no encoder", "two sources", "another encoder", "too long", "by name"],
    )
    def test_prompts_that_cannot_be_drawn_are_refused(
        self, options: list[str], told: str, root: Path, tmp_path: Path, refused: Made, pipeline: Path
    ) -> None:
        save_encoder(tmp_path / "other/text_encoder", tmp_path / "other/tokenizer", seed=1)
        (tmp_path / "other/model_index.json").write_text((pipeline / "model_index.json").read_text())
        places = {"TEXT": root / "text", "OTHER": tmp_path / "other", "PIPELINE": pipeline}
        words = [places.get(word, word) for word in options] + ["--vae", pipeline / "vae"]
        assert told in refused("sample", "--student", root / "student", *words, "--out", tmp_path / "a.png")

    def test_a_student_learns_from_it_and_draws_pictures(
        self, root: Path, tmp_path: Path, made: Made, pipeline: Path, complaint: Made
    ) -> None:
        drawing = ["sample", "--student", root / "student", "--vae", pipeline / "vae", "--device", "cpu"]
        made(*drawing, "--seeds", "0-5", "--out", tmp_path / "grid.png")
        assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
        made(*drawing, "--grid", "--teacher-rows", "both", "--seeds", "0-2", "--out", tmp_path / "models.png")
        made(*drawing, "--speed", "fast", "--seeds", "0-5", "--out", tmp_path / "fast.png")
        latents = drawn(root, [2, 0])
        again = drawn(root, [0, 2])
        torch.testing.assert_close(latents, again.flip(0), rtol=0, atol=1e-5 * float(latents.abs().max()))
        line = complaint(*drawing, "--labels", "4", "--out", tmp_path / "x.png")
        assert "label 4 is out of range; allowed: 0 to 3" in line

    def test_other_prompts_of_the_same_encoder_can_be_drawn_and_another_encoders_cannot(
        self, root: Path, tmp_path: Path, made: Made, pipeline: Path, prompts: Path, refused: Refused
    ) -> None:
        prompts.write_text("a cat on a dog\n")
        options = ["text", "encode", "--prompts", prompts, "--device", "cpu"]
        made(*options, "--encoder", pipeline, "--out", tmp_path / "new")
        save_encoder(tmp_path / "other", tmp_path / "other", seed=1)
        made(*options, "--encoder", tmp_path / "other", "--max-tokens", 120, "--out", tmp_path / "foreign")
        drawing = ["sample", "--student", root / "student", "--vae", pipeline / "vae", "--device", "cpu"]
        made(*drawing, "--text", tmp_path / "new", "--seeds", "0-1", "--out", tmp_path / "new.png")
        line = refused(*drawing, "--text", tmp_path / "foreign", "--seeds", "0-1", "--out", tmp_path / "x.png")
        assert "is of another encoder" in line
        shutil.copytree(root / "student", root / "other")
        plain = json.loads((root / "other/config.json").read_text())
        change(root / "other/config.json", text={**plain["text"], "encoder": "0" * 16})
        several = [*drawing[:3], root / "other", *drawing[3:], "--grid", "--teacher-rows", "none"]
        line = refused(*several, "--out", tmp_path / "x.png")
        assert f"than {root / 'other'} learned from (0000000000000000)" in line

    def test_a_discriminator_can_be_added(self, root: Path, tmp_path: Path, made: Made) -> None:
        options = ["--adversarial", "--real", "teacher", "--adversarial-warmup", 1, *TRAINING]
        words = ["distill", "--resume-from", root / "student", "--out", tmp_path / "gan"]
        made(*words, "--trajectories", root / "store", *options)
        assert load_card(tmp_path / "gan").adversarial

    def test_what_a_discriminators_student_is_probed_with_shows_its_own_prompts(self, root: Path) -> None:
        card = load_card(root / "student")
        reader = TrajectoryReader(root / "store", state=card.student.state, num_steps=card.student.num_steps)
        teacher = load_teacher(root / "teacher", CPU)
        probe = probe_from(reader, teacher, CPU)
        assert isinstance(probe.condition, Prompts)
        assert Counter(probe.labels.tolist()) == dict.fromkeys(range(4), FEWEST_PER_LABEL), "a prompt's spread is seen"
        wanted = solve_pf_ode(teacher, probe.noise, probe.condition, ode=reader.manifest.ode, kept=(4,)).x_t[:, -1]
        assert torch.equal(probe.images, wanted)
        alike = dataclasses.replace(probe, images=probe.images[:1].expand_as(probe.images))
        assert within_label_spread(probe.images, probe.labels) > 100 * within_label_spread(alike.images, alike.labels)
        wanted = reader.condition(probe.labels)
        assert torch.equal(probe.condition.tokens, wanted.tokens)
        assert torch.equal(probe.condition.mask, wanted.mask)

    def test_prompts_are_read_ahead_with_their_trajectories(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        card = load_card(root / "student")
        reader = TrajectoryReader(root / "store", state=card.student.state, num_steps=card.student.num_steps)
        threads, condition = [], reader.condition
        monkeypatch.setattr(
            reader, "condition", lambda labels: threads.append(threading.current_thread().name) or condition(labels)
        )
        given_at = given_by(reader, TrainConfig(iterations=3, batch_size=2), pin=False)
        for number in range(3):
            given = given_at(number)
            assert len(given.condition) == len(given.states) == 2
        assert threads == ["ard-read-ahead"] * 3

    @pytest.mark.slow
    def test_workers_do_not_change_a_byte(
        self, root: Path, made: Made, contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        words = ["collect", "--teacher", root / "teacher", "--text", root / "text", "--workers", 2, *COLLECT]
        made(*words, "--out", root / "again")
        assert contents(root / "again") == contents(root / "store")
        assert len(contents(root / "again")) == 4

    def test_where_the_prompts_lie_is_no_part_of_a_stores_identity(
        self, root: Path, tmp_path: Path, made: Made
    ) -> None:
        elsewhere = shutil.copytree(root / "text", tmp_path / "elsewhere")
        words = ["collect", "--teacher", root / "teacher", "--text", elsewhere, "--workers", 1, *COLLECT]
        made(*words, "--out", root / "store")
        made(*words, "--out", root / "again", "--num", 4)
        name = "traj-000000.safetensors"
        assert (root / "again" / name).read_bytes() == (root / "store" / name).read_bytes()

    def test_prompts_that_no_trajectory_reads_are_told(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["collect", "--teacher", root / "teacher", "--text", root / "text", *COLLECT, "--num", 3]
        assert run([str(word) for word in [*words, "--out", tmp_path / "few", "--dry-run"]]) == 0
        assert "1 of 4 prompts have no trajectory: --num is 3, and 4 takes them all" in capsys.readouterr().err

    def test_artefacts_move_together(self, root: Path, tmp_path: Path) -> None:
        there = root.rename(tmp_path / "there")
        moved = TrajectoryReader(there / "store", state=StateKind.X_T, num_steps=2)
        assert moved.text is not None
        card = load_card(there / "student")
        assert card.text is not None
        assert card.text.folder(there / "student") == there / "text"

    def test_other_prompts_in_the_place_of_the_stores_are_found(self, root: Path, refused: Refused) -> None:
        change(root / "text/text.json", prompts=["a red cat", "the mat"])
        line = refused("distill", "--trajectories", root / "store", "--out", root / "new", *TRAINING)
        assert "holds other prompts than those that" in line

    def test_a_teacher_that_reads_text_needs_some_of_its_width_and_others_take_none(
        self, root: Path, toys: Path, tmp_path: Path, refused: Refused, made: Made
    ) -> None:
        text, out = root / "text", ["--out", tmp_path / "new", "--device", "cpu"]
        collect_text = ["collect", "--teacher", root / "teacher"]
        assert "reads text; give it encoded prompts with --text" in refused(*collect_text, *out)
        words = ["collect", "--teacher", toys / "teacher", "--text", text, *out]
        assert "has no meaning" in refused(*words)
        save_transformer(tmp_path / "wide", caption_channels=12)
        made("teacher", "import", tmp_path / "wide", "--out", tmp_path / "other")
        line = refused("collect", "--teacher", tmp_path / "other", "--text", text, *out)
        assert "has text of width 10, and" in line
        own = json.loads((root / "teacher/config.json").read_text())
        changes = {**own, "imported": {**own["imported"], "max_tokens": 300}}
        change(tmp_path / "other/config.json", **changes)
        shutil.copy(root / "teacher/model.safetensors", tmp_path / "other")
        line = refused("collect", "--teacher", tmp_path / "other", "--text", text, *out)
        assert "has prompts of at most 120 tokens, and" in line
        assert "reads 300; encode them with --max-tokens 300" in line
        line = refused(*collect_text, "--text", text, "--cfg-scale", 0.5, *out)
        assert "cfg_scale is 0.5" in line

    def test_pictures_of_its_prompts_are_measured_and_its_attention_too(
        self, root: Path, tmp_path: Path, pipeline: Path, made: Made
    ) -> None:
        text = root / "text"
        found = open_student(
            root / "student", seeds=range(4), labels=LabelSampling.BALANCED, vae=pipeline / "vae", text=text, device=CPU
        )
        ours = torch.cat(list(found.batches(range(4), 2)))
        drawing = ["sample", "--student", root / "student", "--vae", pipeline / "vae", "--device", "cpu"]
        made(*drawing, "--seeds", "0-3", "--batch-size", 2, "--out", tmp_path / "pictures.npz")
        assert torch.equal(ours, torch.from_numpy(np.load(tmp_path / "pictures.npz")["arr_0"]))
        assert found.facts["text_hash"] == load_card(root / "student").text.hash
        made("analyze", "attention", "--student", root / "student", "--num", 4, "--out", tmp_path, "--device", "cpu")
        own = json.loads((tmp_path / "attention.json").read_text())["rows"]
        moved = root.rename(tmp_path / "moved")  # With its prompts apart, as where a student was handed on.
        (moved / "text").rename(tmp_path / "text")
        words = ["analyze", "attention", "--student", moved / "student", "--text", tmp_path / "text", "--num", 4]
        made(*words, "--out", tmp_path / "again", "--device", "cpu")
        again = json.loads((tmp_path / "again/attention.json").read_text())["rows"]
        assert [row["share"] for row in again] == [row["share"] for row in own]

    def test_its_students_have_numbers(self, root: Path, tmp_path: Path, made: Made) -> None:
        words = ["--student", root / "student", "--num", 100, "--device", "cpu"]
        told = made("evaluate", *words, "--json", tmp_path / "numbers.json")
        assert "on features of the teacher's block" in told
        rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
        assert [row["model"] for row in rows] == ["teacher", "untrained", "ard"]
        assert rows[2]["paired_mse"] > rows[0]["paired_mse"] == 0
        assert "k = 1" in made("analyze", "errors", *words, "--out", tmp_path / "errors")
        assert "GMAC" in made("analyze", "pareto", *words, "--rounds", 1, "--out", tmp_path / "pareto")

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["bench", "collect", "--model", "TEACHER"], "reads text; the benchmarks time networks with classes only"),
            (["analyze", "solvers", "--teacher", "TEACHER", "--solvers", "ddim", "--out", "x"], "with classes only"),
            (["flops", "--model", "tiny/2", "--text-tokens", "9"], "tiny/2 reads no text; leave it out"),
            (
                ["sample", "--student", "STUDENT", "--vae", "VAE", "--text", "STORE", "--out", "x"],
                "is no folder of encoded prompts",
            ),
        ],
        ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else "",
    )
    def test_what_it_cannot_serve_says_so_in_one_line(
        self, words: list[str], told: str, root: Path, tmp_path: Path, refused: Refused, pipeline: Path
    ) -> None:
        places = {
            "TEACHER": root / "teacher",
            "STUDENT": root / "student",
            "STORE": root / "store",
            "VAE": pipeline / "vae",
            "x": tmp_path / "x",
        }
        assert told in refused(*[places.get(word, word) for word in words])
        assert not (tmp_path / "x").exists()


class TestExport:
    """`ard export` of a student that reads text, and its pipeline."""

    SEEDS = range(1_000_000, 1_000_004)

    @pytest.fixture
    def exporting(self, root: Path, tmp_path: Path, pipeline: Path) -> list[object]:
        """The command without an encoder."""
        words: list[object] = ["export", "--student", root / "student", "--vae", pipeline / "vae"]
        return [*words, "--samples", 4, "--out", tmp_path / "handed/on", "--device", "cpu"]

    @pytest.fixture
    def loaded(
        self, exporting: list[object], tmp_path: Path, pipeline: Path, made: Made, root: Path
    ) -> Callable[..., ARDPipeline]:
        """Export with the encoder, when all that it came from is gone."""

        def load(*words: object) -> ARDPipeline:
            made(*exporting, "--text-encoder", pipeline, *words)
            root.rename(tmp_path / "elsewhere")
            found = ARDPipeline.from_pretrained(tmp_path / "handed/on")
            found.set_progress_bar_config(disable=True)
            return found

        return load

    def test_embeddings_draw_the_pictures_of_their_prompts(
        self, loaded: Callable[..., ARDPipeline], tmp_path: Path
    ) -> None:
        pipe = loaded()
        given = EncodedText(tmp_path / "elsewhere/text").condition(torch.arange(2))
        noise = noise_for_seeds(range(2), (4, 8, 8))
        wanted = pipe(prompt=given, latents=noise, output_type="latent").images
        for tokens, mask in ((given.tokens, given.mask), (given.tokens.float().numpy(), given.mask.long().numpy())):
            embeddings = {"prompt_embeds": tokens, "prompt_attention_mask": mask}
            assert torch.equal(pipe(**embeddings, latents=noise, output_type="latent").images, wanted)

    def test_weights_stored_in_8_bits_draw_what_the_rounded_ones_draw(
        self, loaded: Callable[..., ARDPipeline], tmp_path: Path
    ) -> None:
        pipe, noise = loaded(), noise_for_seeds(range(2), (4, 8, 8))
        given = EncodedText(tmp_path / "elsewhere/text").condition(torch.arange(2))
        exact = pipe(prompt=given, latents=noise, output_type="latent").images
        pipe.student.to(torch.bfloat16).enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        rounded = pipe(prompt=given, latents=noise, output_type="latent").images
        assert 0 < (rounded - exact).abs().mean() < 0.2 * exact.abs().mean()

    def test_prompts_draw_what_ard_sample_draws_to_the_bit(
        self,
        root: Path,
        tmp_path: Path,
        pipeline: Path,
        made: Made,
        loaded: Callable[..., ARDPipeline],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        drawing = ["sample", "--student", root / "student", "--vae", pipeline / "vae", "--device", "cpu"]
        for out in ("s.npz", "s.png"):
            made(*drawing, "--seeds", f"{self.SEEDS[0]}-{self.SEEDS[-1]}", "--out", tmp_path / out)
        pipe, folder = loaded(), tmp_path / "handed/on"
        generators = [torch.Generator().manual_seed(seed) for seed in self.SEEDS]
        pictures = np.stack([np.asarray(one) for one in pipe(prompt=PROMPTS, generator=generators).images])
        assert np.array_equal(pictures, np.load(tmp_path / "s.npz")["arr_0"])
        with Image.open(folder / "samples.png") as ours, Image.open(tmp_path / "s.png") as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        index = json.loads((folder / "model_index.json").read_text())
        assert index["text_encoder"] == ["transformers", "T5EncoderModel"]
        assert index["tokenizer"][0] == "transformers"
        texts = [path for path in folder.rglob("*") if path.suffix in {".json", ".md"}]
        assert not [path for path in texts if str(pipeline) in path.read_text()]  # Nor where it was on this machine.
        card = (folder / "README.md").read_text()
        assert "![Samples of the prompts in turn, seeds 1000000 to 1000003, not selected]" in card
        assert f"4 x 8 x 8 for a prompt; text of width 10, its encoder `{pipeline.name}` |" in card
        monkeypatch.chdir(folder.parent)
        names: dict[str, Any] = {}
        exec(*re.findall(r"```python\n(.*?)```", card, re.DOTALL), names)  # noqa: S102
        assert [picture.size for picture in names["images"]] == [(16, 16), (16, 16)]

    def test_a_saved_pipeline_and_num_images_per_prompt_and_offloading_draw_the_same(
        self, tmp_path: Path, loaded: Callable[..., ARDPipeline]
    ) -> None:
        def images(pipe: ARDPipeline, prompt: str | list[str], **options: Any) -> Tensor:
            generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
            return pipe(prompt=prompt, generator=generators, output_type="latent", **options).images

        pipe = loaded()
        wanted = images(pipe, ["a cat", "a cat", "the dog", "the dog"])
        assert (wanted[1] - images(pipe, "a cat", num_images_per_prompt=4)[1]).abs().max() == 0
        assert (wanted[2] - images(pipe, "a cat", num_images_per_prompt=4)[2]).abs().max() > 1e-3
        pipe.save_pretrained(tmp_path / "again")
        again = ARDPipeline.from_pretrained(tmp_path / "again")
        again.set_progress_bar_config(disable=True)
        again.enable_model_cpu_offload(device="cpu")
        assert torch.equal(images(again, ["a cat", "the dog"], num_images_per_prompt=2), wanted)

    def test_an_encoder_that_computed_in_bfloat16_does_so_again(
        self, root: Path, prompts: Path, tmp_path: Path, pipeline: Path, made: Made, loaded: Callable[..., ARDPipeline]
    ) -> None:
        words = ["text", "encode", "--prompts", prompts, "--encoder", pipeline, "--device", "cpu"]
        made(*words, "--precision", "bfloat16", "--out", root / "rounded")
        plain = json.loads((root / "student/config.json").read_text())["text"]
        text = EncodedText(root / "rounded")
        reference = dataclasses.asdict(text.reference(seen_from=root / "student"))
        change(root / "student/config.json", text={**plain, **reference})
        wanted, exact = text.condition(torch.arange(4)).tokens, EncodedText(root / "text").condition(torch.arange(4))
        for pipe in (loaded(), ARDPipeline.from_pretrained(tmp_path / "handed/on", dtype=torch.float32)):
            assert torch.equal(pipe._encoded(PROMPTS).tokens, wanted)
        assert not torch.equal(exact.tokens, wanted)

    def test_without_an_encoder_it_draws_encoded_prompts_only(
        self, exporting: list[object], root: Path, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "no text encoder comes along" in made(*exporting)
        pipe = ARDPipeline.from_pretrained(tmp_path / "handed/on")
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (2, 0)]
        given = EncodedText(root / "text").condition(torch.tensor([2, 0]))
        assert torch.equal(pipe(prompt=given, generator=generators, output_type="latent").images, drawn(root, [2, 0]))
        narrow = padded([torch.zeros(2, 9)], null=torch.zeros(1, 9), length=3)
        for words, told in (
            ({"prompt": "a cat"}, "has no text encoder: give one to ard export with --text-encoder"),
            ({"prompt": 3}, "prompt is 3; a text, a list of them, or encoded prompts are expected"),
            ({"prompt": ["a cat", 3]}, r"prompt is \['a cat', 3\]; a text, a list of them"),
            ({"prompt_embeds": torch.ones(2, 3)}, "prompt_embeds is 2 x 3; this student needs prompts x tokens x 10"),
            ({"prompt_embeds": torch.ones(1, 3, 9)}, "prompt_embeds is 1 x 3 x 9; this student needs"),
            (
                {"prompt_embeds": torch.ones(1, 3, 10), "prompt_attention_mask": torch.ones(1, 2)},
                "prompt_attention_mask is 1 x 2; a row for each of 1 prompts is needed",
            ),
            ({"prompt": "a cat", "prompt_embeds": torch.ones(1, 3, 10)}, "are two prompts; give one of them"),
            ({"prompt": "a cat", "negative_prompt": "blurry"}, "guidance is learned, with the teacher's scale 4.5"),
            ({"prompt": []}, "prompt is empty; this student reads text"),
            ({"class_labels": 1}, "reads text, it has no classes: give prompt in place of class_labels"),
            ({"prompt": narrow}, "the prompts have text of width 9, and this student reads 10"),
        ):
            with pytest.raises(InputError, match=told) as refusal:
                pipe(**words)
            assert "\n" not in str(refusal.value)
        monkeypatch.chdir(tmp_path / "handed")
        card = (tmp_path / "handed/on/README.md").read_text().replace("FOLDER", str(root / "text"))
        names: dict[str, Any] = {}
        exec(*re.findall(r"```python\n(.*?)```", card, re.DOTALL), names)  # noqa: S102
        assert len(names["images"]) == 2

    def test_an_encoder_that_does_not_fit_the_student_is_refused(
        self, exporting: list[object], tmp_path: Path, made: Made, make_carded_student: Callable[..., Any]
    ) -> None:
        made(*exporting)
        student = ARDPipeline.from_pretrained(tmp_path / "handed/on").student
        encoder = SimpleNamespace(config=SimpleNamespace(d_model=9))
        with pytest.raises(InputError, match="makes text of width 9, and the student reads 10"):
            _check_text(student, encoder, object(), 3)
        with pytest.raises(InputError, match="needs its tokenizer and max_tokens"):
            _check_text(student, encoder, None, 3)
        with pytest.raises(InputError, match="knows classes, no text: leave out the text encoder"):
            _check_text(student_model(*make_carded_student()), encoder, object(), 3)

    def test_prompts_that_are_elsewhere_give_no_samples(
        self, exporting: list[object], root: Path, tmp_path: Path, made: Made, pipeline: Path
    ) -> None:
        (root / "text").rename(root / "moved")
        assert "no samples are drawn: the prompts that" in made(*exporting, "--text-encoder", pipeline)
        assert not (tmp_path / "handed/on/samples.png").exists()
        assert "is there already" in made(*exporting, "--text-encoder", pipeline)

    def test_an_encoder_that_is_not_the_students_is_refused(
        self, exporting: list[object], toys: Path, tmp_path: Path, pipeline: Path, refused: Refused
    ) -> None:
        save_encoder(tmp_path / "other", tmp_path / "other", seed=1)
        line = refused(*exporting, "--text-encoder", tmp_path / "other")
        assert "read up to 120 tokens, is not the text encoder that" in line
        line = refused(*exporting, "--text-encoder", pipeline, "--max-tokens", 60)
        assert "read up to 60 tokens, is not the text encoder that" in line
        line = refused(*exporting, "--text-encoder", toys / "teacher")
        assert "--text-encoder takes a folder of the type t5" in line
        assert "--max-tokens 60 has no meaning without --text-encoder" in refused(*exporting, "--max-tokens", 60)
        classes = ["export", "--student", toys / "student", "--out", tmp_path / "new", "--device", "cpu"]
        assert "classes; leave it out" in refused(*classes, "--text-encoder", pipeline)


def drawn(root: Path, numbers: list[int]) -> Tensor:
    """The last states of a student for some prompts, each from its own noise."""
    student, _ = load_student(root / "student", CPU)
    noise = noise_for_seeds(torch.tensor(numbers), (4, 8, 8))
    return sample(student, noise, condition=EncodedText(root / "text").condition(torch.tensor(numbers)))[:, -1]


def test_what_came_later_is_left_out_of_older_artefacts(toys: Path, root: Path) -> None:
    plain = json.loads((toys / "store/manifest.json").read_text())
    assert "text" not in plain
    assert not {"text", "position_scale"} & json.loads((toys / "teacher/config.json").read_text())["network"].keys()
    assert "text" not in json.loads((toys / "student/config.json").read_text())
    network = load_teacher(root / "teacher", CPU).network
    assert isinstance(network, Transformer)
    assert dataclasses.asdict(network.config)["text"] == {"width": WIDTH, "picture_size": None}
