"""A folder with one small artefact of every kind that `ard` reads, made by the commands themselves."""

import contextlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ard.cli import run

CPU = ["--device", "cpu"]
TEACH = ["--model", "tiny/4", "--iterations", "4", "--batch-size", "8", "--warmup", "0", *CPU]
COLLECT = ["--num", "6", "--num-teacher-steps", "4", "--num-steps", "2", "--shard-size", "4", "--batch-size", "4"]
COLLECT += ["--workers", "1", *CPU]
DISTILL = ["--num-steps", "2", "--iterations", "4", "--batch-size", "4", "--warmup", "0", *CPU]
KEPT = [*DISTILL, "--checkpoint-every", "2", "--keep-checkpoints", "0", "--log-every", "1"]
CACHE = ["--vae", "vae", "--size", "8", *CPU]
SCORE = ["--metrics", "is", "--inception", "tensors.pth", *CPU]  # Weights that no command takes, at the end.
DRAW = ["--labels", "0-1", "--seeds", "0", *CPU]
T5 = {"vocab_size": 12, "d_model": 10, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
PIXART = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2}
PIXART |= {"sample_size": 8, "patch_size": 4, "caption_channels": 10}
VAE = {"block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}

# What reads an artefact: (the folder or file in the world, commands that must read it and end within seconds).
READERS: dict[str, tuple[list[str], ...]] = {
    "teacher": (
        ["collect", "--teacher", "teacher", "--out", "new", *COLLECT],
        ["teach", "--out", "teacher", *TEACH],
        ["flops", "--teacher", "teacher", "--num-steps", "2"],
    ),
    "store": (
        ["distill", "--trajectories", "store", "--out", "new", *DISTILL],
        ["collect", "--teacher", "teacher", "--out", "store", *COLLECT],
        ["trajectories", "verify", "store"],
        ["trajectories", "info", "store"],
    ),
    "student": (
        ["sample", "--student", "student", "--out", "new.png", *DRAW],
        ["distill", "--trajectories", "store", "--out", "student", *DISTILL],
        ["export", "--student", "student", "--out", "new", "--samples", "0", *CPU],
        ["distill", "--resume-from", "student", "--trajectories", "store", "--out", "new", "--iterations", "2", *CPU],
    ),
    "half": (["distill", "--trajectories", "store", "--out", "half", *KEPT],),
    "exported": (["export", "--student", "student", "--out", "exported", "--samples", "0", *CPU],),
    "DiT.pt": (["teacher", "import", "DiT.pt", "--num-heads", "2", "--out", "new"],),
    "DiT.safetensors": (["teacher", "import", "DiT.safetensors", "--num-heads", "2", "--out", "new"],),
    "pixart": (
        ["teacher", "import", "pixart", "--out", "new"],
        ["text", "encode", "--prompts", "prompts.txt", "--encoder", "pixart", "--out", "new", *CPU],
    ),
    "dit": (["teacher", "import", "dit", "--out", "new"],),
    "prompts.txt": (["text", "encode", "--prompts", "prompts.txt", "--encoder", "pixart", "--out", "new", *CPU],),
    "prompts.jsonl": (["text", "encode", "--prompts", "prompts.jsonl", "--encoder", "pixart", "--out", "new", *CPU],),
    "text": (
        ["collect", "--teacher", "text_teacher", "--text", "text", "--out", "new", "--dtype", "float32", *COLLECT],
        ["text", "encode", "--prompts", "prompts.txt", "--encoder", "pixart", "--out", "text", *CPU],
    ),
    "pictures": (
        ["images", "cache", "--images", "pictures", *CACHE, "--out", "new"],
        ["evaluate", "--samples", "pictures/a", *SCORE],
    ),
    "pictures.tar": (["images", "cache", "--images", "pictures.tar", *CACHE, "--out", "new"],),
    "vae": (["images", "cache", "--images", "pictures", *CACHE, "--out", "new"],),
    "cache": (["images", "cache", "--images", "pictures", *CACHE, "--out", "cache"],),
    "samples.npz": (["evaluate", "--samples", "samples.npz", *SCORE],),
    "reference.npz": (
        ["evaluate", "--samples", "pictures/a", "--ref", "reference.npz", "--inception", "tensors.pth", *CPU],
    ),
    "tensors.pth": (["evaluate", "--samples", "pictures/a", *SCORE],),
}  # fmt: skip


def make_world(folder: Path) -> None:
    """Fill `folder`. Everything that the commands import is imported afterwards."""
    folder.mkdir()
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        publish_networks()
        draw_pictures()
        _call("teach", "--out", "teacher", *TEACH)
        _call("collect", "--teacher", "teacher", "--out", "store", *COLLECT)
        _call("distill", "--trajectories", "store", "--out", "student", *DISTILL)
        _call("distill", "--trajectories", "store", "--out", "half", *KEPT)
        for name in ("config.json", "model.safetensors"):
            Path("half", name).unlink()
        _call(*READERS["exported"][0])
        _call("teacher", "import", "pixart", "--out", "text_teacher")
        _call(*READERS["text"][1])
        _call(*READERS["cache"][0])
        for commands in READERS.values():
            for command in commands:
                _call(*command, may_fail=True)
                shutil.rmtree("new", ignore_errors=True)
                Path("new.png").unlink(missing_ok=True)


def _call(*arguments: str, may_fail: bool = False) -> None:
    """A command that must succeed, in silence."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run(list(arguments))
    if status and not may_fail:
        raise RuntimeError(f"ard {' '.join(arguments)}: {said.getvalue()}")


def publish_networks() -> None:
    """Published networks in their formats, here: PixArt's folder with all its parts, DiT's folder and checkpoint."""
    import diffusers
    import tokenizers
    import transformers

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", "a", "red", "cat"))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    parts: dict[str, Any] = {
        "pixart/tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks),
        "pixart/text_encoder": transformers.T5EncoderModel(
            transformers.T5Config(feed_forward_proj="gated-gelu", **T5)
        ),
        "pixart/transformer": diffusers.PixArtTransformer2DModel(**PIXART),
        "pixart/scheduler": diffusers.DPMSolverMultistepScheduler(),
        "pixart/vae": diffusers.AutoencoderKL(norm_num_groups=4, **VAE),
        "vae": diffusers.AutoencoderKL(norm_num_groups=4, **VAE),
        "dit/scheduler": diffusers.DDIMScheduler(clip_sample=False),
        "dit/transformer": diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
            patch_size=4, num_embeds_ada_norm=10,
        ),
    }  # fmt: skip
    blocks = parts["dit/transformer"].transformer_blocks
    for block in blocks[1:]:  # Published ones have one embedder, and its copies.
        block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    for place, part in parts.items():
        options = {"max_shard_size": "5KB"} if place.endswith("transformer") else {}  # With an index of shards.
        part.save_pretrained(place, **options)
    Path("pixart/model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    Path("dit/model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", "id2label": {"0": "tench"}}))
    _save_checkpoints()


def _save_checkpoints() -> None:
    from safetensors.torch import save_file

    from ard.networks.transformer import Transformer, TransformerConfig, initialise

    shape = TransformerConfig(
        width=64, depth=2, num_heads=2, patch_size=4, latent_size=8, channels=4, num_classes=10, learn_sigma=True
    )
    network = initialise(Transformer(shape), torch.Generator().manual_seed(0))
    weights = {name.replace("x_embedder.", "x_embedder.proj."): value for name, value in network.state_dict().items()}
    weights["pos_embed"] = network.pos_embed.unsqueeze(0).contiguous()
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].view(64, 4, 4, 4)
    torch.save(weights, "DiT.pt")
    save_file(weights, "DiT.safetensors")
    torch.save({"fc.weight": torch.zeros(8, 8), "fc.bias": torch.zeros(8)}, "tensors.pth")


def draw_pictures() -> None:
    """Pictures in a folder, in a tar and in an array; prompts; a reference of ADM's kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        path = Path("pictures", "ab"[number % 2], f"{number}.{'png' if number < 4 else 'jpg'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    with tarfile.open("pictures.tar", "w") as tar:
        for number, path in enumerate(sorted(Path("pictures").glob("*/*.png"))):
            tar.add(path, f"{number}.png")
            Path("label").write_text(str(number % 2))
            tar.add("label", f"{number}.cls")
    Path("label").unlink()
    np.savez("samples.npz", arr_0=pixels)
    np.savez("reference.npz", arr_0=pixels)
    Path("prompts.txt").write_text("a red cat\na cat\n")
    Path("prompts.jsonl").write_text('{"prompt": "a red cat"}\n{"caption": "a cat", "other": [1, {"x": null}]}\n')
