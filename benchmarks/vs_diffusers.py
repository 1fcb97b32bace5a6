"""Our teacher and students against diffusers' DiTPipeline: the same weights, equal images first, interleaved rounds.

    python benchmarks/vs_diffusers.py --model DiT-S/2 --batch 1
    python benchmarks/vs_diffusers.py --model DiT-B/2 --batch 1 --compile --json vs_diffusers.json

Weights are random. The pipeline's autoencoder is as small as it can be and decodes for all of them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from ard.analysis.flops import student_row, teacher_row, usual_network
from ard.bench.ceilings import best_flops
from ard.bench.contenders import random_student
from ard.bench.measure import Timed, measure_rows, plain_rows, rows_table
from ard.cli.bench.common import ceilings_for
from ard.devices import autocast, resolve_device
from ard.files import write_json
from ard.history import HistoryAttention, HistoryMask
from ard.models.student import StudentConfig
from ard.models.transformer import TransformerConfig
from ard.published import read_published
from ard.sampling import sample
from ard.table import as_text
from ard.teacher import Guidance, Teacher, load_teacher, plan_ode, save_teacher, solve_pf_ode

GUIDANCE = Guidance(cfg_scale=1.5, cfg_channels=-1)  # DiTPipeline guides all channels.


def make_pipeline(config: TransformerConfig) -> Any:
    """A DiTPipeline with random weights, none of them zero."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        in_channels=config.channels,
        out_channels=2 * config.channels,
        num_layers=config.depth,
        sample_size=config.latent_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
    )
    embedder = transformer.transformer_blocks[0].norm1.emb
    for block in transformer.transformer_blocks[1:]:  # Every block has a copy; in a trained network they are equal.
        block.norm1.emb.load_state_dict(embedder.state_dict())
    small = {"block_out_channels": (4,), "norm_num_groups": 1, "down_block_types": ("DownEncoderBlock2D",)}
    vae = AutoencoderKL(latent_channels=config.channels, up_block_types=("UpDecoderBlock2D",), **small)
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="linear", timestep_spacing="leading")
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def imported(pipeline: Any, device: torch.device) -> Teacher:
    """The pipeline as a teacher of ours, by way of a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline.save_pretrained(folder / "pipeline")
        card, weights = read_published(folder / "pipeline", told=None, num_heads=None)
        save_teacher(folder / "teacher", card, weights)
        return load_teacher(folder / "teacher", device)


def main(arguments: list[str] | None = None) -> None:
    """Make, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="DiT-S/2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--history-blocks", type=int, default=6)
    parser.add_argument("--compile", action="store_true", help="also time the pipeline with its blocks compiled")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args(arguments)
    device, config = resolve_device(options.device), usual_network(options.model)
    torch.manual_seed(0)
    pipeline = make_pipeline(config).to(device)
    teacher = imported(pipeline, device)
    label = torch.arange(options.batch, device=device) % config.num_classes
    shape = (options.batch, config.channels, config.latent_size, config.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    ode = plan_ode(teacher, num_teacher_steps=options.steps, guidance=GUIDANCE)
    students = {
        f"ard4-n{options.history_blocks}": StudentConfig(
            num_steps=4, history_blocks=options.history_blocks, history=HistoryAttention.SHARED
        ),
        "step4": StudentConfig(num_steps=4, mask=HistoryMask.DIAGONAL, history_blocks=0),
    }

    def draw_pipeline() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        with autocast(device):
            images = pipeline(
                class_labels=label.tolist(),
                guidance_scale=GUIDANCE.cfg_scale,
                generator=generator,
                num_inference_steps=options.steps,
                output_type="np",
            ).images
        return torch.as_tensor(images)

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float()

    @torch.no_grad()
    def draw_teacher() -> torch.Tensor:
        with autocast(device):
            return decoded(solve_pf_ode(teacher, noise, label, ode=ode, kept=(0, options.steps)).x_t[:, -1])

    def drawing(student_config: StudentConfig) -> Callable[[], torch.Tensor]:
        student = random_student(teacher.network, student_config)

        @torch.no_grad()
        def draw() -> torch.Tensor:
            with autocast(device):
                return decoded(sample(student, noise, label=label)[:, -1])

        return draw

    off = float((draw_pipeline() - draw_teacher()).abs().max())
    print(f"largest difference of a pixel, DiTPipeline and our teacher: {off:.1e}")
    if off > (1e-3 if device.type == "cpu" else 5e-2):
        raise SystemExit("the images differ: nothing is timed")
    teacher_macs = teacher_row(config, ode).cost.total * options.batch
    timed = [
        Timed(name="DiTPipeline", batch=options.batch, run=draw_pipeline, macs=teacher_macs),
        Timed(name=f"teacher{options.steps}", batch=options.batch, run=draw_teacher, macs=teacher_macs),
        *(
            Timed(
                name=name,
                batch=options.batch,
                run=drawing(one),
                macs=student_row(config, one).cost.total * options.batch,
            )
            for name, one in students.items()
        ),
    ]
    ceilings = ceilings_for(config, [options.batch], device)
    rows = measure_rows(timed, flops=best_flops(ceilings), rounds=options.rounds, device=device)
    if options.compile:  # In place, so after the eager rounds; beside our teacher again.
        pipeline.transformer.compile_repeated_blocks()
        draw_pipeline()
        compiled = Timed(name="DiTPipeline, compiled", batch=options.batch, run=draw_pipeline, macs=teacher_macs)
        pair = [compiled, timed[1]]
        rows += measure_rows(pair, flops=best_flops(ceilings), rounds=options.rounds, device=device)[:1]
    print(as_text(*rows_table(rows)))
    for row in rows[1:]:
        print(f"{rows[0].model} / {row.model}: {rows[0].median_ms / row.median_ms:.2f}")
    if options.json:
        write_json(options.json, {"rows": plain_rows(rows)})


if __name__ == "__main__":
    main()
