"""Our teacher and students against diffusers' DiTPipeline: the same weights, equal images first, interleaved rounds.

    python benchmarks/vs_diffusers.py --model DiT-S/2 --batch 1
    python benchmarks/vs_diffusers.py --model DiT-B/2 --batch 1 --compile --json vs_diffusers.json

Weights are random. The pipeline's autoencoder is as small as it can be and decodes for all of them.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from ard.analysis.flops import student_row, teacher_row, usual_network
from ard.analysis.latency import machine_facts
from ard.bench.ceilings import best_flops
from ard.bench.contenders import random_student
from ard.bench.measure import Timed, measure_rows, plain_rows, rows_table
from ard.cli.bench.common import ceilings_for
from ard.core.devices import autocast, resolve_device
from ard.core.files import write_json
from ard.networks.transformer import TransformerConfig
from ard.reporting.table import as_text
from ard.student.fast_sampling import Speed, drawing
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import StudentConfig
from ard.teacher.importers import Choice, read_published
from ard.teacher.teacher import Guidance, Ode, Teacher, load_teacher, plan_ode, save_teacher, solve_pf_ode

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
        card, weights = read_published(folder / "pipeline", Choice())
        save_teacher(folder / "teacher", card, weights)
        return load_teacher(folder / "teacher", device)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What draws pictures: the pipeline, and our samplers from the same noise, decoded by its autoencoder."""

    pipeline: Any
    teacher: Teacher
    label: torch.Tensor
    steps: int
    device: torch.device

    def by_pipeline(self) -> torch.Tensor:
        """By DiTPipeline itself."""
        with autocast(self.device):
            images = self.pipeline(
                class_labels=self.label.tolist(),
                guidance_scale=GUIDANCE.cfg_scale,
                generator=torch.Generator().manual_seed(1),
                num_inference_steps=self.steps,
                output_type="np",
            ).images
        return torch.as_tensor(images)

    @torch.no_grad()
    def by_teacher(self) -> torch.Tensor:
        """By our teacher, with the pipeline's weights and noise."""
        with autocast(self.device):
            solution = solve_pf_ode(self.teacher, self.noise, self.label, ode=self.ode, kept=(0, self.steps))
            return self._decoded(solution.x_t[:, -1])

    def by_student(self, config: StudentConfig, speed: Speed) -> Callable[[], torch.Tensor]:
        """By a student of our teacher."""
        draw = drawing(random_student(self.teacher.network, config), speed)

        @torch.no_grad()
        def decoded() -> torch.Tensor:
            with autocast(self.device):
                return self._decoded(draw(self.noise, self.label))

        return decoded

    @property
    def ode(self) -> Ode:
        """The pipeline's: DDIM with guidance of all channels."""
        return plan_ode(self.teacher, num_teacher_steps=self.steps, guidance=GUIDANCE)

    @property
    def noise(self) -> torch.Tensor:
        """The pipeline's from its generator."""
        config = self.teacher.network.config
        shape = (len(self.label), config.channels, config.latent_size, config.latent_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.device)

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        images = vae.decode(latents / vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float()


def contenders(given: Drawing, history_blocks: int, speeds: Sequence[Speed]) -> list[Timed]:
    """The pipeline, our teacher, and ARD and step distillation with four steps at each speed."""
    config, batch = given.teacher.network.config, len(given.label)
    shared = HistoryAttention.SHARED
    students = {
        f"ard4-n{history_blocks}": StudentConfig(num_steps=4, history_blocks=history_blocks, history=shared),
        "step4": StudentConfig(num_steps=4, mask=HistoryMask.DIAGONAL, history_blocks=0),
    }
    macs = teacher_row(config, given.ode).cost.total * batch
    timed = [
        Timed(name="DiTPipeline", batch=batch, run=given.by_pipeline, macs=macs),
        Timed(name=f"teacher{given.steps}", batch=batch, run=given.by_teacher, macs=macs),
    ]
    for name, student in students.items():
        macs = student_row(config, student).cost.total * batch
        for speed in speeds:
            ending = "" if speed is Speed.REFERENCE else f"-{speed}"
            timed.append(Timed(name=name + ending, batch=batch, run=given.by_student(student, speed), macs=macs))
    return timed


def main(arguments: list[str] | None = None) -> None:
    """Make, check, time, print."""
    options = parsed(arguments)
    device, config = resolve_device(options.device), usual_network(options.model)
    torch.manual_seed(0)
    pipeline = make_pipeline(config).to(device)
    label = torch.arange(options.batch, device=device) % config.num_classes
    teacher = imported(pipeline, device)
    given = Drawing(pipeline=pipeline, teacher=teacher, label=label, steps=options.steps, device=device)
    off = float((given.by_pipeline() - given.by_teacher()).abs().max())
    print(f"largest difference of a pixel, DiTPipeline and our teacher: {off:.1e}")
    if off > (1e-3 if device.type == "cpu" else 5e-2):
        raise SystemExit("the images differ: nothing is timed")
    speeds = list(Speed) if options.compile else [Speed.REFERENCE, Speed.FAST]
    timed = contenders(given, options.history_blocks, speeds)
    flops = best_flops(ceilings_for(config, [options.batch], device))
    rows = measure_rows(timed, flops=flops, rounds=options.rounds, device=device)
    if options.compile:  # In place, so after the eager rounds; beside our teacher again.
        pipeline.transformer.compile_repeated_blocks()
        given.by_pipeline()
        pair = [replace(timed[0], name="DiTPipeline, compiled"), timed[1]]
        rows += measure_rows(pair, flops=flops, rounds=options.rounds, device=device)[:1]
    print(as_text(*rows_table(rows)))
    for row in rows[1:]:
        print(f"{rows[0].model} / {row.model}: {rows[0].median_ms / row.median_ms:.2f}")
    if options.json:
        write_json(options.json, {"machine": machine_facts(device), "rows": plain_rows(rows)})


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="DiT-S/2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--history-blocks", type=int, default=6)
    parser.add_argument(
        "--compile", action="store_true", help="also the pipeline and our sampler with their blocks compiled"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
